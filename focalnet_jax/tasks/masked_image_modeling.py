"""Masked image modelling: the net paints the patches that it isn't shown.

SimMIM, Xie et al., arXiv 2111.09886: random patches of an image are hidden behind a
learnt token, and the loss is the mean absolute error of their pixels. No labels are read.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from focalnet_jax.data import (
    EvalTransform,
    Source,
    TrainTransform,
    image_operations,
)
from focalnet_jax.errors import SetupError
from focalnet_jax.evaluators import Mean
from focalnet_jax.fields import Field, Fields
from focalnet_jax.image_size import height_and_width
from focalnet_jax.models import MaskedFocalNet, count_multiply_adds, create_masked_model
from focalnet_jax.models.modulation import per_axis
from focalnet_jax.preprocessing import Preprocessing
from focalnet_jax.tasks.base import (
    Batch,
    BatchArray,
    Keys,
    Loss,
    Metric,
    Split,
    Splits,
    Variables,
)
from focalnet_jax.tasks.examples import EvalImage, TrainImage
from focalnet_jax.tasks.images import (
    IMAGE_FIELDS,
    MODEL_FIELDS,
    OF_HEADS,
    DataSets,
    data_sets_of,
    eval_transform_of,
    model_of,
    model_overrides,
    normalize,
    preprocessing_of,
    train_transform_of,
)
from focalnet_jax.values import Number, Whole
from focalnet_jax.weights.description import (
    HEAD_OPTIONS,
    MASKED_IMAGE_MODELING,
    RECONSTRUCT,
    ModelDescription,
    model_differences,
)

METRICS = {"loss": Metric("loss", "{:.4f}", higher_is_better=False, picture="loss")}

FIELDS: Fields = {
    "mask_ratio": Field(
        0.6,
        "The share of the patches that are hidden, rounded up to whole patches.",
        Number(0, 1, excludes_least=True),
    ),
    "mask_patch_size": Field(
        32,
        "The side in pixels of the squares that are hidden or shown. It divides the "
        "sides of images, and `model.patch_size` divides it.",
        Whole(1, 2**14),
    ),
    **{
        name: field for name, field in MODEL_FIELDS.items() if name != "model.num_classes"
    },
    **IMAGE_FIELDS,
}


@dataclasses.dataclass(frozen=True)
class RandomMask:
    """Hides random squares of images.

    Attributes:
      ratio: the share that is hidden, rounded up to whole squares.
      squares: their number along the height and along the width of an image.
      repeats: the number of patches of the model along the height and the width of a
        square.
    """

    ratio: float
    squares: tuple[int, int]
    repeats: tuple[int, int]

    @property
    def hidden(self) -> int:
        """The number of hidden squares in each image."""
        return math.ceil(math.prod(self.squares) * self.ratio)

    def __call__(self, keys: jax.Array) -> jax.Array:
        """Draws a mask for each key: bool `[b, h, w]`, True where a patch is hidden."""

        def draw(key):
            order = jax.random.permutation(key, math.prod(self.squares))
            mask = (order < self.hidden).reshape(self.squares)
            for axis, times in enumerate(self.repeats):
                mask = jnp.repeat(mask, times, axis=axis)
            return mask

        return jax.vmap(draw)(keys)


@dataclasses.dataclass(frozen=True)
class MaskedImageModeling:
    """Masked image modelling as the trainer sees it: see `tasks.base.Task`.

    Attributes:
      model: paints images.
      model_name, model_overrides: what `create_masked_model` makes it of.
      preprocessing: of images for evaluation; training has its statistics and size.
      train_transform, eval_transform: of images on the host.
      random_mask: says what is hidden.
      data_sets: what it is trained and tested on; None where no data is needed.
    """

    model: MaskedFocalNet
    model_name: str
    model_overrides: dict[str, Any]
    preprocessing: Preprocessing
    train_transform: TrainTransform
    eval_transform: EvalTransform
    random_mask: RandomMask
    data_sets: DataSets | None = None

    name = MASKED_IMAGE_MODELING
    unit = "images"
    metrics = METRICS
    random_streams = ("drop_path", "dropout", "mask")
    new = OF_HEADS

    @property
    def title(self) -> str:
        return f"{self.model_name}, masked"

    @property
    def batch(self) -> dict[str, BatchArray]:
        sides = height_and_width(self.preprocessing.image_size)
        return {"image": BatchArray((*sides, 3), np.uint8, ("height", "width", None))}

    @property
    def multiply_adds(self) -> int:
        return count_multiply_adds(self.model, self.preprocessing.image_size)

    def open(self, *, train: bool) -> Splits:
        assert self.data_sets is not None  # It is where there is data to open.
        if train:
            image_operations(self.train_transform.pixels)  # Are its libraries there?
            train_source = self.data_sets.open("train_split")
        test_source = self.data_sets.open("test_split")
        test = Split(test_source, EvalImage(self.eval_transform))
        if not train:
            return Splits(None, test, test_source.remarks)
        remarks = tuple(dict.fromkeys(train_source.remarks + test_source.remarks))
        example = TrainImage(self.train_transform)
        return Splits(Split(train_source, example), test, remarks)

    def init(self, key: jax.Array) -> Variables:
        sides = height_and_width(self.preprocessing.image_size)
        return self.model.init(key, jnp.zeros((1, *sides, 3)))

    def prepare(self, batch: Batch, keys: Keys) -> Batch:
        """Normalises, and draws what is hidden: float `image` and bool `hidden`."""
        images = self._normalize(batch["image"])
        own_keys = jax.random.split(keys["mask"], len(images))
        return {"image": images, "hidden": self.random_mask(own_keys)}

    def loss(self, variables: Variables, batch: Batch, keys: Keys) -> Loss:
        rngs = {name: keys[name] for name in ("drop_path", "dropout")}
        averages = ["batch_stats"] if "batch_stats" in variables else []
        (painted, _), new = self.model.apply(
            variables,
            batch["image"],
            batch["hidden"],
            train=True,
            rngs=rngs,
            mutable=averages,
        )
        errors = hidden_errors(batch["image"], painted, batch["hidden"])
        return Loss(errors.sum(), weight=errors.size, batch_stats=new.get("batch_stats"))

    def predict(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        """The loss of each image, `[b]`, with a mask that belongs to its record."""
        images = self._normalize(batch["image"])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), batch["id"])
        hidden = self.random_mask(keys)
        painted, _ = self.model.apply(variables, images, hidden, train=False)
        return {"loss": hidden_errors(images, painted, hidden)}

    def evaluator(
        self,
        predict: Callable[[Variables, Batch], dict[str, jax.Array]],
        make_batches: Callable[[], Iterable[Batch]],
        source: Source,
    ) -> Mean:
        return Mean(predict, make_batches)

    def depth_of(self, name: str) -> int:
        return 0 if name == "mask_token" else self.model.encoder.depth_of(name)

    def description(self, source: Source) -> dict[str, Any]:
        return ModelDescription(
            name=self.model_name,
            overrides=self.model_overrides | {RECONSTRUCT: True},
            preprocessing=self.preprocessing,
        ).to_json()

    def differences(self, directory: epath.Path, source: Source | None) -> list[str]:
        differences = model_differences(directory, self.model)
        if source is None:
            for option in HEAD_OPTIONS:
                differences.pop(option, None)
        return [f"model.{option}: {text}" for option, text in differences.items()]

    def _normalize(self, images: jax.Array) -> jax.Array:
        mean, std = self.preprocessing.mean, self.preprocessing.std
        return normalize(images, mean=mean, std=std)


def hidden_errors(images: jax.Array, painted: jax.Array, hidden: jax.Array) -> jax.Array:
    """The mean absolute error over the hidden pixels of each image, `[b]`.

    Each image must have the same number of hidden pixels for the mean over a batch to be
    that of SimMIM.

    Args:
      images, painted: `[b, h, w, c]`.
      hidden: bool `[b, h / patch, w / patch]`.
    """
    painted = painted.astype(jnp.promote_types(painted.dtype, jnp.float32))
    patch = [side // patches for side, patches in zip(images.shape[1:], hidden.shape[1:])]
    for axis, pixels in enumerate(patch):
        hidden = jnp.repeat(hidden, pixels, axis=1 + axis)
    errors = jnp.where(hidden[..., None], jnp.abs(images - painted), 0)
    counts = hidden.sum((1, 2)) * images.shape[-1]
    return errors.sum((1, 2, 3)) / jnp.maximum(counts, 1)


def make(config: ConfigDict) -> MaskedImageModeling:
    """The task that a configuration describes, whose fields are checked one by one.

    Raises:
      SetupError: values that don't go together.
    """
    model = model_of(config, create_masked_model)
    return MaskedImageModeling(
        model=model,
        model_name=config.model.name,
        model_overrides=model_overrides(config),
        preprocessing=preprocessing_of(config),
        train_transform=train_transform_of(config),
        eval_transform=eval_transform_of(config),
        random_mask=_random_mask_of(config, model),
        data_sets=data_sets_of(config),
    )


def _random_mask_of(config: ConfigDict, model: MaskedFocalNet) -> RandomMask:
    size = config.mask_patch_size
    sides = height_and_width(config.data.image_size)
    strides = model.encoder.total_stride
    if any(side % stride for side, stride in zip(sides, strides)):
        shown = " x ".join(map(str, strides))
        raise SetupError(
            f"data.image_size={config.data.image_size} is no multiple of {shown}, the "
            f"pixels of a position in the last stage of {config.model.name}"
        )
    patch = per_axis(model.encoder.patch_size, 2)
    if any(side % size for side in sides):
        raise SetupError(
            f"mask_patch_size={size} does not divide data.image_size="
            f"{config.data.image_size}; the nearest that does is "
            f"{_nearest(sides, patch, size)}"
        )
    if any(size % side for side in patch):
        raise SetupError(
            f"mask_patch_size={size} is no multiple of model.patch_size="
            f"{model.encoder.patch_size}"
        )
    return RandomMask(
        config.mask_ratio,
        squares=tuple(side // size for side in sides),
        repeats=tuple(size // side for side in patch),
    )


def _nearest(sides: tuple[int, int], patch: tuple[int, ...], size: int) -> int:
    """The nearest size that divides the sides and is a multiple of patches."""
    common, least = math.gcd(*sides), math.lcm(*patch)
    fitting = [d for d in range(least, common + 1, least) if common % d == 0]
    return min(fitting, key=lambda d: abs(d - size))
