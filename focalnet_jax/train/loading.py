"""A run's data, from the configuration to batches on the devices."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from focalnet_jax.data import (
    BadRecords,
    Batch,
    EvalTransform,
    Source,
    eval_batches,
    open_source,
    train_batches,
)
from focalnet_jax.train import sharding
from focalnet_jax.train.config import train_transform_of
from focalnet_jax.train.feed import DeviceFeed


def open_split(config: ConfigDict, split: str) -> Source:
    """A split of the data set that the config names.

    Raises:
      SetupError: it isn't there, or isn't whole.
    """
    return open_source(
        config.data.name,
        split=split,
        data_dir=config.data.data_dir,
        classes=config.data.classes,
    )


def bad_records_of(config: ConfigDict, source: Source) -> BadRecords:
    """A place to note them, and how many are allowed."""
    return BadRecords(source.describe, allowed=config.data.max_bad_records)


def train_feed(
    config: ConfigDict,
    source: Source,
    mesh: Mesh,
    *,
    first_step: int,
    bad_records: BadRecords,
) -> DeviceFeed:
    """Batches to train on, from that of `first_step` on, sent ahead of need."""
    batches = train_batches(
        source,
        train_transform_of(config),
        batch_size=config.batch_size,
        seed=config.seed,
        first_step=first_step,
        bad_records=bad_records,
        **_loading(config, mesh),
    )
    return DeviceFeed(batches, _to_device(config, mesh))


def evaluation_batches(
    config: ConfigDict, source: Source, mesh: Mesh, *, bad_records: BadRecords
) -> Iterator[dict[str, jax.Array]]:
    """Every record once, in order."""
    transform = EvalTransform(
        config.data.image_size,
        crop=config.data.eval_crop,
        interpolation=config.data.eval_interpolation,
    )
    batches = eval_batches(
        source,
        transform,
        batch_size=config.batch_size,
        bad_records=bad_records,
        **_loading(config, mesh),
    )
    return map(_to_device(config, mesh), batches)


def _loading(config: ConfigDict, mesh: Mesh) -> dict[str, Any]:
    return dict(
        rows=sharding.process_rows(mesh, config.batch_size),
        num_classes=config.model.num_classes,
        threads=config.data.threads,
        workers=config.data.workers,
    )


def _to_device(config: ConfigDict, mesh: Mesh) -> Callable[[Batch], dict[str, jax.Array]]:
    return functools.partial(sharding.to_device, mesh=mesh, batch_size=config.batch_size)


def count_bad_records(name: str, bad_records: BadRecords) -> dict[str, int]:
    """The number of bad records that were met by any process, where some are allowed."""
    if not bad_records.allowed:
        return {}
    met = np.full(bad_records.allowed, -1, np.int32)
    indices = [*bad_records][: len(met)]  # the feed may be adding one too many
    met[: len(indices)] = indices
    all_met = np.unique(multihost_utils.process_allgather(met))
    return {f"{name}/bad_records": int((all_met >= 0).sum())}
