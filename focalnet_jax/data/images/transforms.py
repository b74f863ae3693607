"""Makes `uint8 [height, width, 3]` of encoded images, for training and for evaluation.

The accelerator does the rest, in the training step: normalisation, random erasing, mixup
and cutmix.
"""

import dataclasses
import functools
import importlib
import math
from types import ModuleType
from typing import Any

import numpy as np
import PIL.Image

from focalnet_jax.data.images.decoding import decode
from focalnet_jax.data.images.exact import INTERPOLATIONS
from focalnet_jax.data.images.randaugment import RandAugment, apply_operations
from focalnet_jax.errors import SetupError, argument
from focalnet_jax.image_size import ImageSize, height_and_width

PIXELS = ("exact", "fast")
"""A training transform makes either the pixels of PIL, or similar ones faster."""

# Evaluation may use every filter of PIL, because others' preprocessing does.
EVAL_INTERPOLATIONS = INTERPOLATIONS | {
    "lanczos": PIL.Image.Resampling.LANCZOS,
    "box": PIL.Image.Resampling.BOX,
    "hamming": PIL.Image.Resampling.HAMMING,
}

# An interpolation that is "random" is drawn from these, as in timm.
RANDOM_INTERPOLATIONS = ("bilinear", "bicubic")


def image_operations(pixels: str) -> ModuleType:
    """The module `exact` or `fast`, by its name.

    Raises:
      SetupError: the libraries that it needs are not installed.
    """
    try:
        return importlib.import_module(f"focalnet_jax.data.images.{pixels}")
    except ImportError as error:
        raise SetupError(
            f"{argument('pixels')}={pixels!r} needs packages that are not there "
            f"({error}):\n  pip install 'focalnet_jax[fast]'"
        ) from error


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """Random resized crop, horizontal flip, RandAugment and colour jitter, in this order.

    The crop covers a uniformly random share of the image's area, at an aspect ratio whose
    logarithm is uniformly random: Szegedy et al., arXiv 1409.4842. This is torchvision's
    `RandomResizedCrop`, which the official recipe uses through timm.

    Attributes:
      size: of the result, in pixels: a number for a square, or height and width. The crop
        doesn't follow its shape.
      crop_area: the least and the greatest share of the image's area in a crop.
      crop_aspect: the least and the greatest width / height of a crop.
      flip: whether half of the images are mirrored left to right.
      interpolation: `"bicubic"`, `"bilinear"`, `"nearest"` or `"random"`. Random means
        that one of the first two is drawn for each image, and again for each geometric
        operation.
      rand_augment: the policy of RandAugment; None for no such operations.
      color_jitter: for a number j, factors of brightness, contrast and saturation are
        drawn from [1 - j, 1 + j] and applied in random order, as by torchvision's
        `ColorJitter(j, j, j)`. 0 switches it off.
      fill: the RGB levels of pixels that a geometric operation takes from outside of the
        image. timm takes the mean of the data.
      pixels: `"exact"` makes the pixels of PIL, and so of timm; `"fast"` makes similar
        ones faster.
    """

    size: ImageSize
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    interpolation: str = "bicubic"
    rand_augment: RandAugment | None = None
    color_jitter: float = 0.0
    fill: tuple[int, int, int] = (124, 116, 104)
    pixels: str = "exact"

    def load_operations(self) -> ModuleType:
        """The module with the operations on pixels; raises as `image_operations`."""
        return image_operations(self.pixels)

    def __call__(self, encoded: bytes, rng: np.random.Generator) -> np.ndarray:
        """Makes an encoded image `uint8 [height, width, 3]`.

        Raises:
          BadRecordError: the bytes are not a whole image.
        """
        images = self.load_operations()
        interpolations = (self.interpolation,)
        if self.interpolation == "random":
            interpolations = RANDOM_INTERPOLATIONS
        image = images.crop_and_resize(
            encoded,
            functools.partial(self._crop_box, rng=rng),
            size=height_and_width(self.size),
            interpolation=interpolations[rng.integers(len(interpolations))],
        )
        if self.flip and rng.random() < 0.5:
            image = images.mirror(image)
        if self.rand_augment is not None:
            operations = self.rand_augment.draw(rng, interpolations)
            image = apply_operations(image, operations, images, fill=self.fill)
        if self.color_jitter:
            image = self._jitter(image, images, rng)
        return images.to_array(image)

    def _crop_box(
        self, width: int, height: int, rng: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """The left, upper, right and lower edge of a random crop, in pixels."""
        least, greatest = self.crop_aspect
        for _ in range(10):
            area = width * height * rng.uniform(*self.crop_area)
            aspect = math.exp(rng.uniform(math.log(least), math.log(greatest)))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left = int(rng.integers(width - w + 1))
                upper = int(rng.integers(height - h + 1))
                return left, upper, left + w, upper + h
        # No crop fits into an image so oblong: its middle is taken, as large as
        # the allowed aspect ratios permit.
        w = min(width, round(height * greatest))
        h = min(height, round(width / least))
        left, upper = (width - w) // 2, (height - h) // 2
        return left, upper, left + w, upper + h

    def _jitter(self, image: Any, images: ModuleType, rng: np.random.Generator) -> Any:
        """Changes brightness, contrast and saturation, in random order."""
        least, greatest = max(0.0, 1 - self.color_jitter), 1 + self.color_jitter
        properties = (images.brightness, images.contrast, images.color)
        factors = rng.uniform(least, greatest, size=3)
        for index in rng.permutation(3):
            image = properties[index](image, float(factors[index]))
        return image


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """Resizes an image until it covers `size / crop`, and cuts out the middle.

    Its proportions stay. For a square, its shorter side becomes `size / crop`, and the
    result equals that of torchvision's `Resize` and `CenterCrop`, with which the official
    code evaluates. Other results equal those of timm 1.0.31 for `--input-size 3 HEIGHT
    WIDTH`, which are of `ResizeKeepRatio` and `CenterCrop`, but with the interpolation
    that is asked for: timm's is bilinear there. All are PIL's, whatever pixels training
    uses. What lies outside of a resized image that is too small is black.

    Attributes:
      size: of the result, in pixels: a number for a square, or height and width.
      crop: the share of the covered sides that is kept; 224 / 256 in the recipe.
      interpolation: a name in `EVAL_INTERPOLATIONS`.
      squash: resizes both sides to what covers, so that the proportions are lost.
      floor_offsets: where the middle begins between two pixels, takes the first one, as
        transformers does. torchvision takes the one with an even number.
    """

    size: ImageSize
    crop: float = 0.875
    interpolation: str = "bicubic"
    squash: bool = False
    floor_offsets: bool = False

    def __call__(self, image: bytes | PIL.Image.Image) -> np.ndarray:
        """Makes an encoded or a decoded image `uint8 [height, width, 3]`.

        Raises:
          BadRecordError: the bytes are not a whole image.
        """
        if isinstance(image, bytes):
            image = PIL.Image.fromarray(decode(image))
        image = image.convert("RGB")
        height, width = height_and_width(self.size)
        scaled = self._scaled(*image.size)
        image = image.resize(scaled, EVAL_INTERPOLATIONS[self.interpolation])
        whole = math.floor if self.floor_offsets else round
        left, upper = whole((scaled[0] - width) / 2), whole((scaled[1] - height) / 2)
        return np.asarray(image.crop((left, upper, left + width, upper + height)))

    def _scaled(self, old_width: int, old_height: int) -> tuple[int, int]:
        """Width and height of an image after resizing, from those before it."""
        height, width = (int(side / self.crop) for side in height_and_width(self.size))
        if self.squash:
            return width, height
        if height == width:  # torchvision rounds otherwise than timm.
            shorter = min(old_width, old_height)
            return int(height * old_width / shorter), int(height * old_height / shorter)
        ratio = min(old_width / width, old_height / height)
        return round(old_width / ratio), round(old_height / ratio)
