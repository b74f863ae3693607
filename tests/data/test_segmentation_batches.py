"""Batches of images with labels: order, resumption, workers and bad records."""

import itertools

import numpy as np
import pytest
from mask_files import ade, encode, image_of, mask_of

from focalnet_jax.data import (
    BadRecords,
    TrainSegmentationTransform,
    eval_batches,
    open_segmentation,
    train_batches,
)
from focalnet_jax.errors import SetupError
from focalnet_jax.tasks.segmentation_examples import EvalSegmentation, TrainSegmentation

# How each file is spoilt, and what is said of it.
SPOILT = {
    "annotations/training/ADE_000.png": (
        encode(mask_of("x", (21, 30), indices=(0, 1))),
        "its mask has 30 x 21 pixels, but the image 30 x 20",
    ),
    "annotations/training/ADE_001.png": (
        encode(np.full((21, 30), 4, np.uint8)),
        "its mask has the index 4 at 630 pixels, which is no class",
    ),
    "annotations/training/ADE_002.png": (
        encode(image_of("x", (22, 30))),
        "its mask has 3 channels",
    ),
    "annotations/training/ADE_003.png": (
        encode(mask_of("x", (23, 30), indices=(0, 1)), "JPEG"),
        "its mask is a JPEG",
    ),
    "annotations/training/ADE_004.png": (None, "there is no mask for the image"),
    "images/training/ADE_005.jpg": (b"no image", "8 bytes that are no image"),
    "images/training/ADE_006.jpg": (b"", "its image has zero bytes"),
}


@pytest.fixture
def folder(tmp_path):
    return ade(tmp_path, [("training", 12), ("validation", 5)])


def open_folder(folder, split="train", **options):
    options = dict(reduce_zero_label=True) | options
    return open_segmentation(f"folder:{folder}", split=split, **options)


def take(source, count, **options):
    transform = TrainSegmentationTransform(16, scale=(64, 24))
    example = TrainSegmentation(transform, source.mask_labels(3))
    batches = train_batches(source, example, **dict(batch_size=4, seed=0) | options)
    return [*itertools.islice(batches, count)]


def assert_same(given, expected):
    assert len(given) == len(expected)
    for a, b in zip(given, expected):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_batches_depend_on_the_step_alone(folder):
    source = open_folder(folder)
    whole = take(source, 6)
    shapes = {name: (array.shape, array.dtype) for name, array in whole[0].items()}
    assert shapes == {
        "image": ((4, 16, 16, 3), np.uint8),
        "label": ((4, 16, 16), np.uint8),
        "valid": ((4, 2), np.int32),
        "id": ((4,), np.int64),
    }
    ids = np.concatenate([batch["id"] for batch in whole]).reshape(2, 12)
    np.testing.assert_array_equal(np.sort(ids), [np.arange(12)] * 2)
    assert_same(take(source, 2, first_step=4), whole[4:])
    rows = [1, 3]
    part = [{name: array[rows] for name, array in batch.items()} for batch in whole]
    assert_same(take(source, 6, rows=rows, threads=3), part)
    assert_same(take(source, 6, workers=1), whole)


def test_evaluation_has_every_record_once(folder):
    source = open_folder(folder, "validation")
    labels = source.mask_labels(3)
    example = EvalSegmentation(labels, (64, 24), (32, 64), (32, 32))
    [first, second] = eval_batches(source, example, batch_size=3)
    assert first["mask"].all()
    assert second["mask"].tolist() == [True, True, False]
    assert second["id"][:2].tolist() == [3, 4]
    assert first["size"].tolist() == [[20, 30], [21, 30], [22, 30]]
    expected = labels.read(source.read(4))
    np.testing.assert_array_equal(second["label"][1, :24, :30], expected)
    assert (second["label"][2] == 255).all()


@pytest.mark.parametrize("path", SPOILT)
def test_a_bad_record_is_named_with_its_files(folder, path):
    content, reason = SPOILT[path]
    if content is None:
        (folder / path).unlink()
    else:
        (folder / path).write_bytes(content)
    source = open_folder(folder, max_bad_records=1)
    with pytest.raises(SetupError) as error:
        take(source, 3)
    message = str(error.value)
    image = path.replace("annotations", "images").replace(".png", ".jpg")
    assert image in message
    if content is not None:
        assert image.replace("images", "annotations").replace(".jpg", ".png") in message
    assert f"is unusable: {reason}" in message.replace("it can't be read: ", "")
    assert "max_bad_records=0 allows" in message


def test_bad_records_are_skipped_within_their_budget(folder):
    for path, (content, _) in SPOILT.items():
        if content is None:
            (folder / path).unlink()
        else:
            (folder / path).write_bytes(content)
    source = open_folder(folder, max_bad_records=len(SPOILT))
    bad = BadRecords(source.describe, allowed=len(SPOILT))
    ids = np.concatenate([b["id"] for b in take(source, 6, bad_records=bad)])
    assert sorted(bad) == [*range(7)]
    assert {*ids} == {*range(7, 12)}
    example = EvalSegmentation(source.mask_labels(3), (64, 24), (64, 64), (32, 32))
    bad = BadRecords(source.describe, allowed=len(SPOILT))
    batches = [*eval_batches(source, example, batch_size=4, bad_records=bad)]
    counts = np.concatenate([batch["mask"] for batch in batches])
    assert counts.tolist() == [False] * 7 + [True] * 5
    few = BadRecords(source.describe, allowed=len(SPOILT) - 1)
    with pytest.raises(SetupError, match="That makes 7, more than max_bad_records=6"):
        [*eval_batches(source, example, batch_size=4, bad_records=few)]
