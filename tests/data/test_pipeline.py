"""Batches are a function of the step alone: processes, threads, workers, restarts."""

import itertools

import numpy as np
import pytest

from focalnet_jax.data import (
    BadRecordError,
    BadRecords,
    EvalRows,
    EvalTransform,
    TrainTransform,
    eval_batches,
    eval_batches_of,
    open_source,
    train_batches,
)
from focalnet_jax.errors import SetupError
from focalnet_jax.tasks.examples import EvalExample, TrainExample

BATCH_SIZE = 60


@pytest.fixture(scope="module")
def source(data_dir):
    return open_source("digits", split="train[:400]", data_dir=data_dir)


def take(source, count, num_classes=None, **options):
    example = TrainExample(TrainTransform(8), source.labels(num_classes))
    batches = train_batches(
        source, example, **{"batch_size": BATCH_SIZE, "seed": 0} | options
    )
    return list(itertools.islice(batches, count))


def assert_same(given, expected):
    assert len(given) == len(expected)
    for a, b in zip(given, expected):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_shapes_and_types(source):
    (batch,) = take(source, 1)
    types = {name: (value.shape, value.dtype) for name, value in batch.items()}
    assert types == {
        "image": ((60, 8, 8, 3), np.uint8),
        "label": ((60,), np.int32),
        "id": ((60,), np.int64),
    }


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_processes_hold_rows_of_the_global_batch(source, processes):
    """Any rows, such as those of neighbours in a network: here dealt out like cards."""
    whole = take(source, 15)
    for index in range(processes):
        rows = range(60)[index::processes]
        part = take(source, 10, first_step=5, rows=rows)
        expected = [{name: a[rows] for name, a in step.items()} for step in whole[5:]]
        assert_same(part, expected)


def test_epochs_follow_each_other_without_a_gap(source):
    ids = np.concatenate([batch["id"] for batch in take(source, 20)])
    epochs = ids.reshape(3, 400)  # 20 batches of 60
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(400))
    assert not (epochs[0] == epochs[1]).all()
    assert not (epochs[0] == np.arange(400)).all()


def test_each_epoch_augments_anew_and_seeds_differ(source):
    batches = take(source, 20)
    images = {}
    for batch in batches:
        for index, image in zip(batch["id"], batch["image"]):
            images.setdefault(index, []).append(image)
    repeated = [len(np.unique(np.array(three), axis=0)) for three in images.values()]
    assert np.mean(repeated) > 2.9
    other = take(source, 1, seed=1)
    assert not (other[0]["id"] == batches[0]["id"]).all()


@pytest.mark.parametrize("options", [{"threads": 4}, {"workers": 2}])
def test_threads_and_workers_change_nothing(source, options):
    assert_same(take(source, 6, first_step=3, **options), take(source, 9)[3:])


def test_a_late_step_is_reached_at_once(source):
    (batch,) = take(source, 1, first_step=1_000_000)
    assert batch["id"].shape == (60,)


def test_batches_of_one_row(source):
    ids = [batch["id"].item() for batch in take(source, 400, batch_size=1)]
    assert sorted(ids) == [*range(400)]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_evaluation_sees_every_example_once(source, processes):
    batches = [
        batch
        for index in range(processes)
        for batch in eval_batches(
            source,
            EvalExample(EvalTransform(8), source.labels()),
            batch_size=120,
            rows=range(120)[index::processes],
        )
    ]
    assert all(batch["image"].shape[0] == 120 // processes for batch in batches)
    ids = np.concatenate([batch["id"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(np.sort(ids), np.arange(400))
    padding = sum((~batch["mask"]).sum() for batch in batches)
    assert padding == 80


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.extended)])
def test_groups_have_batches_of_their_own_shapes(source, workers):
    """One after the other, each record once, whatever the number of processes."""
    indices = [[7, 3, 399, 0, 12], [*range(20, 28)], [5]]
    sizes, batch_sizes = [8, 16, 12], [4, 8, 2]

    def batches_of(index, processes):
        groups = [
            EvalRows(
                group,
                EvalExample(EvalTransform(size), source.labels()),
                batch_size,
                range(batch_size)[index::processes],
            )
            for group, size, batch_size in zip(indices, sizes, batch_sizes)
        ]
        return [*eval_batches_of(source, groups, workers=workers)]

    whole = batches_of(0, 1)
    assert [b["image"].shape[:2] for b in whole] == [(4, 8), (4, 8), (8, 16), (2, 12)]
    ids = np.concatenate([batch["id"][batch["mask"]] for batch in whole])
    assert ids.tolist() == [index for group in indices for index in group]
    padded = np.concatenate([batch["id"][~batch["mask"]] for batch in whole])
    assert (padded >= len(source)).all()
    for batch in whole:
        for index, label in zip(batch["id"][batch["mask"]], batch["label"]):
            assert label == source.read(index)["label"]
    for part in range(2):
        rows = [{name: a[part::2] for name, a in batch.items()} for batch in whole]
        assert_same(batches_of(part, 2), rows)


def test_a_bad_record_of_a_group_leaves_a_blank_row(source):
    def make(record):
        if record is not None and record["label"] == label:
            raise BadRecordError("it is odd")
        return {"image": np.zeros(3)}

    label = source.read(7)["label"]
    group = EvalRows([7, 6], make, 4)
    bad_records = BadRecords(source.describe, allowed=1)
    (batch,) = eval_batches_of(source, [group], bad_records=bad_records)
    assert batch["mask"].tolist() == [False, True, False, False]
    assert [*bad_records] == [7]


def test_labels_that_do_not_fit_name_their_record(source):
    with pytest.raises(SetupError, match=r"record \d+ of digits.* has label \d"):
        take(source, 1, num_classes=5)


def test_rows_must_be_there(source):
    with pytest.raises(ValueError, match=r"no rows \[0, 60\] in batches of 60"):
        take(source, 1, rows=[0, 60])
