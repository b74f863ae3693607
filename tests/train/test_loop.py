"""Runs: their files, their resumption to the bit, their evaluation."""

import itertools
import json
import pathlib
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import PIL.Image
import pytest
from etils import epath
from ml_collections import ConfigDict
from running import read_metrics, without_speeds

import focalnet_jax
from focalnet_jax.errors import SetupError
from focalnet_jax.tasks import classification
from focalnet_jax.tasks.losses import cross_entropy
from focalnet_jax.train import cadence, check_config, evaluate, evaluation, train
from focalnet_jax.train.feed import DeviceFeed
from focalnet_jax.train.run.checkpoints import Checkpoints
from focalnet_jax.train.run.preemption import Preemption
from focalnet_jax.weights.params import newest_params_path


def stored_arrays(workdir, step):
    """Every array of a checkpoint, parameters and optimiser's state."""
    arrays = {}
    for item in ("params", "ema", "optimizer"):
        if not (workdir / "checkpoints" / str(step) / item).exists():
            continue
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.restore(workdir / "checkpoints" / str(step) / item)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            arrays[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return arrays


@pytest.fixture
def seen_ids(monkeypatch):
    """The example ids of every training batch that a step is done on."""
    ids = []
    take = DeviceFeed.next

    def recording(self, **options):
        batch = take(self, **options)
        ids.append(batch["id"].tolist())
        return batch

    monkeypatch.setattr(DeviceFeed, "next", recording)
    return ids


def test_resumed_run_is_the_unbroken_one_bit_for_bit(
    tiny_config, tmp_path, train_until, seen_ids
):
    """In mid-epoch, after a checkpoint and two steps more, all randomness on."""
    tiny_config.num_steps = 8
    tiny_config.data.rand_augment = "rand-m9-mstd0.5-inc1"
    tiny_config.data.color_jitter = 0.4
    tiny_config.random_erasing = 0.5
    tiny_config.mixup_alpha, tiny_config.cutmix_alpha = 0.8, 1.0
    tiny_config.ema_decay = 0.5
    run = check_config(tiny_config)
    unbroken, broken = epath.Path(tmp_path / "unbroken"), epath.Path(tmp_path / "broken")
    train(*run, unbroken)
    expected_ids = seen_ids.copy()
    seen_ids.clear()

    train_until(run, broken, 5)  # the newest checkpoint is of step 3
    assert [line["step"] for line in read_metrics(broken)] == [1, 2, 3, 4, 5]
    assert seen_ids == expected_ids[:5]
    seen_ids.clear()
    train(*run, broken)
    assert seen_ids == expected_ids[3:]

    traces = [without_speeds(read_metrics(workdir)) for workdir in (unbroken, broken)]
    assert traces[0] == traces[1]
    assert [line["step"] for line in traces[1]] == list(range(1, 9))
    arrays = [stored_arrays(workdir, 8) for workdir in (unbroken, broken)]
    assert arrays[0].keys() == arrays[1].keys()
    for name, value in arrays[0].items():
        np.testing.assert_array_equal(arrays[1][name], value, err_msg=name)
    for part in ("mu", "ema", "params"):
        assert any(part in name for name in arrays[0])


def test_workdir_describes_the_run(tiny_config, tmp_path, capsys):
    workdir = epath.Path(tmp_path)
    metrics = train(*check_config(tiny_config), workdir)
    assert json.loads((workdir / "config.json").read_text())["batch_size"] == 16
    versions = json.loads((workdir / "versions.json").read_text())
    assert versions["jax"] == jax.__version__
    assert versions["focalnet_jax"] == focalnet_jax.__version__
    model = json.loads((workdir / "model.json").read_text())
    assert model["name"] == "focalnet_tiny_srf"
    assert model["overrides"]["depths"] == [1, 1]
    assert (model["image_size"], model["crop"]) == (16, 0.875)
    assert model["interpolation"] == "bicubic"
    assert model["classes"] == list("0123456789")
    assert len(list(workdir.glob("events.out.tfevents*"))) == 1
    last = read_metrics(workdir)[-1]
    assert last["step"] == 6
    assert last["test/top1"] == metrics["test/top1"]
    assert last["test/examples"] == 60
    assert 0 <= last["test/top1"] <= last["test/top5"] <= 1
    assert last.keys() >= {"train/loss", "train/learning_rate", "train/gradient_norm"}
    steps = sorted(p.name for p in (workdir / "checkpoints").iterdir())
    assert steps == ["3", "6"]
    assert "finished: step 6 of 6" in capsys.readouterr().out

    # Again: it is finished, and says so; and evaluation finds the same.
    again = train(*check_config(tiny_config), workdir)
    assert "the run is finished: step 6 of 6" in capsys.readouterr().out
    evaluated = evaluate(*check_config(tiny_config), workdir)
    for name in ("test/top1", "test/top5", "test/loss", "test/examples"):
        assert again[name] == evaluated[name] == metrics[name]
    assert len(read_metrics(workdir)) == 6


def test_training_learns(tiny_config, tmp_path):
    tiny_config.num_steps = 60
    tiny_config.batch_size = 64
    tiny_config.model.drop_path_rate = tiny_config.model.drop_rate = 0.0
    tiny_config.checkpoint.every_steps = 60
    tiny_config.data.crop_area = (0.8, 1.0)
    tiny_config.data.flip = False
    metrics = train(*check_config(tiny_config), epath.Path(tmp_path))
    assert metrics["test/top1"] > 0.5  # chance is 0.1


def test_starting_from_other_parameters(tiny_config, tmp_path, capsys):
    first, second = epath.Path(tmp_path / "first"), epath.Path(tmp_path / "second")
    trained = train(*check_config(tiny_config), first)
    tiny_config.init_from = str(first)
    assert evaluate(*check_config(tiny_config), second) == {
        name: value for name, value in trained.items() if name.startswith("test/")
    }
    tiny_config.num_steps = 1
    tiny_config.learning_rate = tiny_config.warmup_learning_rate = 0.0
    tiny_config.final_learning_rate = 0.0
    started = train(*check_config(tiny_config), second)
    assert f"starting from {first}" in capsys.readouterr().out
    assert started["test/loss"] == trained["test/loss"]
    assert newest_params_path(second) == second / "checkpoints" / "1" / "params"


def test_starting_with_a_new_head(tiny_config, tmp_path, capsys):
    """For other classes, on what an earlier run has learnt, its average here."""
    first, second = epath.Path(tmp_path / "first"), epath.Path(tmp_path / "second")
    tiny_config.num_steps = 1
    tiny_config.ema_decay = 0.9
    train(*check_config(tiny_config), first)
    average = first / "checkpoints" / "1" / "ema"
    tiny_config.init_from = str(average)
    tiny_config.model.num_classes = 12
    with pytest.raises(SetupError, match=r"has \(16, 12\)\n.*reset_head=True"):
        train(*check_config(tiny_config), second)
    tiny_config.reset_head = True
    tiny_config.learning_rate = tiny_config.warmup_learning_rate = 0.0
    tiny_config.final_learning_rate = 0.0
    train(*check_config(tiny_config), second)
    said = capsys.readouterr().out
    assert f"starting from {average}, with a new head\n" in said
    assert "but with" not in said
    before, after = stored_arrays(first, 1), stored_arrays(second, 1)
    assert after["params['head']['kernel']"].shape == (16, 12)
    for name, value in before.items():
        if name.startswith("ema") and "head" not in name:
            now = after[name.replace("ema", "params")]
            np.testing.assert_array_equal(now, value, err_msg=name)


def test_parameters_that_do_not_fit_are_listed(tiny_config, tmp_path):
    first = epath.Path(tmp_path / "first")
    tiny_config.num_steps = 1
    train(*check_config(tiny_config), first)
    tiny_config.init_from = str(first)
    tiny_config.model.use_layerscale = True
    tiny_config.model.focal_levels = (2, 2)
    with pytest.raises(SetupError) as error:
        train(*check_config(tiny_config), epath.Path(tmp_path / "second"))
    message = str(error.value)
    assert "layers_0/blocks_0/gamma_1 (8,) is not stored" in message
    assert "f/bias is stored as (34,), the model has (35,)" in message
    assert "layers_1/blocks_0/modulation/focal_layers_1/kernel" in message
    assert message.endswith(
        "set these fields as there:\n"
        "  model.focal_levels: (2, 1) there, (2, 2) here\n"
        "  model.use_layerscale: False there, True here"
    )

    tiny_config.init_from = None
    with pytest.raises(SetupError, match=r"model.use_layerscale: False there, True here"):
        train(*check_config(tiny_config), first)


def test_changed_fields_are_said_on_resumption(tiny_config, tmp_path, capsys):
    workdir = epath.Path(tmp_path)
    tiny_config.num_steps = 3
    train(*check_config(tiny_config), workdir)
    tiny_config.num_steps = 4
    train(*check_config(tiny_config), workdir)
    output = capsys.readouterr().out
    assert "with num_steps: 3 -> 4" in output
    assert "resuming after step 3" in output

    tiny_config.data.image_size = 24
    train(*check_config(tiny_config), workdir)  # It is finished, and evaluates once more.
    assert "with data.image_size: 16 -> 24" in capsys.readouterr().out
    evaluate(*check_config(tiny_config), workdir)
    output = capsys.readouterr().out
    assert f"{workdir / 'model.json'} has image_size=16, here 24\n" in output
    tiny_config.data.image_size = 16

    tiny_config.seed = 1
    tiny_config.batch_size = 8
    message = r"on other examples:\n  seed: 0 -> 1\n  batch_size: 16 -> 8\nSet these"
    with pytest.raises(SetupError, match=message):
        train(*check_config(tiny_config), workdir)


@pytest.mark.parametrize("step", [2, 6])
def test_a_notice_to_end_ends_evaluation(
    step, tiny_config, tmp_path, monkeypatch, capsys
):
    """It comes during the evaluation after step 2, or after the last step."""
    notices = []
    make_batches = evaluation.evaluation_batches

    def interrupted(*arguments, **options):
        for number, batch in enumerate(make_batches(*arguments, **options)):
            if number == 1 and read_metrics(tmp_path)[-1]["step"] == step - 1:
                notices.append("SIGTERM")
            yield batch

    monkeypatch.setattr(evaluation, "evaluation_batches", interrupted)
    monkeypatch.setattr(Preemption, "reached", lambda self: bool(notices))
    tiny_config.evaluate_every_steps = 2
    workdir = epath.Path(tmp_path)
    metrics = train(*check_config(tiny_config), workdir)
    assert f"told to end: saved step {step} of 6" in capsys.readouterr().out
    assert "test/loss" not in metrics
    assert newest_params_path(workdir) == workdir / "checkpoints" / str(step) / "params"
    monkeypatch.undo()
    metrics = train(*check_config(tiny_config), workdir)
    assert metrics["test/examples"] == 60
    assert [line["step"] for line in read_metrics(workdir)] == [1, 2, 3, 4, 5, 6]


def test_workdirs_from_before_there_were_tasks_still_serve(tiny_config, tmp_path, capsys):
    workdir = epath.Path(tmp_path)
    tiny_config.num_steps = 3
    train(*check_config(tiny_config), workdir)
    for name in ("config.json", "model.json"):
        content = json.loads((workdir / name).read_text())
        assert content.pop("task") == "classification"
        (workdir / name).write_text(json.dumps(content))
    evaluated = evaluate(*check_config(tiny_config), workdir)
    model, _, _ = focalnet_jax.load_model(str(workdir))
    assert model.num_classes == 10
    capsys.readouterr()
    again = train(*check_config(tiny_config), workdir)
    assert again["test/loss"] == evaluated["test/loss"]
    tiny_config.num_steps = 4
    train(*check_config(tiny_config), workdir)
    assert "resuming after step 3\n  with num_steps: 3 -> 4\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.num_classes": 9}, "model.num_classes=9 is too few for digits"),
        ({"batch_size": 12}, "batch_size=12 doesn't divide over 8 devices"),
        ({"mesh.fsdp": 3}, "don't make up the 8 devices"),
        ({"data.num_train_examples": 9}, "=9, but digits, split 'train' has 1437: if"),
        ({"data.test_split": "test[:0]"}, "is empty"),
        ({"init_from": "/nowhere"}, "there is no /nowhere"),
    ],
)
def test_errors_come_before_compilation(tiny_config, tmp_path, changes, message):
    tiny_config.update_from_flattened_dict(changes)
    with pytest.raises(SetupError, match=message):
        train(*check_config(tiny_config), epath.Path(tmp_path))
    assert not list(tmp_path.iterdir())


