"""Overlaps are exact counts, and the metrics made of them are mmsegmentation's."""

import jax.numpy as jnp
import numpy as np
import pytest

from focalnet_jax.evaluators import Overlap
from focalnet_jax.evaluators.overlap import areas_of, by_class, metrics_of

NAMES = ("sea", "land", "lake", "ice", "cloud")


def draw_maps(count=11, seed=0):
    """Labels with ignored pixels, and predictions that are often right.

    The fourth class is labelled nowhere, and the last is not predicted, either.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(NAMES) - 2, (count, 13, 17))
    predicted = rng.integers(0, len(NAMES) - 1, labels.shape)
    predicted = np.where(rng.random(labels.shape) < 0.6, labels, predicted)
    labels = np.where(rng.random(labels.shape) < 0.1, 255, labels)
    return labels.astype(np.uint8), predicted.astype(np.int32)


def batches_of(labels, predicted, size=4):
    """The last batch is filled up with rows of which no pixel may count."""
    for start in range(0, len(labels), size):
        rows = slice(start, start + size)
        missing = size - len(labels[rows])
        fill = [(0, missing), (0, 0), (0, 0)]
        yield {
            "label": jnp.asarray(np.pad(labels[rows], fill)),
            "given": jnp.asarray(np.pad(predicted[rows], fill)),
            "mask": jnp.arange(size) < size - missing,
            "id": jnp.arange(start, start + size),
        }


def evaluator_of(labels, predicted, **options):
    return Overlap(
        lambda _, batch: batch["given"],
        lambda: batches_of(labels, predicted),
        class_names=NAMES,
        ignored=255,
        **options,
    )


def test_metrics_are_those_of_mmsegmentation(mmseg):
    """To the last digit that they show, and by class to the last bit of theirs."""
    from mmseg.evaluation import IoUMetric

    torch = pytest.importorskip("torch")
    labels, predicted = draw_maps()
    given = dict(evaluator_of(labels, predicted).run(None))
    metric = IoUMetric()
    metric.dataset_meta = {"classes": NAMES}
    metric.process(
        {},
        [
            {
                "pred_sem_seg": {"data": torch.tensor(prediction)[None]},
                "gt_sem_seg": {"data": torch.tensor(label)[None]},
            }
            for prediction, label in zip(predicted, labels)
        ],
    )
    expected = metric.compute_metrics(metric.results)
    assert given.pop("test/examples") == len(labels)
    shown = {name: np.round(100 * value, 2) for name, value in given.items()}
    assert shown == {
        # They are float32 there, rounded to two digits.
        "test/miou": pytest.approx(expected["mIoU"], rel=1e-6),
        "test/macc": pytest.approx(expected["mAcc"], rel=1e-6),
        "test/aacc": pytest.approx(expected["aAcc"], rel=1e-6),
    }
    intersection, union, _, labelled = (sum(parts) for parts in zip(*metric.results))
    areas = areas_of(
        jnp.asarray(predicted),
        jnp.asarray(labels),
        jnp.asarray(labels != 255),
        num_classes=len(NAMES),
    ).sum(0)
    for ours, theirs in zip(
        by_class(np.asarray(areas, np.int64)),
        (intersection / union, intersection / labelled),
    ):
        np.testing.assert_array_equal(ours.astype(np.float32), theirs.numpy())
    assert np.isnan(by_class(np.asarray(areas))[0]).tolist() == [False] * 4 + [True]
    assert np.isnan(by_class(np.asarray(areas))[1]).tolist() == [False] * 3 + [True] * 2


def test_by_hand():
    labels = np.array([[[0, 0, 1, 255]], [[1, 1, 2, 2]]], np.uint8)
    predicted = np.array([[[0, 1, 1, 1]], [[1, 0, 2, 1]]], np.int32)
    evaluator = evaluator_of(labels, predicted)
    assert evaluator.details() is None
    metrics = dict(evaluator.run(None, name="test_ema"))
    # Sea: 1 of 3 pixels; land: 2 of 5; lake: 1 of 2. The others are nowhere.
    assert metrics["test_ema/miou"] == pytest.approx((1 / 3 + 2 / 5 + 1 / 2) / 3)
    assert metrics["test_ema/macc"] == pytest.approx((1 / 2 + 2 / 3 + 1 / 2) / 3)
    assert metrics["test_ema/aacc"] == 4 / 7
    assert metrics["test_ema/examples"] == 2
    details = evaluator.details()
    assert details.text.splitlines() == [
        "class      IoU      Acc   pixels",
        "sea    33.33 %  50.00 %  28.57 %",
        "land   40.00 %  66.67 %  42.86 %",
        "lake   50.00 %  50.00 %  28.57 %",
        "ice          -        -   0.00 %",
        "cloud        -        -   0.00 %",
    ]
    assert details.files == {"test_ema_classes.txt": f"{details.text}\n".encode()}


def test_where_nothing_counts_there_is_only_the_count():
    labels = np.full((2, 3, 3), 255, np.uint8)
    evaluator = evaluator_of(labels, np.zeros((2, 3, 3), np.int32))
    assert dict(evaluator.run(None)) == {"test/examples": 2}


def test_large_areas_are_exact():
    """More pixels than float32 counts by ones, in several images of a batch."""
    labels = np.zeros((4, 1, 70_000), np.uint8)
    predicted = np.zeros(labels.shape, np.int32)
    predicted[3, 0, 69_999] = 1

    def many():
        for _ in range(61):
            yield from batches_of(labels, predicted)

    evaluator = Overlap(
        lambda _, batch: batch["given"], many, class_names=NAMES, ignored=255
    )
    metrics = dict(evaluator.run(None))
    total = 61 * 4 * 70_000
    assert total > 2**24
    assert metrics["test/aacc"] == (total - 61) / total


def test_pictures_are_of_the_records_that_are_asked_for():
    labels, predicted = draw_maps()
    drawn = []

    def draw(rows):
        drawn.extend(rows)
        return b"a picture"

    evaluator = evaluator_of(labels, predicted, shown=(9, 0, 6, 10), draw=draw)
    dict(evaluator.run(None))
    assert evaluator.details().files["test_examples.png"] == b"a picture"
    assert [int(row["id"]) for row in drawn] == [0, 6, 9, 10]
    for row in drawn:
        np.testing.assert_array_equal(row["label"], labels[row["id"]])
        np.testing.assert_array_equal(row["predicted"], predicted[row["id"]])


def test_metrics_of_areas_leave_absent_classes_out():
    areas = np.array([[4, 0, 0], [4, 2, 0], [6, 0, 0]])
    metrics = metrics_of(areas)
    assert metrics == {"miou": (4 / 6 + 0) / 2, "macc": 4 / 6, "aacc": 4 / 6}
