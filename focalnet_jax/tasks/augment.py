"""Augmentation of whole batches inside the training step.

    normalised images -> RandomErasing -> Mixing (mixup or cutmix) -> model, loss

They are those of timm 1.0.31 (`timm/data/random_erasing.py`, and `timm/data/mixup.py` in
mode "batch"), which the official recipe uses. Rectangles are masks, made by comparing
indices: shapes are static, and nothing is gathered. Everything is drawn for the global
batch, so it is the same on every mesh.
"""

import dataclasses
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

ERASING_MODES = ("const", "rand", "pixel")

# At most so many rectangles are drawn for an image, and the first that is smaller than
# the image is used, as in timm.
ATTEMPTS = 10


class Box(NamedTuple):
    """Rectangles of pixels, int32 arrays `[...]`; `bottom` and `right` lie outside."""

    top: jax.Array
    bottom: jax.Array
    left: jax.Array
    right: jax.Array

    def mask(self, height: int, width: int) -> jax.Array:
        """Which pixels are inside: bool `[..., height, width, 1]`."""
        top, bottom, left, right = (jnp.expand_dims(edge, (-3, -2, -1)) for edge in self)
        rows = jnp.arange(height)[:, None, None]
        columns = jnp.arange(width)[:, None]
        return (top <= rows) & (rows < bottom) & (left <= columns) & (columns < right)