def test_evaluation_without_parameters_says_what_to_do(tiny_config, tmp_path):
    with pytest.raises(SetupError, match="nothing to evaluate.*init_from is not set"):
        evaluate(*check_config(tiny_config), epath.Path(tmp_path))


def test_checkpoints_do_not_depend_on_the_mesh(tiny_config, tmp_path):
    """Written by 8 x 1 devices, read by 2 x 4."""
    workdir = epath.Path(tmp_path)
    trained = train(*check_config(tiny_config), workdir)
    tiny_config.mesh.fsdp = 4
    evaluated = evaluate(*check_config(tiny_config), workdir)
    assert evaluated["test/top1"] == trained["test/top1"]
    assert evaluated["test/loss"] == pytest.approx(trained["test/loss"], rel=1e-6)
    resumed_config = ConfigDict(tiny_config)
    resumed_config.num_steps = 7
    assert train(*check_config(resumed_config), workdir)["test/examples"] == 60


def test_options_that_leave_no_trace_in_parameters_are_compared(
    tiny_config, tmp_path, capsys
):
    """Evaluation refuses them, a new run from the parameters says them."""
    first = epath.Path(tmp_path / "first")
    tiny_config.num_steps = 1
    train(*check_config(tiny_config), first)
    tiny_config.model.mlp_ratio = 4.0  # the default, spelt out
    tiny_config.model.drop_path_rate = 0.0
    evaluate(*check_config(tiny_config), first)
    tiny_config.model.normalize_modulator = True
    message = "model.normalize_modulator: False there, True here"
    for workdir, init_from in [(first, None), (tmp_path / "second", str(first))]:
        tiny_config.init_from = init_from
        with pytest.raises(SetupError, match=message):
            evaluate(*check_config(tiny_config), epath.Path(workdir))
    capsys.readouterr()
    train(*check_config(tiny_config), epath.Path(tmp_path / "second"))
    assert message in capsys.readouterr().out


