"""Batches of numpy arrays, by Grain, as a function of nothing but the step.

Global batch k is the same ordered array whatever the number of processes: each yields the
rows of it that its devices hold, and decodes only those.
"""

import dataclasses
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from focalnet_jax.data.bad_records import BadRecordError, BadRecords
from focalnet_jax.data.images.transforms import EvalTransform, TrainTransform
from focalnet_jax.data.sources.opening import Source, check_label
from focalnet_jax.errors import SetupError

Batch = dict[str, np.ndarray]

# Without end; Grain's own endless repetition overflows with batches of one row.
_EPOCHS = 1 << 31


def train_batches(
    source: Source,
    transform: TrainTransform,
    *,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    rows: Sequence[int] | None = None,
    num_classes: int | None = None,
    bad_records: BadRecords | None = None,
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
      rows: those of each global batch to yield; None for all.
      num_classes: labels from this number on are errors; None for any.
      bad_records: notes records that can't be decoded, in whose place the nearest good
        one after them in the source comes; None: the first one is an error.
      threads: that decode, in this process or in each worker.
      workers: processes that decode; 0 for none but this one.

    Yields:
      `image`, uint8 `[b, size, size, 3]`; `label`, int32 `[b]`; `id`, int64 `[b]`, the
      index of the record in `source`; where b is the number of `rows`.

    Raises:
      SetupError: a label outside of `[0, num_classes)` or one bad record too many, naming
        the record; or a worker that has died.
    """
    if bad_records is None:
        bad_records = BadRecords(source.describe)
    examples = (
        grain.MapDataset.range(len(source))
        .seed(seed)
        .shuffle()
        .repeat(_EPOCHS)
        .random_map(_LoadForTraining(source, transform, num_classes, bad_records.allowed))
    )
    batches = _batch(examples, batch_size, rows)[first_step:]
    return _iterate(batches, bad_records, threads=threads, workers=workers)


def eval_batches(
    source: Source,
    transform: EvalTransform,
    *,
    batch_size: int,
    rows: Sequence[int] | None = None,
    num_classes: int | None = None,
    bad_records: BadRecords | None = None,
    threads: int = 2,
    workers: int = 0,
) -> Iterator[Batch]:
    """Every record once, in order, in batches of one size.

    Args, yields and raises: as `train_batches`, and also `mask`, bool `[b]`, which is
    False in the rows that fill up the last batch and in those of bad records; these are
    blank. Sources with label sets give `labels`, bool `[b, classes]`, in place of
    `label`.
    """
    if bad_records is None:
        bad_records = BadRecords(source.describe)
    padded = -(-len(source) // batch_size) * batch_size
    examples = grain.MapDataset.range(padded).map(
        _LoadForEvaluation(source, transform, num_classes)
    )
    batches = _batch(examples, batch_size, rows)
    return _iterate(batches, bad_records, threads=threads, workers=workers)


def _batch(
    examples: grain.MapDataset, batch_size: int, rows: Sequence[int] | None
) -> grain.MapDataset:
    """The given rows of each of the global batches that `examples` make up."""
    rows = range(batch_size) if rows is None else rows
    if not all(0 <= row < batch_size for row in rows):
        raise ValueError(f"there are no rows {rows} in batches of {batch_size}")
    selection = _Rows(tuple(rows), batch_size, len(examples) // batch_size)
    selected = grain.MapDataset.select_from_datasets([examples], selection)
    return selected.batch(len(rows))


@dataclasses.dataclass(frozen=True)
class _Rows(grain.transforms.DatasetSelectionMap):
    rows: tuple[int, ...]
    batch_size: int
    num_batches: int

    def __len__(self) -> int:
        return self.num_batches * len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, int]:
        batch, row = divmod(index, len(self.rows))
        return 0, batch * self.batch_size + self.rows[row]


def _iterate(
    batches: grain.MapDataset, bad_records: BadRecords, *, threads: int, workers: int
) -> Iterator[Batch]:
    # An element is a whole batch, so one in advance for each thread is enough.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    dataset = batches.to_iter_dataset(options)
    if workers:
        # Grain's workers read absl flags, which only a program's main parses.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers), _prepare_worker
        )
    try:
        yield from _without_faults(iter(dataset), bad_records)
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):
            raise
        reason, *_ = str(error).split(". ")
        hint = "If memory ran out, a smaller data.workers or batch_size helps"
        if "exit code -7" in reason:  # SIGBUS
            hint = "Shared memory is too small: look at `df /dev/shm` (docker --shm-size)"
        raise SetupError(
            f"one of the {workers} input workers has died ({reason}). {hint}; the same "
            "command goes on from the newest checkpoint"
        ) from error
    finally:
        # Grain's iterators are cycles that hold a batch, whose shared memory would last
        # until the program's end.
        gc.collect()


def _without_faults(
    iterator: grain.DatasetIterator, bad_records: BadRecords
) -> Iterator[Batch]:
    try:
        for batch in iterator:
            for index, fault in _faults_in(batch):
                bad_records.add(index, fault)
            yield batch
    finally:
        iterator.close()  # or the workers' shared memory would outlive it


def _prepare_worker(worker: int, workers: int) -> None:
    """Has a worker end when the program is killed, which Grain's would outlive.

    And not by what reaches all processes of a terminal or of a job, Ctrl-C and the notice
    to end: the program ends it, and may want a few batches more before.
    """
    del worker, workers
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# Where a row of a batch says what was wrong with which record: enough for a path and a
# reason, since arrays have rows of one size. No text: nothing was.
_FAULT = np.dtype([("index", np.int64), ("text", "S232")])


def _faults_in(batch: Batch) -> Iterator[tuple[int, str]]:
    faults = batch.pop("fault")
    for row in np.flatnonzero(faults["text"]):
        yield int(faults["index"][row]), faults["text"][row].decode(errors="replace")


@dataclasses.dataclass(frozen=True)
class _LoadForTraining(grain.transforms.RandomMap):
    source: Source
    transform: TrainTransform
    num_classes: int | None
    allowed: int

    def random_map(self, index: int, rng: np.random.Generator) -> Batch:
        fault = np.zeros((), _FAULT)
        # Of so many different records one is good, or there are too many bad ones.
        for attempt in range(min(self.allowed + 1, len(self.source))):
            good = (index + attempt) % len(self.source)
            try:
                image, label = _read(self.source, good, self.transform, rng)
                break
            except BadRecordError as error:
                # The first of a row of them is enough: each will have its own turn.
                if not attempt:
                    fault[()] = _fault(index, error)
        else:
            text = fault["text"].item().decode(errors="replace")
            others = f", as are the {attempt} after it" if attempt else ""
            raise SetupError(
                f"{self.source.describe(index)} is unusable: {text}{others}\nThat makes "
                f"{attempt + 1}, and data.max_bad_records={self.allowed} are allowed. "
                "Mend the record, or raise that number to have as many skipped"
            )
        example = _example(self.source, good, image, label, self.num_classes)
        return example | {"fault": fault}


@dataclasses.dataclass(frozen=True)
class _LoadForEvaluation(grain.transforms.Map):
    source: Source
    transform: EvalTransform
    num_classes: int | None

    def map(self, index: int) -> Batch:
        fault = np.zeros((), _FAULT)
        size = self.transform.size
        image, label = np.zeros((size, size, 3), np.uint8), None
        if index < len(self.source):
            try:
                image, label = _read(self.source, index, self.transform)
            except BadRecordError as error:
                fault[()] = _fault(index, error)
        example = _example(self.source, index, image, label, self.num_classes)
        return example | {"mask": np.bool_(label is not None), "fault": fault}


def _read(source: Source, index: int, transform, *rng) -> tuple[np.ndarray, Any]:
    encoded, label = source.read(index)
    try:
        return transform(encoded, *rng), label
    except BadRecordError:
        raise
    except Exception as error:
        # Of a kind that can travel from a worker: others would be waited for in vain.
        raise RuntimeError(
            f"{source.describe(index)}: {type(error).__name__}: {error}"
        ) from error


def _fault(index: int, error: BadRecordError) -> tuple[int, bytes]:
    return index, (str(error) or "unknown").encode()[: _FAULT["text"].itemsize]


def _example(source: Source, index: int, image: np.ndarray, label, num_classes) -> Batch:
    """A row of a batch; without a label, None, one that doesn't count."""
    example = {"image": image, "id": np.int64(index)}
    if source.has_label_sets:
        labels = np.zeros(source.num_classes, bool)
        for each in () if label is None else label:
            check_label(source, index, each, num_classes=source.num_classes)
            labels[each] = True
        return example | {"labels": labels}
    if label is not None:
        check_label(source, index, label, num_classes=num_classes)
    return example | {"label": np.int32(label or 0)}
