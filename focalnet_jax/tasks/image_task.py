"""What tasks on images have in common: the base class of such tasks.

A task on images is a subclass of `ImageTask`. It has `name`, `metrics`, `random_streams`,
`prepare`, `loss`, `predict` and `evaluator` of its own, and says what makes arrays of a
record:

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Ranking(ImageTask[Source, TrainTransform, EvalTransform]):
        margin: float = 0.1

        name = "ranking"
        ...

        def train_example(self, source):
            return TrainRankedImage(self.train_transform)

Its function `make` gives it what `image_task_arguments` reads of a configuration that has
the fields of `tasks.images`.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from focalnet_jax.data import Source
from focalnet_jax.errors import counted
from focalnet_jax.image_size import height_and_width
from focalnet_jax.models import count_multiply_adds
from focalnet_jax.models.size import Model
from focalnet_jax.preprocessing import Preprocessing
from focalnet_jax.tasks.base import BatchArray, Example, Keys, Split, Splits, Variables
from focalnet_jax.tasks.images import (
    OF_HEADS,
    data_sets_of,
    eval_transform_of,
    model_overrides,
    normalize,
    preprocessing_of,
    train_transform_of,
)
from focalnet_jax.weights.description import (
    HEAD_OPTIONS,
    ModelDescription,
    changed_options,
    model_differences,
)


class TrainsOn(Protocol):
    """What transforms training images on the host."""

    def load_operations(self) -> Any:
        """Raises SetupError if a library that it needs is not installed."""


S = TypeVar("S", bound=Source)
S_co = TypeVar("S_co", bound=Source, covariant=True)
T = TypeVar("T", bound=TrainsOn)
E = TypeVar("E")


class DataSets(Protocol[S_co]):
    """The data sets of a run."""

    def open(self, which: str) -> S_co:
        """Opens `"train_split"` or `"test_split"`; raises SetupError if it can't."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTask(abc.ABC, Generic[S, T, E]):
    """The part of a task that tasks on images share; see `tasks.base.Task` for the rest.

    Attributes:
      model: the model.
      model_name, model_overrides: what it is made of, as in a `ModelDescription`.
      preprocessing: of images for evaluation; training has its statistics and size.
      train_transform: of images on the host, for training.
      eval_transform: the same for evaluation, or what has to be known for it.
      data_sets: what it is trained and tested on; None where no data is needed.
    """

    model: Model
    model_name: str
    model_overrides: dict[str, Any]
    preprocessing: Preprocessing
    train_transform: T
    eval_transform: E
    data_sets: DataSets[S] | None = None

    unit = "images"
    new: ClassVar[tuple[str, ...]] = OF_HEADS

    # --- What a task says of its own ------------------------------------------

    @abc.abstractmethod
    def train_example(self, source: S) -> Callable[..., Example]:
        """Makes a training row of a record and a random generator: see `Split`."""

    @abc.abstractmethod
    def test_split(self, source: S) -> tuple[Split, tuple[str, ...]]:
        """The split to evaluate on, and remarks on it for whoever starts the run.

        Its `example` makes a row of a record alone, and of None a blank one.
        """

    def check_data(self, train_source: S | None, test_source: S) -> tuple[str, ...]:
        """Checks data sets that have been opened, before anything is made of them.

        Args:
          train_source: the training split; None if nothing is trained.
          test_source: the split to evaluate on.

        Returns:
          Further remarks for whoever starts the run.

        Raises:
          SetupError: they don't go with the model or with each other.
        """
        return ()

    # --- What all of them do --------------------------------------------------

    @property
    def title(self) -> str:
        changed = changed_options(self.model_name, self.model)
        if not changed:
            return self.model_name
        return f"{self.model_name} with {counted(len(changed), 'option')} changed"

    @property
    def batch(self) -> dict[str, BatchArray]:
        """The images; a task adds the arrays of its targets."""
        sides = height_and_width(self.preprocessing.image_size)
        return {"image": BatchArray((*sides, 3), np.uint8, ("height", "width", None))}

    @property
    def multiply_adds(self) -> int | None:
        return count_multiply_adds(self.model, self.preprocessing.image_size)

    def open(self, *, train: bool) -> Splits:
        assert self.data_sets is not None  # It is where there is data to open.
        train_source = None
        if train:
            self.train_transform.load_operations()
            train_source = self.data_sets.open("train_split")
        test_source = self.data_sets.open("test_split")
        more = self.check_data(train_source, test_source)
        test, own = self.test_split(test_source)
        if train_source is None:
            return Splits(None, test, test_source.remarks + more + own)
        # A folder may be the one and the other.
        remarks = tuple(dict.fromkeys(train_source.remarks + test_source.remarks))
        example = self.train_example(train_source)
        return Splits(Split(train_source, example), test, remarks + more + own)

    def init(self, key: jax.Array) -> Variables:
        sides = height_and_width(self.preprocessing.image_size)
        channels = self.model.encoder.in_channels
        return self.model.init(key, jnp.zeros((1, *sides, channels)))

    def normalize(self, images: jax.Array) -> jax.Array:
        """Makes `uint8 [b, h, w, 3]` float32, as `preprocessing` does."""
        mean, std = self.preprocessing.mean, self.preprocessing.std
        return normalize(images, mean=mean, std=std)

    def apply_in_training(
        self, variables: Variables, keys: Keys, *inputs: jax.Array, **options: Any
    ) -> tuple[Any, Any]:
        """Applies the model in training mode.

        Args:
          variables: of the model.
          keys: `drop_path` and `dropout` among them.
          *inputs, **options: what the model takes.

        Returns:
          The model's result, without the maps inside it; and what `Loss.batch_stats`
          takes.
        """
        rngs = {name: keys[name] for name in ("drop_path", "dropout")}
        # A FocalNet has no running averages, but an operator of one's own may.
        averages = ["batch_stats"] if "batch_stats" in variables else []
        (result, _), new = self.model.apply(
            variables, *inputs, **options, train=True, rngs=rngs, mutable=averages
        )
        return result, new.get("batch_stats")

    def depth_of(self, name: str) -> int:
        return self.model.encoder.depth_of(name)

    def description(self, source: S) -> dict[str, Any]:
        """The content of `model.json`; a task adds the classes, if there are any."""
        return ModelDescription(
            name=self.model_name,
            overrides=self.model_overrides,
            preprocessing=self.preprocessing,
        ).to_json()

    def differences(self, directory: epath.Path, source: S | None) -> list[str]:
        differences = model_differences(directory, self.model)
        if source is None:
            for option in HEAD_OPTIONS:
                differences.pop(option, None)
        return [f"model.{option}: {text}" for option, text in differences.items()]


def image_task_arguments(
    config: ConfigDict, *, fixed: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The arguments of an `ImageTask` that a configuration says, all but the model.

    Args:
      config: has `MODEL_FIELDS` and `IMAGE_FIELDS`, which are checked one by one.
      fixed: options that every model of this task has and no field says, such as
        `{"reconstruct": True}`.

    Raises:
      SetupError: values that don't go together.
    """
    return dict(
        model_name=config.model.name,
        model_overrides=model_overrides(config) | dict(fixed or {}),
        preprocessing=preprocessing_of(config),
        train_transform=train_transform_of(config),
        eval_transform=eval_transform_of(config),
        data_sets=data_sets_of(config),
    )
