"""What lies in a folder, and which image is for training and which for testing."""

import collections
import os
import pathlib
import shutil

import pytest

from focalnet_jax.errors import SetupError
from focalnet_jax.finetune.folder import (
    Image,
    Inspection,
    inspect_images,
    list_images,
)
from focalnet_jax.finetune.split import make_split


def split_of(root, *, test_share=0.2, seed=0):
    images = list_images(root).images
    inspection = inspect_images(root, images)
    return make_split(images, inspection, test_share=test_share, seed=seed)


def counts_of(split):
    """By class, how many images are in each split."""
    counts = collections.defaultdict(dict)
    for row in split.rows:
        of_class = counts[row.class_name]
        of_class[row.split] = of_class.get(row.split, 0) + 1
    return dict(counts)


def test_each_class_gives_its_share_for_testing(make_folder):
    root = make_folder({"a": 20, "b": 7, "c": 3, "d": 2})
    split = split_of(root)
    assert counts_of(split) == {
        "a": {"train": 16, "test": 4},
        "b": {"train": 6, "test": 1},
        "c": {"train": 2, "test": 1},
        "d": {"train": 1, "test": 1},
    }
    assert split.classes == ["a", "b", "c", "d"]
    assert (split.chooses, split.tests) == ("test", "test")
    assert split_of(root) == split
    assert split_of(root, seed=1).rows != split.rows
    assert counts_of(split_of(root, test_share=0.9))["b"] == {"train": 1, "test": 6}


@pytest.mark.parametrize("test_share", [0.01, 0.2, 0.5, 0.9])
def test_an_added_image_moves_one_other_at_most(test_share):
    """And its original, if it is a copy."""

    def splits_of(digests):
        images = [Image(file, file[0], None) for file in sorted(digests)]
        inspection = Inspection({}, digests)
        split = make_split(images, inspection, test_share=test_share, seed=0)
        return {row.file: row.split for row in split.rows}

    moves = set()
    digests = {"a/0": "a/0", "a/1": "a/1", "b/0": "b/0", "b/1": "b/1"}
    for number in range(2, 60):
        before = splits_of(digests)
        original = f"a/{number // 2}" if number % 5 == 0 else None
        digests[f"a/{number}"] = original or f"a/{number}"
        after = splits_of(digests)
        moved = {file for file in before if before[file] != after[file]}
        moves.add(len(moved - {original}))
        assert before["b/0"] == after["b/0"]
    assert moves == {0, 1}


def test_a_single_image_is_trained_on_and_said(make_folder):
    split = split_of(make_folder({"a": 5, "b": 1}))
    assert counts_of(split)["b"] == {"train": 1}
    assert "no image of the class 'b' is for testing" in split.remarks
    with pytest.raises(SetupError, match="nothing to test with: each class has a single"):
        split_of(make_folder({"a": 1, "b": 1}, place="other"))


