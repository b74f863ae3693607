"""`data.json`: data that have changed since a run began are told."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest
from etils import epath

import focalnet_jax
from focalnet_jax.data import Source, open_source
from focalnet_jax.errors import SetupError
from focalnet_jax.tasks.base import Split, Splits
from focalnet_jax.train import check_config, evaluate, train
from focalnet_jax.train.run.data_record import (
    data_changes,
    other_evaluation_set,
    record_data,
    write_data,
)

pytestmark = pytest.mark.usefixtures("shared_programs", "no_summaries")


@pytest.fixture
def folder(tmp_path):
    """Images of 16 x 16 pixels in two classes: 12 to train with, 12 to test."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for place in (f"{split}/{c}/{i}.png" for c in "ab" for i in range(6)):
            path = tmp_path / "data" / place
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(256, size=(16, 16, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(path)
    return tmp_path / "data"


def record_of(folder):
    train, test = (open_source(f"folder:{folder}", split=s) for s in ("train", "val"))
    return record_data(Splits(Split(train, None), Split(test, None)))


CHANGES = {
    "added": (
        lambda root: shutil.copy(root / "train/a/0.png", root / "train/a/zz.png"),
        "the data to train on: 12 images -> 13 images; batches are others than they",
    ),
    "removed": (
        lambda root: (root / "val/b/5.png").unlink(),
        "the data to evaluate on: 12 images -> 11 images; results don't compare",
    ),
    "renamed": (
        lambda root: (root / "train/a/0.png").rename(root / "train/a/9.png"),
        "the data to train on: 12 images -> as many, with other names or classes",
    ),
    "of another class": (
        lambda root: (root / "train/a/0.png").rename(root / "train/b/9.png"),
        "the data to train on: 12 images -> as many, with other names or classes",
    ),
    "overwritten": (
        lambda root: shutil.copy(root / "train/a/0.png", root / "train/a/1.png"),
        "the data to train on: 12 images -> as many, some with other contents",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_told(change, folder, tmp_path):
    alter, message = CHANGES[change]
    write_data(epath.Path(tmp_path), record_of(folder))
    assert data_changes(epath.Path(tmp_path), record_of(folder), unit="images") == []
    alter(folder)
    [line] = data_changes(epath.Path(tmp_path), record_of(folder), unit="images")
    assert line.startswith(message)


def test_data_that_have_moved_are_the_same(folder, tmp_path):
    write_data(epath.Path(tmp_path), record_of(folder))
    shutil.copytree(folder, tmp_path / "elsewhere")
    record = record_of(tmp_path / "elsewhere")
    assert data_changes(epath.Path(tmp_path), record, unit="images") == []
    assert other_evaluation_set(epath.Path(tmp_path), record, unit="images") is None


def test_records_of_ones_own_are_counted(tmp_path):
    def record(count):
        split = Split(Source("mine", [None] * count), None)
        return record_data(Splits(split, split))

    write_data(epath.Path(tmp_path), record(1000))
    assert data_changes(epath.Path(tmp_path), record(1000), unit="scenes") == []
    train, _ = data_changes(epath.Path(tmp_path), record(1001), unit="scenes")
    assert "1,000 scenes -> 1,001 scenes" in train


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{", '{"train": 3}', '{"test": {}}', "\udcff", "[" * 100_000),
        '{"train": {"examples": "12", "name": "x"}}',
        '{"train": {"examples": 1.5, "name": "x"}}',
        '{"train": {"examples": -1, "name": "x"}}',
        '{"train": {"examples": 12, "name": [1]}}',
        '{"train": {"examples": 12, "name": "x", "names": 3}}',
    ],
    ids=lambda text: text[:60].encode("ascii", "backslashreplace").decode(),
)
def test_a_damaged_record_is_named(text, folder, tmp_path):
    (tmp_path / "data.json").write_text(text, errors="surrogateescape")
    with pytest.raises(SetupError, match="data.json is damaged.* move it away") as raised:
        data_changes(epath.Path(tmp_path), record_of(folder), unit="images")
    assert "Error(" not in str(raised.value)


@pytest.fixture
def run(folder, tiny_config):
    """A run of one step on the folder, with images that are no squares."""
    tiny_config.num_steps = 1
    tiny_config.batch_size = 8
    tiny_config.model.num_classes = 2
    tiny_config.data.name = f"folder:{folder}"
    tiny_config.data.test_split = "val"
    tiny_config.data.image_size = (8, 24)
    return tiny_config


def test_a_run_goes_on_with_other_data_and_says_so(run, folder, tmp_path, capsys):
    workdir = epath.Path(tmp_path / "run")
    train(*check_config(run), workdir)
    record = json.loads((workdir / "data.json").read_text())
    assert record["train"]["examples"] == record["test"]["examples"] == 12
    assert record["train"].keys() == {"name", "examples", "names", "contents"}
    assert json.loads((workdir / "model.json").read_text())["image_size"] == [8, 24]
    model, params, preprocessing = focalnet_jax.load_model(str(workdir))
    image = preprocessing(folder / "val/a/0.png")
    assert image.shape == (8, 24, 3)
    assert model.apply({"params": params}, image[None])[0].shape == (1, 2)

    for name in ("train/a/zz.png", "val/a/zz.png"):
        shutil.copy(folder / name.replace("zz", "0"), folder / name)
    (folder / "val/b/zz.heic").write_bytes(b"")
    capsys.readouterr()
    evaluate(*check_config(run), workdir)
    output = capsys.readouterr().out
    assert "evaluated on other data: 12 images -> 13 images\n" in output
    assert "1 ending in .heic" in output
    train(*check_config(run), workdir)  # It is finished, and evaluates.
    output = capsys.readouterr().out
    assert "the data to evaluate on: 12 images -> 13 images; results don't" in output
    assert "1 ending in .heic" in output

    run.num_steps = 2
    train(*check_config(run), workdir)
    output = capsys.readouterr().out
    assert "with the data to train on: 12 images -> 13 images; batches are" in output
    record = json.loads((workdir / "data.json").read_text())
    assert record["train"]["examples"] == 13


def test_runs_of_older_programs_have_no_record(folder, tmp_path):
    workdir = epath.Path(tmp_path)
    assert data_changes(workdir, record_of(folder), unit="images") == []
    assert other_evaluation_set(workdir, record_of(folder), unit="images") is None


def test_another_evaluation_set_is_told(folder, tmp_path):
    write_data(epath.Path(tmp_path), record_of(folder))
    other = open_source(f"folder:{folder}", split="train")
    record = record_data(Splits(None, Split(other, None)))
    assert other_evaluation_set(epath.Path(tmp_path), record, unit="images") == (
        "the run was evaluated on other data: 12 images -> as many, some with other "
        f"contents (folder:{folder}, split 'val' -> folder:{folder}, split 'train')"
    )