@dataclasses.dataclass(frozen=True)
class RandomErasing:
    """Replaces a random rectangle in some of the images: Zhong et al., arXiv 1708.04896.

    One rectangle an image (timm's `count=1`).

    Attributes:
      probability: share of the images that lose a rectangle.
      mode: what takes its place: `"const"` the mean, which is 0; `"rand"` one colour;
        `"pixel"` noise. Both are standard normal, in normalised units.
      area: least and greatest share of the image's area.
      aspect: least and greatest height / width; its logarithm is uniform.
    """

    probability: float
    mode: str = "pixel"
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)

    def __call__(self, images: jax.Array, key: jax.Array) -> jax.Array:
        """Erases in normalised images, float `[b, h, w, c]`."""
        chex.assert_rank(images, 4)
        box_key, fill_key = jax.random.split(key)
        b, h, w, _ = images.shape
        boxes = self.draw_boxes(box_key, batch_size=b, height=h, width=w)
        fill = self.draw_fill(fill_key, images.shape)
        return jnp.where(boxes.mask(h, w), fill.astype(images.dtype), images)

    def draw_boxes(
        self, key: jax.Array, *, batch_size: int, height: int, width: int
    ) -> Box:
        """Rectangles `[batch_size]`, empty for images that stay as they are."""
        chosen_key, area_key, aspect_key, top_key, left_key = jax.random.split(key, 5)
        shares = _uniform(area_key, (batch_size, ATTEMPTS), *self.area)
        log_aspects = _uniform(aspect_key, shares.shape, *map(math.log, self.aspect))
        h, w = first_that_fits(shares, jnp.exp(log_aspects), height=height, width=width)
        chosen = jax.random.bernoulli(chosen_key, self.probability, (batch_size,))
        h, w = jnp.where(chosen, h, 0), jnp.where(chosen, w, 0)
        top = jax.random.randint(top_key, h.shape, 0, height - h + 1, jnp.int32)
        left = jax.random.randint(left_key, w.shape, 0, width - w + 1, jnp.int32)
        return Box(top, top + h, left, left + w)

    def draw_fill(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """What stands in the rectangles: float32 that broadcasts to `[b, h, w, c]`."""
        b, _, _, c = shape
        shapes = {"rand": (b, 1, 1, c), "pixel": shape}
        if self.mode == "const":
            return jnp.zeros((), jnp.float32)
        return jax.random.normal(key, shapes[self.mode], jnp.float32)


def _uniform(key, shape, least, greatest):
    return jax.random.uniform(key, shape, jnp.float32, minval=least, maxval=greatest)


def first_that_fits(
    shares: jax.Array, aspects: jax.Array, *, height: int, width: int
) -> tuple[jax.Array, jax.Array]:
    """Sides of the first of several rectangles that is smaller than an image.

    Args:
      shares: of the image's area, `[b, attempts]`.
      aspects: height / width, `[b, attempts]`.
      height, width: of the image; a rectangle has to be smaller on both axes.

    Returns:
      Height and width, int32 `[b]`; 0 where no attempt fits.
    """
    areas = height * width * shares
    h = jnp.round(jnp.sqrt(areas * aspects)).astype(jnp.int32)
    w = jnp.round(jnp.sqrt(areas / aspects)).astype(jnp.int32)
    fits = (h < height) & (w < width)
    first = fits & (jnp.cumsum(fits, axis=-1) == 1)
    return jnp.where(first, h, 0).sum(-1), jnp.where(first, w, 0).sum(-1)


class Mix(NamedTuple):
    """How each image of a batch is mixed with its partner.

    Attributes:
      lam: the image's own share, which is the share of its label: float32 scalar.
      is_cutmix: whether the partner fills `box`, or else shines through everywhere.
      box: of scalars.
    """

    lam: jax.Array
    is_cutmix: jax.Array
    box: Box


@dataclasses.dataclass(frozen=True)
class Mixing:
    """Mixes each image and its target with those of a partner: by mixup or cutmix.

    The first row of a batch and the last are partners, the second and the last but one,
    and so on. One choice, one share and one rectangle hold for the whole batch.

    Attributes:
      mixup_alpha: the share is drawn from Beta(alpha, alpha): Zhang et al.,
        arXiv 1710.09412; 0: no mixup.
      cutmix_alpha: the same of cutmix: Yun et al., arXiv 1905.04899; 0: no cutmix.
      probability: share of the batches that are mixed.
      switch_probability: share of cutmix in these, where there are both.
    """

    mixup_alpha: float
    cutmix_alpha: float
    probability: float = 1.0
    switch_probability: float = 0.5

    def __call__(
        self, images: jax.Array, targets: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mixes float images `[b, h, w, c]` and targets `[b, classes]`."""
        _, h, w, _ = images.shape
        mix = self.draw(key, height=h, width=w)
        return mix_images(images, mix), mix_targets(targets, mix)

    def draw(self, key: jax.Array, *, height: int, width: int) -> Mix:
        """What happens to one batch; an unmixed one has `lam` 1 and an empty box."""
        switch_key, beta_key, mixed_key, row_key, column_key = jax.random.split(key, 5)
        share = self.switch_probability if self.mixup_alpha else 1.0
        is_cutmix = jax.random.bernoulli(switch_key, share if self.cutmix_alpha else 0.0)
        alpha = jnp.where(is_cutmix, self.cutmix_alpha, self.mixup_alpha)
        lam = jax.random.beta(beta_key, alpha, alpha, dtype=jnp.float32)
        lam = jnp.where(jax.random.bernoulli(mixed_key, self.probability), lam, 1.0)
        box = cutmix_box(
            lam,
            jax.random.randint(row_key, (), 0, height, jnp.int32),
            jax.random.randint(column_key, (), 0, width, jnp.int32),
            height=height,
            width=width,
        )
        # The box may reach over the border. Only what lies inside counts for the labels.
        area = (box.bottom - box.top) * (box.right - box.left)
        lam = jnp.where(is_cutmix, 1 - area / (height * width), lam)
        return Mix(lam, is_cutmix, box)


def cutmix_box(
    lam: jax.Array, row: jax.Array, column: jax.Array, *, height: int, width: int
) -> Box:
    """A rectangle of the share `1 - lam` around a pixel, cut off at the border."""
    ratio = jnp.sqrt(1 - lam)
    h = jnp.floor(height * ratio).astype(jnp.int32)
    w = jnp.floor(width * ratio).astype(jnp.int32)
    return Box(
        top=jnp.clip(row - h // 2, 0, height),
        bottom=jnp.clip(row + (h + 1) // 2, 0, height),
        left=jnp.clip(column - w // 2, 0, width),
        right=jnp.clip(column + (w + 1) // 2, 0, width),
    )


def mix_images(images: jax.Array, mix: Mix) -> jax.Array:
    """Mixes each of `[b, h, w, c]` with its partner; in cutmix, pixels stay exact."""
    chex.assert_rank(images, 4)
    inside = mix.box.mask(*images.shape[1:3])
    own = jnp.where(mix.is_cutmix, 1 - inside, mix.lam)  # [h, w, 1]
    return images * own + jnp.flip(images, 0) * (1 - own)


def mix_targets(targets: jax.Array, mix: Mix) -> jax.Array:
    """Mixes distributions over classes, `[b, classes]`."""
    chex.assert_rank(targets, 2)
    return targets * mix.lam + jnp.flip(targets, 0) * (1 - mix.lam)
