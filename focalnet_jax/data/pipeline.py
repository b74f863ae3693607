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
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags

from focalnet_jax.data.bad_records import (
    BadRecordError,
    BadRecords,
    WrongRecordError,
    too_many,
)
from focalnet_jax.data.records import Records
from focalnet_jax.errors import SetupError, argument

Batch = dict[str, np.ndarray]
"""The arrays of a batch by name; the first axis of each is that of the rows."""
# Arrays by name, of one row.
Example = dict[str, Any]

# What the pipeline adds to the arrays of an example.
_OWN_NAMES = {"id", "mask", "fault"}

# The sequence of epochs has no end; Grain's own endless repetition overflows with
# batches of one row.
_EPOCHS = 1 << 31


class EvalRows(NamedTuple):
    """Records whose rows have arrays of one shape, so that they can share batches.

    Attributes:
      indices: of the records, in the order in which they come.
      make_example: makes a row's arrays of a record, and of None those of a blank row.
      batch_size: global number of rows.
      rows: those of each global batch to yield; None for all.
    """

    indices: Sequence[int]
    make_example: Callable[[Any], Example]
    batch_size: int
    rows: Sequence[int] | None = None

    @property
    def num_batches(self) -> int:
        return -(-len(self.indices) // self.batch_size)


def train_batches(
    source: Records,
    make_example: Callable[[Any, np.random.Generator], Example],
    *,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    rows: Sequence[int] | None = None,
    bad_records: BadRecords | None = None,
    threads: int = 2,
    workers: int = 0,
) -> Generator[Batch, None, None]:
    """Endless shuffled batches, from that of `first_step` on.

    Step k holds the examples k * B to (k + 1) * B - 1 of an endless sequence of epochs.
    An epoch is all records, in an order of its own. So batches run across the ends of
    epochs, and no example is dropped. Threads and workers change nothing but speed.

    Args:
      source: the records.
      make_example: makes a row's arrays of a record. Its random generator depends on
        `seed` and the example's position in the sequence alone. It is pickled for
        workers.
      batch_size: global number of rows, B.
      seed: of the order and of the random generators.
      first_step: where to start.
      rows: those of each global batch to yield; None for all.
      bad_records: notes records that can't be read, in whose place the nearest good one
        after them in the source comes; None makes the first one an error.
      threads: that make examples, in this process or in each worker.
      workers: processes that make examples; 0 for this process alone.

    Yields:
      the arrays of `make_example`, `[b, ...]`, and `id`, int64 `[b]`, the index of the
      record in `source`; b is the number of `rows`.

    Raises:
      SetupError: a record that `make_example` refuses, or one bad record too many, by its
        name; or a worker that has died.
    """
    if bad_records is None:
        bad_records = BadRecords(source.describe)
    examples = (
        grain.MapDataset.range(len(source))
        .seed(seed)
        .shuffle()
        .repeat(_EPOCHS)
        .random_map(_ForTraining(source, make_example, bad_records.allowed))
    )
    batches = _batch(examples, batch_size, rows)[first_step:]
    return _iterate(batches, bad_records, threads=threads, workers=workers)


def eval_batches(
    source: Records,
    make_example: Callable[[Any], Example],
    *,
    batch_size: int,
    rows: Sequence[int] | None = None,
    bad_records: BadRecords | None = None,
    threads: int = 2,
    workers: int = 0,
) -> Generator[Batch, None, None]:
    """Every record once, in order, in batches of one size.

    Args, yields and raises: as `train_batches`, and also `mask`, bool `[b]`. It is False
    in the rows that fill up the last batch and in those of bad records, which
    `make_example` makes of None.
    """
    group = EvalRows(range(len(source)), make_example, batch_size, rows)
    return eval_batches_of(
        source, [group], bad_records=bad_records, threads=threads, workers=workers
    )


def eval_batches_of(
    source: Records,
    groups: Sequence[EvalRows],
    *,
    bad_records: BadRecords | None = None,
    threads: int = 2,
    workers: int = 0,
) -> Generator[Batch, None, None]:
    """The records of one group after the other, each in batches of its own shape.

    Args:
      source: the records.
      groups: which of them, and how they become rows.
      bad_records: as for `train_batches`.
      threads: as for `train_batches`.
      workers: as for `train_batches`.

    Yields and raises: as `eval_batches`. The last batch of each group is filled up.
    """
    if bad_records is None:
        bad_records = BadRecords(source.describe)
    batches = []
    for group in groups:
        make = _ForEvaluation(source, group.make_example, group.indices)
        padded = group.num_batches * group.batch_size
        examples = grain.MapDataset.range(padded).map(make)
        batches.append(_batch(examples, group.batch_size, group.rows))
    # As one data set, so that workers start once and read ahead into the next group.
    joined = grain.MapDataset.concatenate(batches) if len(batches) > 1 else batches[0]
    return _iterate(joined, bad_records, threads=threads, workers=workers)


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
) -> Generator[Batch, None, None]:
    # An element is a whole batch, so that each thread needs only one in advance.
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
        hint = (
            f"If memory ran out, a smaller {argument('workers')} or "
            f"{argument('batch_size')} helps"
        )
        if "exit code -7" in reason:  # SIGBUS
            hint = "Shared memory is too small: look at `df /dev/shm` (docker --shm-size)"
        raise SetupError(
            f"one of the {workers} input workers has died ({reason}). {hint}; the same "
            "command goes on from the newest checkpoint"
        ) from error
    finally:
        # Grain's iterators are cycles of references that hold a batch. Without this, its
        # shared memory would last until the program ends.
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
        iterator.close()  # Otherwise the workers' shared memory would outlive it.