def test_started_runs_do_not_need_their_origin_any_more(tiny_config, tmp_path):
    first, second = epath.Path(tmp_path / "first"), epath.Path(tmp_path / "second")
    tiny_config.num_steps = 1
    train(*check_config(tiny_config), first)
    tiny_config.init_from = str(first)
    train(*check_config(tiny_config), second)
    first.rmtree()
    tiny_config.num_steps = 2
    assert train(*check_config(tiny_config), second)["test/examples"] == 60


def test_diverged_runs_stop_before_they_save(tiny_config, tmp_path):
    workdir = epath.Path(tmp_path)
    tiny_config.num_steps = 3
    train(*check_config(tiny_config), workdir)
    tiny_config.num_steps = 9
    tiny_config.warmup_epochs = 0.0
    tiny_config.learning_rate = tiny_config.final_learning_rate = 1e6
    with pytest.raises(SetupError, match=r"norm of step \d is (nan|inf).*is of step 3"):
        train(*check_config(tiny_config), workdir)
    assert newest_params_path(workdir) == workdir / "checkpoints" / "3" / "params"


def test_steps_that_are_not_finite_are_skipped(
    tiny_config, tmp_path, monkeypatch, capsys
):
    """As many as are allowed, and with one more the run ends."""
    firsts = []
    take = DeviceFeed.next

    def noting(self, **options):
        batch = take(self, **options)
        firsts.append(batch["label"][0].item())
        return batch

    def broken_loss(logits, labels, **options):
        return jnp.where(
            labels[0] == 3, jnp.nan, cross_entropy(logits, labels, **options)
        )

    monkeypatch.setattr(DeviceFeed, "next", noting)
    monkeypatch.setattr(classification, "cross_entropy", broken_loss)
    tiny_config.num_steps = 40
    tiny_config.max_nonfinite_steps = 40
    workdir = epath.Path(tmp_path)
    train(*check_config(tiny_config), workdir)
    lines = read_metrics(workdir)
    skipped = [i for i, label in enumerate(firsts, start=1) if label == 3]
    assert len(skipped) > 1
    assert [line["step"] for line in lines if "train/loss" not in line] == skipped
    counts = [line["train/nonfinite_steps"] for line in lines]
    assert counts == [sum(s <= line["step"] for s in skipped) for line in lines]
    said = capsys.readouterr().out
    assert f"the loss of step {skipped[0]} is nan; skipped (1 of 40)" in said

    tiny_config.max_nonfinite_steps = 1
    message = rf"the loss of step {skipped[1]} is nan"
    with pytest.raises(SetupError, match=message):
        train(*check_config(tiny_config), workdir / "one")


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
    tiny_config.num_steps = 12
    tiny_config.evaluate_every_steps = 2
    tiny_config.checkpoint.every_steps = 100
    tiny_config.checkpoint.keep = 1
    for metric, best in [("test/top1", max), ("test/loss", min)]:
        tiny_config.checkpoint.best_metric = metric
        workdir = epath.Path(tmp_path / metric.replace("/", "_"))
        train(*check_config(tiny_config), workdir)
        values = {
            line["step"]: line[metric] for line in read_metrics(workdir) if metric in line
        }
        assert list(values) == [2, 4, 6, 8, 10, 12]
        at = best(reversed(values), key=values.get)  # Of ties, the newest.
        kept = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
        assert kept == {at, 12}
        record = json.loads((workdir / "best.json").read_text())
        assert record == {"step": at, "metric": metric, "value": values[at]}

    # A later run knows of it.
    tiny_config.num_steps = 14
    train(*check_config(tiny_config), workdir)
    values |= {
        line["step"]: line[metric]
        for line in read_metrics(workdir)[12:]
        if metric in line
    }
    kept = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
    assert kept == {min(values, key=values.get), 14}

    record = json.loads((workdir / "best.json").read_text())
    assert record["step"] == min(values, key=values.get)
    options = dict(keep=1, best_metric=metric, higher_is_better=False)
    with Checkpoints(workdir, **options) as checkpoints:
        assert checkpoints.is_best({metric: record["value"]})  # It is newer.
        assert not checkpoints.is_best({metric: record["value"] + 0.001})
        assert not checkpoints.is_best({})
    with Checkpoints(epath.Path(tmp_path / "new"), **options) as checkpoints:
        assert not checkpoints.is_best({})

    (workdir / "checkpoints" / "14" / "metrics" / "metrics").write_text("{")
    with pytest.raises(SetupError, match="metrics of a checkpoint are damaged: .*/14: "):
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


