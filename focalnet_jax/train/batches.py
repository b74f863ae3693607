"""A run's data, from records on the host to batches on the devices."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from focalnet_jax.data import (
    BadRecordError,
    BadRecords,
    EvalRows,
    Records,
    WrongRecordError,
    eval_batches_of,
    train_batches,
)
from focalnet_jax.errors import SetupError, argument
from focalnet_jax.tasks.base import Batch, Group, Predicts, Split, Task
from focalnet_jax.train import sharding
from focalnet_jax.train.feed import DeviceFeed


def bad_records_of(config: ConfigDict, source: Records) -> BadRecords:
    """Notes bad records of a source, as many as the config allows."""
    return BadRecords(source.describe, allowed=config.data.max_bad_records)


def check_train_split(config: ConfigDict, task: Task, split: Split) -> None:
    """Looks whether a split can be trained on as the config says.

    Raises:
      SetupError: it has too few examples, or another number than is expected.
      ValueError: the task contradicts itself.
    """
    source = split.source
    expected = config.data.num_train_examples
    if expected is not None and expected != len(source):
        raise SetupError(
            f"{argument('num_train_examples')}={expected}, but {source.name} has "
            f"{len(source)}: if that is right, set it so"
        )
    if config.batch_size > len(source):
        raise SetupError(
            f"batch_size={config.batch_size} is more than the {len(source):,} examples "
            f"of {source.name}: a step would see some of them twice"
        )
    _check_example(task, split)


def _check_example(task: Task, split: Split) -> None:
    """Compares the first example with the arrays that the task says a batch has.

    Raises:
      ValueError: they differ, so that the task contradicts itself.
    """
    try:
        example = split.example(split.source.read(0), np.random.default_rng(0))
    except (BadRecordError, WrongRecordError):
        return  # The pipeline says of which record, when it comes to it.
    given = {name: (np.shape(a), np.asarray(a).dtype) for name, a in example.items()}
    declared = {name: (a.shape, np.dtype(a.dtype)) for name, a in task.batch.items()}
    if given != declared:
        raise ValueError(
            f"the task {task.name!r} says that the arrays of an example are {declared}, "
            f"and makes {given} of {split.source.describe(0)}"
        )


def train_feed(
    config: ConfigDict,
    task: Task,
    split: Split,
    mesh: Mesh,
    *,
    first_step: int,
    bad_records: BadRecords,
) -> DeviceFeed:
    """Batches to train on, from that of `first_step` on, sent ahead of need."""
    batches = train_batches(
        split.source,
        split.example,
        batch_size=config.batch_size,
        seed=config.seed,
        first_step=first_step,
        bad_records=bad_records,
        rows=sharding.process_rows(mesh, config.batch_size),
        **_loading(config),
    )
    return DeviceFeed(batches, _to_device(task, mesh, config.batch_size))


def evaluation_batches(
    config: ConfigDict,
    task: Predicts,
    split: Split,
    mesh: Mesh,
    *,
    bad_records: BadRecords,
) -> Iterator[Batch]:
    """Every record once, in order, or group by group."""
    whole = Group(range(len(split.source)), split.example)
    groups = []
    for indices, example in split.groups or (whole,):
        batch_size = eval_batch_size(config, len(indices), mesh)
        rows = sharding.process_rows(mesh, batch_size)
        groups.append(EvalRows(indices, example, batch_size, rows))
    batches = eval_batches_of(
        split.source, groups, bad_records=bad_records, **_loading(config)
    )
    with contextlib.closing(batches):
        for group in groups:
            to_device = _to_device(task, mesh, group.batch_size)
            yield from map(to_device, itertools.islice(batches, group.num_batches))


def eval_batch_size(config: ConfigDict, num_examples: int, mesh: Mesh) -> int:
    """That of training, but no more than so many examples fill on these devices."""
    devices = mesh.size // mesh.shape["spatial"]
    return min(config.batch_size, -(-num_examples // devices) * devices)


def _loading(config: ConfigDict) -> dict[str, Any]:
    return dict(threads=config.data.threads, workers=config.data.workers)


def _to_device(
    task: Predicts, mesh: Mesh, batch_size: int
) -> Callable[[dict[str, np.ndarray]], dict[str, jax.Array]]:
    return functools.partial(
        sharding.to_device, arrays=task.batch, mesh=mesh, batch_size=batch_size
    )


def count_bad_records(name: str, bad_records: BadRecords) -> dict[str, int]:
    """The number of bad records that any process has met, where some are allowed."""
    if not bad_records.allowed:
        return {}
    met = np.full(bad_records.allowed, -1, np.int32)
    indices = [*bad_records][: len(met)]  # The feed may be adding one too many.
    met[: len(indices)] = indices
    all_met = np.unique(multihost_utils.process_allgather(met))
    return {f"{name}/bad_records": int((all_met >= 0).sum())}
