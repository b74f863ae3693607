"""Batches of numpy arrays, by Grain, as a function of nothing but the step.

Global batch k is the same ordered array whatever the number of processes: process p of
n yields rows `[p * B / n, (p + 1) * B / n)` of it and decodes only those.
"""

import dataclasses
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from focalnet_jax.data.sources import Source, check_label
from focalnet_jax.data.transforms import EvalTransform, TrainTransform

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Shard:
    """Which part of every global batch a process loads: `index` of `count`."""

    index: int = 0
    count: int = 1

    def rows(self, batch_size: int) -> int:
        """The number of rows of a global batch that fall to one shard."""
        if batch_size % self.count:
            raise ValueError(f"{batch_size} rows don't divide over {self.count} shards")
        return batch_size // self.count


def train_batches(
    source: Source,
    transform: TrainTransform,
    *,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    shard: Shard = Shard(),
    num_classes: int | None = None,
    threads: int = 2,
    workers: int = 0,
) -> Iterator[Batch]:
    """Endless shuffled batches, from that of `first_step` on.

    Step k holds the examples k * B to (k + 1) * B - 1 of an endless sequence of epochs,
    each all records in an order of its own. So batches run across epoch boundaries, and
    no example is dropped. Threads and workers change nothing but speed.

    Args:
      source: the records.
      transform: gets a random generator that depends on `seed` and the example's
        position in the sequence alone.
      batch_size: global number of rows, B.
      seed: of order and augmentation.
      first_step: where to start.
      shard: the part of each batch to yield.
      num_classes: labels from this number on are errors; None for any.
      threads: that decode, in this process or in each worker.
      workers: processes that decode; 0 for none but this one.

    Yields:
      `image`, uint8 `[b, size, size, 3]`; `label`, int32 `[b]`; `id`, int64 `[b]`, the
      index of the record in `source`; where b is the shard's number of rows.

    Raises:
      SetupError: a label outside of `[0, num_classes)`, naming the record.
    """
    batches = (
        grain.MapDataset.range(len(source))
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(_LoadForTraining(source, transform, num_classes))
        .batch(shard.rows(batch_size))[shard.index :: shard.count][first_step:]
    )
    return _iterate(batches, threads=threads, workers=workers)


def eval_batches(
    source: Source,
    transform: EvalTransform,
    *,
    batch_size: int,
    shard: Shard = Shard(),
    num_classes: int | None = None,
    threads: int = 2,
    workers: int = 0,
) -> Iterator[Batch]:
    """Every record once, in order, in batches of one size.

    Args, yields and raises: as `train_batches`, and also `mask`, bool `[b]`, which is
    False in the rows that fill up the last batch.
    """
    padded = -(-len(source) // batch_size) * batch_size
    batches = (
        grain.MapDataset.range(padded)
        .map(_LoadForEvaluation(source, transform, num_classes))
        .batch(shard.rows(batch_size))[shard.index :: shard.count]
    )
    return _iterate(batches, threads=threads, workers=workers)


def _iterate(batches: grain.MapDataset, *, threads: int, workers: int) -> Iterator[Batch]:
    # An element is a whole batch, so a few in advance are enough.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    dataset = batches.to_iter_dataset(options)
    if not workers:
        yield from dataset
        return
    # Grain's workers read absl flags, which only a program's main parses.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()  # or its shared memory would outlive it


@dataclasses.dataclass(frozen=True)
class _LoadForTraining(grain.transforms.RandomMap):
    source: Source
    transform: TrainTransform
    num_classes: int | None

    def random_map(self, index: int, rng: np.random.Generator) -> Batch:
        record = self.source.records[index]
        image = self.transform(record["image"], rng)
        return _example(self.source, index, image, record["label"], self.num_classes)


@dataclasses.dataclass(frozen=True)
class _LoadForEvaluation(grain.transforms.Map):
    source: Source
    transform: EvalTransform
    num_classes: int | None

    def map(self, index: int) -> Batch:
        is_real = index < len(self.source)
        index = min(index, len(self.source) - 1)
        record = self.source.records[index]
        image = self.transform(record["image"])
        example = _example(self.source, index, image, record["label"], self.num_classes)
        return example | {"mask": np.bool_(is_real)}


def _example(source: Source, index, image, label, num_classes) -> Batch:
    check_label(source.name, index, label, num_classes=num_classes)
    return {"image": image, "label": np.int32(label), "id": np.int64(index)}