def test_checkpoints_by_minutes(tiny_config, tmp_path, monkeypatch):
    """At logged steps, on a clock that runs by a minute a look."""
    minutes = itertools.count()
    clock = types.SimpleNamespace(monotonic=lambda: 60.0 * next(minutes))
    monkeypatch.setattr(cadence, "time", clock)
    tiny_config.num_steps = 9
    tiny_config.log_every_steps = 2
    tiny_config.checkpoint.every_steps = 100
    tiny_config.checkpoint.every_minutes = 2.0
    tiny_config.checkpoint.keep = 9
    workdir = epath.Path(tmp_path)
    train(*check_config(tiny_config), workdir)
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert steps == [4, 8, 9]


def test_damaged_checkpoints_are_named_and_the_older_goes_on(tiny_config, tmp_path):
    workdir = epath.Path(tmp_path)
    train(*check_config(tiny_config), workdir)
    newest = workdir / "checkpoints" / "6"
    arrays = pathlib.Path(newest).glob("params/**/d/*")
    largest = max(arrays, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    message = rf"checkpoint is damaged, or .*: {newest}: .*\nTo go on from step 3, move"
    for _ in range(2):  # nothing has changed
        with pytest.raises(SetupError, match=message):
            train(*check_config(tiny_config), workdir)
    with pytest.raises(SetupError, match=f"{newest}/params is damaged: "):
        evaluate(*check_config(tiny_config), workdir)
    newest.rename(workdir / "aside")
    train(*check_config(tiny_config), workdir)
    assert [line["step"] for line in read_metrics(workdir)] == [1, 2, 3, 4, 5, 6]

    (newest / "optimizer").rmtree()
    with pytest.raises(SetupError, match="checkpoint is damaged.*it has no optimizer"):
        train(*check_config(tiny_config), workdir)


def test_checkpoints_of_other_programs_are_refused(tiny_config, tmp_path):
    workdir = epath.Path(tmp_path)
    tiny_config.ema_decay = 0.9
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(workdir / "checkpoints" / "9" / "default", {"w": np.ones(3)})
    message = "or of another program: .*/9: it has no params and no optimizer\nTo go on "
    with pytest.raises(SetupError, match=message + "from the start, move"):
        train(*check_config(tiny_config), workdir)


def test_checkpoints_need_room(tiny_config, tmp_path, monkeypatch):
    """Where it is missing, nothing is begun, and the older one stays."""
    workdir = epath.Path(tmp_path)
    with monkeypatch.context() as patch:
        free = iter([10_000_000, 10_000_000, 10_000])  # at the start, and at two
        disk_usage = shutil.disk_usage

        def getting_full(path):
            if not str(path).endswith("checkpoints"):
                return disk_usage(path)
            return types.SimpleNamespace(total=1 << 30, free=next(free))

        patch.setattr(shutil, "disk_usage", getting_full)
        message = "no room .* has .* MB, and 0.0 MB are free; the newest .* of step 3$"
        with pytest.raises(SetupError, match=message):
            train(*check_config(tiny_config), workdir)
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["3"]
    train(*check_config(tiny_config), workdir)
    assert [line["step"] for line in read_metrics(workdir)] == [1, 2, 3, 4, 5, 6]


def test_state_of_another_optimizer_is_refused(tiny_config, tmp_path):
    workdir = epath.Path(tmp_path)
    tiny_config.num_steps = 1
    train(*check_config(tiny_config), workdir)
    tiny_config.num_steps = 2
    tiny_config.frozen = ("patch_embed",)
    with pytest.raises(SetupError, match="state of another optimiser; it differs in"):
        train(*check_config(tiny_config), workdir)


def test_bad_records_are_counted_and_said_once(tiny_config, tmp_path, capsys, caplog):
    """In training and in two evaluations, the second time with nothing but such."""
    for split, count in {"train": 20, "val": 3}.items():
        directory = tmp_path / "pets" / split / "cat"
        directory.mkdir(parents=True)
        for i in range(count):
            PIL.Image.new("RGB", (16, 16)).save(directory / f"{i}.png")
    train_images, test_images = (
        sorted((tmp_path / "pets" / split / "cat").iterdir())
        for split in ("train", "val")
    )
    for path in (*train_images[:2], test_images[1]):
        path.write_bytes(b"no image")
    tiny_config.data.name = f"folder:{tmp_path / 'pets'}"
    tiny_config.data.test_split = "val"
    tiny_config.data.max_bad_records = 3
    tiny_config.num_steps = 4
    tiny_config.log_every_steps = tiny_config.evaluate_every_steps = 2
    workdir = epath.Path(tmp_path / "run")
    train(*check_config(tiny_config), workdir)
    lines = read_metrics(workdir)
    assert [line["test/bad_records"] for line in lines] == [1, 1]
    assert lines[-1]["train/bad_records"] == 2
    assert [line["test/examples"] for line in lines] == [2, 2]
    assert capsys.readouterr().out.count("over 2 images, 1 unusable") == 2
    assert caplog.text.count("(cat/1.png) is unusable") == 2  # of each split one

    for path in test_images:
        path.write_bytes(b"")
    metrics = evaluate(*check_config(tiny_config), workdir)
    assert metrics == {"test/examples": 0, "test/bad_records": 3}
    assert "test: nothing over 0 images, 3 unusable" in capsys.readouterr().out


def test_checkpoints_are_not_used_for_other_classes(tiny_config, tmp_path):
    workdir = epath.Path(tmp_path)
    tiny_config.num_steps = 1
    train(*check_config(tiny_config), workdir)
    description = json.loads((workdir / "model.json").read_text())
    description["classes"][3] = "three"
    (workdir / "model.json").write_text(json.dumps(description))
    tiny_config.num_steps = 2
    for use in (train, evaluate):
        with pytest.raises(
            SetupError, match="the model has three and only the data set has 3. So"
        ):
            use(*check_config(tiny_config), workdir)
    description["classes"] = None
    (workdir / "model.json").write_text(json.dumps(description))
    for use in (train, evaluate):
        use(*check_config(tiny_config), workdir)


def test_splits_with_other_classes_are_refused(tiny_config, tmp_path):
    """Their labels would count other directories."""
    for place in ("train/cat", "train/dog", "val/dog"):
        directory = tmp_path / "pets" / place
        directory.mkdir(parents=True)
        for index in range(8 if place.startswith("train") else 1):
            PIL.Image.new("RGB", (16, 16)).save(directory / f"{index}.png")
    tiny_config.data.name = f"folder:{tmp_path / 'pets'}"
    tiny_config.data.test_split = "val"
    message = "other classes: only the former has cat. So .*in data.classes"
    with pytest.raises(SetupError, match=message):
        train(*check_config(tiny_config), epath.Path(tmp_path / "run"))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    tiny_config.data.classes = str(tmp_path / "classes.txt")
    tiny_config.num_steps = 1
    metrics = train(*check_config(tiny_config), epath.Path(tmp_path / "run"))
    assert metrics["test/examples"] == 1