def _prepare_worker(worker: int, workers: int) -> None:
    """Ties a worker's life to that of the program.

    Grain's workers would outlive a program that is killed. And they would end by what
    reaches all processes of a terminal or of a job, such as Ctrl-C or SIGTERM, although
    the program may want a few more batches before it ends them.
    """
    del worker, workers
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)

    program = multiprocessing.parent_process()
    assert program is not None  # This is a worker.

    def watch():
        program.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# A row of a batch says here what was wrong with which record. Arrays have rows of one
# size, so the text is long enough for a path and a reason; it is empty for a good record.
_FAULT = np.dtype([("index", np.int64), ("text", "S232")])


def _faults_in(batch: Batch) -> Iterator[tuple[int, str]]:
    faults = batch.pop("fault")
    for row in np.flatnonzero(faults["text"]):
        yield int(faults["index"][row]), faults["text"][row].decode(errors="replace")


@dataclasses.dataclass(frozen=True)
class _ForTraining(grain.transforms.RandomMap):
    source: Records
    make_example: Callable[[Any, np.random.Generator], Example]
    allowed: int

    def random_map(self, index: int, rng: np.random.Generator) -> Example:
        fault = np.zeros((), _FAULT)
        # One of so many different records is good, or there are too many bad ones.
        for attempt in range(min(self.allowed + 1, len(self.source))):
            good = (index + attempt) % len(self.source)
            try:
                example = _make(self.source, good, self.make_example, rng)
                return example | {"id": np.int64(good), "fault": fault}
            except BadRecordError as error:
                # Of several in a row, the first is noted: the others have a turn of
                # their own.
                if not attempt:
                    fault[()] = _fault(index, error)
        text = fault["text"].item().decode(errors="replace")
        others = f", as are the {attempt} after it" if attempt else ""
        raise too_many(
            f"{self.source.describe(index)} is unusable: {text}{others}",
            count=attempt + 1,
            allowed=self.allowed,
        )


@dataclasses.dataclass(frozen=True)
class _ForEvaluation(grain.transforms.Map):
    source: Records
    make_example: Callable[[Any], Example]
    indices: Sequence[int]

    def map(self, position: int) -> Example:
        fault = np.zeros((), _FAULT)
        example = None
        beyond = position - len(self.indices)
        index = self.indices[position] if beyond < 0 else len(self.source) + beyond
        if beyond < 0:
            try:
                example = _make(self.source, index, self.make_example)
            except BadRecordError as error:
                fault[()] = _fault(index, error)
        counts = example is not None
        if example is None:
            example = self.make_example(None)
        named = {"id": np.int64(index), "mask": np.bool_(counts), "fault": fault}
        return example | named


def _make(source: Records, index: int, make_example: Callable, *rng) -> Example:
    record = source.read(index)
    try:
        return _checked(make_example(record, *rng))
    except BadRecordError:
        raise
    except WrongRecordError as error:
        raise SetupError(f"{source.describe(index)} {error.args[0]}") from error
    except Exception as error:
        # A worker can send this class of errors; for others one would wait in vain.
        raise RuntimeError(
            f"{source.describe(index)}: {type(error).__name__}: {error}"
        ) from error


def _checked(example: Example) -> Example:
    """The example, whose arrays must leave the pipeline's own names free."""
    if taken := _OWN_NAMES & example.keys():
        raise ValueError(f"arrays are called {sorted(taken)}, as the pipeline's own are")
    return example


def _fault(index: int, error: BadRecordError) -> tuple[int, bytes]:
    return index, (str(error) or "unknown").encode()[: _FAULT["text"].itemsize]
