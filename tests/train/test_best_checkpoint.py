"""The average of the parameters, and the checkpoint that is best by a metric."""

import json

import numpy as np
import pytest
from etils import epath
from running import read_metrics, stored_arrays

import focalnet_jax
from focalnet_jax.errors import SetupError
from focalnet_jax.train import check_config, evaluate, train
from focalnet_jax.train.run.checkpoints import Checkpoints

pytestmark = pytest.mark.usefixtures("shared_programs", "no_summaries")


def test_average_is_evaluated_and_kept(tiny_config, tmp_path, capsys):
    workdir = epath.Path(tmp_path)
    tiny_config.num_steps = 3
    tiny_config.log_every_steps = 3
    train(*check_config(tiny_config), workdir)
    tiny_config.num_steps = 6
    tiny_config.ema_decay = 0.99
    metrics = train(*check_config(tiny_config), workdir)
    said = capsys.readouterr().out
    assert "with ema_decay: 0.0 -> 0.99" in said
    assert "test of the average: top-1" in said
    assert metrics["test_ema/loss"] != metrics["test/loss"]
    assert metrics["test_ema/examples"] == 60
    evaluated = evaluate(*check_config(tiny_config), workdir)
    tests = {n: v for n, v in metrics.items() if n.startswith("test")}
    assert evaluated == tests

    # It can be started from, and its model is known.
    average = workdir / "checkpoints" / "6" / "ema"
    tiny_config.init_from = str(average)
    alone = evaluate(*check_config(tiny_config), workdir / "other")
    assert alone["test/loss"] == metrics["test_ema/loss"]
    assert "test_ema/loss" not in alone
    model, params, _ = focalnet_jax.load_model(str(average))
    assert model.num_classes == 10
    stored = stored_arrays(workdir, 6)
    np.testing.assert_array_equal(params["head"]["bias"], stored["ema['head']['bias']"])


def test_best_checkpoint_is_kept_beside_the_newest(tiny_config, tmp_path):
    tiny_config.evaluate_every_steps = 1
    tiny_config.checkpoint.every_steps = 100
    tiny_config.checkpoint.keep = 1
    for metric, best in [("test/top1", max), ("test/loss", min)]:
        tiny_config.checkpoint.best_metric = metric
        workdir = epath.Path(tmp_path / metric.replace("/", "_"))
        train(*check_config(tiny_config), workdir)
        values = {
            line["step"]: line[metric] for line in read_metrics(workdir) if metric in line
        }
        assert list(values) == [1, 2, 3, 4, 5, 6]
        at = best(reversed(values), key=values.get)  # Of ties, the newest.
        kept = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
        assert kept == {at, 6}
        record = json.loads((workdir / "best.json").read_text())
        assert record == {"step": at, "metric": metric, "value": values[at]}

    # A later run knows of it.
    tiny_config.num_steps = 7
    train(*check_config(tiny_config), workdir)
    values |= {
        line["step"]: line[metric] for line in read_metrics(workdir)[6:] if metric in line
    }
    kept = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
    assert kept == {min(values, key=values.get), 7}

    record = json.loads((workdir / "best.json").read_text())
    assert record["step"] == min(values, key=values.get)
    options = dict(keep=1, best_metric=metric, higher_is_better=False)
    with Checkpoints(workdir, **options) as checkpoints:
        assert checkpoints.is_best({metric: record["value"]})  # It is newer.
        assert not checkpoints.is_best({metric: record["value"] + 0.001})
        assert not checkpoints.is_best({})
    with Checkpoints(epath.Path(tmp_path / "new"), **options) as checkpoints:
        assert not checkpoints.is_best({})

    (workdir / "checkpoints" / "7" / "metrics" / "metrics").write_text("{")
    with pytest.raises(SetupError, match="metrics of a checkpoint are damaged: .*/7: "):
        train(*check_config(tiny_config), workdir)


def test_the_best_checkpoint_is_loaded_if_it_is_known(tiny_config, tmp_path, caplog):
    workdir = epath.Path(tmp_path)
    tiny_config.evaluate_every_steps = 3
    tiny_config.checkpoint.best_metric = "test/top1"
    train(*check_config(tiny_config), workdir)

    def bias():
        caplog.clear()
        return focalnet_jax.load_model(str(workdir)).params["head"]["bias"]

    def stored(step):
        return stored_arrays(workdir, step)["params['head']['bias']"]

    record = json.loads((workdir / "best.json").read_text())
    for step, other in ((3, 6), (6, 3)):
        (workdir / "best.json").write_text(json.dumps(record | {"step": step}))
        np.testing.assert_array_equal(bias(), stored(step))
        assert not np.array_equal(stored(step), stored(other))
        said = "is read, of step 3 (test/top1" in caplog.text
        assert said == (step == 3)
    # A better one is being written, and the last one is gone.
    (workdir / "best.json").write_text(json.dumps(record | {"step": 5}))
    np.testing.assert_array_equal(bias(), stored(6))
    for damaged in ("{", "[]", "{}", json.dumps(record | {"step": "3"})):
        (workdir / "best.json").write_text(damaged)
        with pytest.raises(SetupError, match="best.json is damaged: .* move it away"):
            bias()
    # A run that goes on without such a metric has no best one.
    tiny_config.checkpoint.best_metric = None
    train(*check_config(tiny_config), workdir)
    assert not (workdir / "best.json").exists()
    np.testing.assert_array_equal(bias(), stored(6))
