"""What the trainer knows of a task: the protocol, and the values that pass through it.

The trainer calls a task in this order:

    open        the data sets, checked; with each comes `example`, which makes arrays of
                a record, on the host, in threads or in other processes
    prepare     on the devices, the whole batch: normalisation, augmentation
    loss        on the devices, one accumulation part of the batch
    predict     on the devices, an evaluation batch
    evaluator   from predictions to metrics

A task holds numbers, functions and modules, but no configuration.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from etils import epath

from focalnet_jax.data import Records

Example = dict[str, np.ndarray]
Batch = dict[str, jax.Array]
# `{"params": ..., "batch_stats": ...}`; models without BatchNorm have the first alone.
Variables = Mapping[str, Any]
Keys = dict[str, jax.Array]


class BatchArray(NamedTuple):
    """One array of a training batch.

    Attributes:
      shape: of one example, without the axis of the batch.
      dtype: of the array that `train_example` returns.
      axes: a name for each axis, or None. The trainer splits "height" over `spatial`,
        and "time" where there is no height.
    """

    shape: tuple[int, ...]
    dtype: Any
    axes: tuple[str | None, ...] = ()


class Metric(NamedTuple):
    """How people read a metric of evaluation.

    Attributes:
      label: its name in a line of text.
      format: its value there, such as "{:.2%}".
      higher_is_better: which of two checkpoints is the better one.
      picture: the title of the picture that has its curve; metrics may share one.
    """

    label: str
    format: str
    higher_is_better: bool
    picture: str


class Loss(NamedTuple):
    """The loss of some rows, as a sum: the trainer adds sums and divides once.

    Attributes:
      total: the sum that gradients are taken of, a scalar.
      weight: what the sum is divided by: a scalar, such as the number of valid pixels,
        through which no gradient flows. Or a Python number that is the same for every
        part of a batch, such as the number of rows.
      parts: further sums by name, which are divided by the same weight and shown.
      batch_stats: the next running averages of BatchNorm; None leaves them as they are.
    """

    total: jax.Array
    weight: jax.Array | float
    parts: Mapping[str, jax.Array] = {}
    batch_stats: Any = None


class Group(NamedTuple):
    """Some records of a split whose rows for evaluation have arrays of one shape.

    Attributes:
      indices: of the records.
      example: makes such a row, as `Split.example` does.
    """

    indices: Sequence[int]
    example: Callable[..., Example]


class Split(NamedTuple):
    """A data set, and how its records become rows of batches.

    Attributes:
      source: the records.
      example: makes the arrays of `Task.batch` of a record and a random generator, for
        training; or arrays for `Task.predict` and the evaluator of a record alone, or of
        None for a blank row that doesn't count. It is pickled for other processes, so it
        holds nothing of JAX. BadRecordError passes over a record, WrongRecordError ends
        the run. The pipeline adds `id`, the index of the record, and for evaluation
        `mask`, which is False where a row doesn't count. These names are taken, and
        so is `fault`.
      groups: for evaluation, where rows differ in their shapes: every record stands in
        one group. They are evaluated one after the other, each in batches of its own
        and by a program of its own. Without groups, `example` makes all rows.
    """

    source: Records
    example: Callable[..., Example]
    groups: tuple[Group, ...] = ()


class Splits(NamedTuple):
    """The data of a run.

    Attributes:
      train: the split to train on; None if nothing is trained.
      test: the split to evaluate on.
      remarks: lines for whoever starts the run.
    """

    train: Split | None
    test: Split
    remarks: tuple[str, ...] = ()


class Evaluator(Protocol):
    """Metrics of variables on a split."""

    def run(
        self, variables: Variables, *, name: str, before_batch: Callable[[], None]
    ) -> Iterator[tuple[str, float]]:
        """Yields `NAME/METRIC` and values, and `NAME/examples`, the number counted.

        Calls `before_batch` before each batch; it may raise to end the evaluation.

        An evaluator may also have a method `details`, which returns the `Details` of its
        last run, or None; it is called on the first process alone.
        """


class Predicts(Protocol):
    """What an evaluation asks of a task, or of a model alone.

    Attributes:
      batch: the arrays of a batch by name, without those of the answers.
    """

    @property
    def batch(self) -> Mapping[str, BatchArray]: ...

    def predict(self, variables: Variables, batch: Batch) -> Any:
        """What the evaluator counts, from an evaluation batch, in evaluation mode."""


class Task(Predicts, Protocol):
    """All that the trainer asks of a task.

    A task may also have `may_lack`: what names of parameters begin with that may be
    missing altogether where a run starts from. With `reset_head` such parameters begin
    anew, and are read where they are there.

    Attributes:
      name: as in `tasks.registry.TASKS`.
      title: of the model, for people.
      unit: what an example is called, in the plural: "images".
      metrics: those of evaluation by name, `loss` among them if there is one.
      batch: the arrays of a training batch by name.
      random_streams: names of the keys that `prepare` and `loss` are given. A stream's
        numbers follow from its place in the tuple: new ones go to the end.
      new: what names of parameters begin with that may start anew: "head/".
      multiply_adds: of a forward pass of one example; None if that isn't known.
    """

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def metrics(self) -> Mapping[str, Metric]: ...
    @property
    def batch(self) -> Mapping[str, BatchArray]: ...
    @property
    def random_streams(self) -> tuple[str, ...]: ...
    @property
    def new(self) -> tuple[str, ...]: ...
    @property
    def multiply_adds(self) -> int | None: ...

    def open(self, *, train: bool) -> Splits:
        """Opens the data sets, the training split only if asked for, and checks them.

        Raises:
          SetupError: they aren't there, or don't go with the model or with each other.
        """

    def init(self, key: jax.Array) -> Variables:
        """New variables; a pure function, to be compiled with shardings."""

    def prepare(self, batch: Batch, keys: Keys) -> Batch:
        """What `loss` takes, from the arrays of a whole batch: the same rows."""

    def loss(self, variables: Variables, batch: Batch, keys: Keys) -> Loss:
        """The loss of some rows of a prepared batch, in training mode."""

    def evaluator(
        self,
        predict: Callable[[Variables, Batch], Any],
        make_batches: Callable[[], Iterable[Batch]],
        source: Any,
    ) -> Evaluator:
        """An evaluator over a split.

        Args:
          predict: the method above, wrapped such that maps are placed on the devices. It
            can be called inside a function that is compiled.
          make_batches: returns the batches of the split, from the first one on, each time
            that it is called. Their arrays are global.
          source: the records of the split, as `open` has given them.
        """

    def depth_of(self, name: str) -> int:
        """How deep in the net a parameter stands, for `layer_decay`: the stem is 0."""

    def description(self, source: Any) -> dict[str, Any]:
        """The content of `model.json`: what is needed to use parameters elsewhere.

        Args:
          source: the records that the parameters are trained on, as `open` has given
            them.
        """

    def differences(self, directory: epath.Path, source: Any) -> list[str]:
        """How the model differs from that of parameters on disk, a line each.

        Args:
          directory: where the parameters lie; a `model.json` lies there or above.
          source: the records that the parameters are to be used on as they are, as `open`
            has given them. None if they start a new run: then what the shapes of
            parameters show is left out, since other shapes are an error of their own.
        """
