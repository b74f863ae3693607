"""Masked image modelling: the net paints the patches that it isn't shown.

SimMIM, Xie et al., arXiv 2111.09886: random patches of an image are hidden behind a
learnt token, and the loss is the mean absolute error of their pixels. No labels are read.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from focalnet_jax.data import EvalTransform, Source, TrainTransform
from focalnet_jax.errors import SetupError
from focalnet_jax.evaluators import Mean
from focalnet_jax.fields import Field, Fields
from focalnet_jax.image_size import height_and_width
from focalnet_jax.models import MaskedFocalNet, create_masked_model
from focalnet_jax.models.modulation import per_axis
from focalnet_jax.tasks.base import Batch, Keys, Loss, Metric, Split, Variables
from focalnet_jax.tasks.examples import EvalImage, TrainImage
from focalnet_jax.tasks.image_task import ImageTask, image_task_arguments
from focalnet_jax.tasks.images import IMAGE_FIELDS, MODEL_FIELDS, model_of
from focalnet_jax.values import Number, Whole
from focalnet_jax.weights.description import MASKED_IMAGE_MODELING, RECONSTRUCT

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedImageModeling(ImageTask[Source, TrainTransform, EvalTransform]):
    """Masked image modelling as the trainer sees it: see `tasks.base.Task`.

    Attributes, beside those of `ImageTask`:
      model: paints images.
      random_mask: says what is hidden.
    """

    model: MaskedFocalNet
    random_mask: RandomMask

    name = MASKED_IMAGE_MODELING
    metrics = METRICS
    random_streams = ("drop_path", "dropout", "mask")

    @property
    def title(self) -> str:
        return f"{super().title}, masked"

    def train_example(self, source: Source) -> TrainImage:
        return TrainImage(self.train_transform)

    def test_split(self, source: Source) -> tuple[Split, tuple[str, ...]]:
        return Split(source, EvalImage(self.eval_transform)), ()

    def prepare(self, batch: Batch, keys: Keys) -> Batch:
        """Normalises, and draws what is hidden: float `image` and bool `hidden`."""
        images = self.normalize(batch["image"])
        own_keys = jax.random.split(keys["mask"], len(images))
        return {"image": images, "hidden": self.random_mask(own_keys)}

    def loss(self, variables: Variables, batch: Batch, keys: Keys) -> Loss:
        images, hidden = batch["image"], batch["hidden"]
        painted, batch_stats = self.apply_in_training(variables, keys, images, hidden)
        errors = hidden_errors(images, painted, hidden)
        return Loss(errors.sum(), weight=errors.size, batch_stats=batch_stats)

    def predict(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        """The loss of each image, `[b]`, with a mask that belongs to its record."""
        images = self.normalize(batch["image"])
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
        return 0 if name == "mask_token" else super().depth_of(name)


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
        random_mask=_random_mask_of(config, model),
        **image_task_arguments(config, fixed={RECONSTRUCT: True}),
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