def test_broken_images_are_named_and_left_out(make_folder):
    root = make_folder({"a": 5, "b": 5})
    whole = (root / "a/0.png").read_bytes()
    (root / "a/1.png").write_bytes(b"")
    (root / "a/2.png").write_bytes(whole[: len(whole) // 2])
    (root / "b/0.png").write_text("no image")
    split = split_of(root)
    left_out = {row.file: row.note for row in split.rows if not row.split}
    assert left_out.keys() == {"a/1.png", "a/2.png", "b/0.png"}
    assert left_out["a/1.png"] == "zero bytes"
    assert left_out["b/0.png"] == "8 bytes that are no image"
    assert split.remarks[0].splitlines()[:2] == [
        "left out, since they can't be read: 3 images",
        "  a/1.png: zero bytes",
    ]
    assert counts_of(split)["a"] == {"train": 2, "test": 1, "": 2}
    for name in ("1", "2", "3", "4"):
        (root / f"b/{name}.png").write_text("no image")
    with pytest.raises(SetupError, match="no image of the class 'b' can be read"):
        split_of(root)


def test_what_may_not_be_read_is_left_out(make_folder, monkeypatch):
    root = make_folder({"a": 3, "b": 3})
    read = pathlib.Path.read_bytes

    def refuse(path):  # Tests may run as a user who may read all.
        if path.match("a/0.png"):
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(pathlib.Path, "read_bytes", refuse)
    assert split_of(root).rows[0].note == "Permission denied"


def test_copies_are_for_training_alone(make_folder):
    root = make_folder({"a": 6, "b": 6})
    shutil.copy(root / "a/0.png", root / "a/copy.png")
    shutil.copy(root / "a/1.png", root / "b/other class.png")
    copies = {"a/0.png", "a/copy.png", "a/1.png", "b/other class.png"}
    for seed in range(5):
        split = split_of(root, test_share=0.9, seed=seed)
        tested = {row.file for row in split.rows if row.split == "test"}
        assert tested
        assert not tested & copies
    assert "4 images are there several times" in split.remarks[0]
    assert (
        "the same image is in two classes: 'a/1.png' and 'b/other class.png'"
        in split.remarks
    )


def test_splits_that_are_there_stay(make_folder):
    make_folder({"a": 4, "b": 3}, place="photos/Training")
    make_folder({"a": 2, "b": 1}, place="photos/val")
    root = make_folder({"a": 1}, place="photos/test").parent
    make_folder({"x": 1}, place="photos/notes")
    contents = list_images(root)
    assert contents.remarks == (f"no splits, and left out of {root}: 'notes'",)
    split = split_of(root)
    assert counts_of(split) == {
        "a": {"train": 4, "val": 2, "test": 1},
        "b": {"train": 3, "val": 1},
    }
    assert (split.chooses, split.tests) == ("val", "test")
    # The images of each split were made with the same seeds.
    assert "are in several splits, such as 'Training/a/0.png' and " in split.remarks[0]
    shutil.rmtree(root / "test")
    assert (split_of(root).chooses, split_of(root).tests) == ("val", "val")


def test_a_split_for_training_alone_is_divided(make_folder):
    make_folder({"a": 4, "b": 3}, place="photos/train")
    split = split_of(make_folder({}, place="photos"))
    assert counts_of(split)["a"] == {"train": 3, "test": 1}
    assert {row.file[:6] for row in split.rows} == {"train/"}


def test_a_class_that_is_only_tested_is_refused(make_folder):
    make_folder({"a": 2, "b": 2}, place="photos/train")
    root = make_folder({"a": 2, "c": 2}, place="photos/val").parent
    with pytest.raises(SetupError, match="no images to train on of the class 'c'"):
        split_of(root)


@pytest.mark.parametrize(
    ("directories", "message"),
    [
        ([], "there are no directories in .*CLASS/xxx.jpg"),
        (["a", "b"], "no images in 'a', 'b' of .*: complete these classes"),
        (["x/a", "x/b"], "one directory, 'x', which holds .*: .* give .*photos/x"),
        (["x/a", "x/b", "y/a", "y/b"], "(?s)for splits or for classes.*name them train"),
        (["train/a", "training/a"], "'train' and 'training' in .* both for training"),
        (["val/a", "test/a"], "the splits 'test', 'val', and none to train on"),
    ],
)
def test_what_is_no_folder_of_photographs_is_refused(make_folder, directories, message):
    root = make_folder({})
    root.mkdir()
    for name in directories:
        (root / name).mkdir(parents=True)
    with pytest.raises(SetupError, match=message):
        list_images(root)


def test_one_class_alone_is_refused(make_folder):
    with pytest.raises(SetupError, match="all images in .* are of one class, 'cat'"):
        list_images(make_folder({"cat": 5}))


def test_a_folder_that_is_not_there_is_told(make_folder):
    root = make_folder({"a": 1})
    with pytest.raises(
        SetupError, match=r"no directory .*photo; did you mean .*photos\?"
    ):
        list_images(root.parent / "photo")
    with pytest.raises(SetupError, match="0.png is a file: DIR is a directory"):
        list_images(root / "a" / "0.png")


def test_a_folder_that_may_not_be_listed_is_told(make_folder, monkeypatch):
    root = make_folder({"a": 1, "b": 1})
    scandir = os.scandir

    def refuse(path):
        if pathlib.Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SetupError, match="can't be listed: .*Permission denied: '.*b'"):
        list_images(root)
