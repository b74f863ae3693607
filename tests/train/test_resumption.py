"""Runs go on with what lies in their workdir, to the bit, or say why they don't."""

import json
import pathlib
import shutil
import types

import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from ml_collections import ConfigDict
from running import read_metrics, stored_arrays, without_speeds

import focalnet_jax
from focalnet_jax.errors import SetupError
from focalnet_jax.train import check_config, evaluate, train
from focalnet_jax.train.feed import DeviceFeed
from focalnet_jax.weights.params import newest_params_path

pytestmark = pytest.mark.usefixtures("shared_programs", "no_summaries")


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
    tiny_config.model.depths = (1, 1)
    tiny_config.model.focal_levels = (2, 1)
    tiny_config.model.focal_windows = (3, 3)
    tiny_config.model.drop_path_rate = 0.3
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
