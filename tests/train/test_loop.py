"""Runs: their files, what ends them, and what is said of their data."""

import itertools
import json
import types

import jax
import PIL.Image
import pytest
from etils import epath
from running import read_metrics

import focalnet_jax
from focalnet_jax.errors import SetupError
from focalnet_jax.train import cadence, check_config, evaluate, evaluation, train
from focalnet_jax.train.run.preemption import Preemption
from focalnet_jax.weights.params import newest_params_path

pytestmark = pytest.mark.usefixtures("shared_programs", "no_summaries")


def test_workdir_describes_the_run(tiny_config, tmp_path, capsys):
    workdir = epath.Path(tmp_path)
    metrics = train(*check_config(tiny_config), workdir)
    assert json.loads((workdir / "config.json").read_text())["batch_size"] == 16
    versions = json.loads((workdir / "versions.json").read_text())
    assert versions["jax"] == jax.__version__
    assert versions["focalnet_jax"] == focalnet_jax.__version__
    model = json.loads((workdir / "model.json").read_text())
    assert model["name"] == "focalnet_tiny_srf"
    assert model["overrides"]["depths"] == [1]
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
    tiny_config.model.depths = (1, 1)
    tiny_config.model.focal_levels = (2, 1)
    tiny_config.model.focal_windows = (3, 3)
    tiny_config.model.drop_rate = 0.0
    tiny_config.checkpoint.every_steps = 60
    tiny_config.data.crop_area = (0.8, 1.0)
    tiny_config.data.flip = False
    metrics = train(*check_config(tiny_config), epath.Path(tmp_path))
    assert metrics["test/top1"] > 0.5  # chance is 0.1


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
