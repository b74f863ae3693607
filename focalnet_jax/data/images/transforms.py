"""From an encoded image to `uint8 [size, size, 3]`, for training and for evaluation.

What follows per pixel or per batch (normalisation, random erasing, mixup, cutmix) runs on
the accelerator, in the training step.
"""

import dataclasses
import functools
import importlib
import math
from types import ModuleType

import numpy as np
import PIL.Image

from focalnet_jax.data.images.decoding import decode
from focalnet_jax.data.images.exact import INTERPOLATIONS
from focalnet_jax.data.images.randaugment import RandAugment, apply_operations
from focalnet_jax.errors import SetupError

# Which pixels a training transform makes: PIL's own, or some near them sooner.
PIXELS = ("exact", "fast")

# What "random" chooses from, as in timm.
RANDOM_INTERPOLATIONS = ("bilinear", "bicubic")


def image_operations(pixels: str) -> ModuleType:
    """The module that works on images in the mode `pixels`.

    Raises:
      SetupError: its libraries are not installed.
    """
    try:
        return importlib.import_module(f"focalnet_jax.data.images.{pixels}")
    except ImportError as error:
        raise SetupError(
            f"data.pixels={pixels!r} needs packages that are not there ({error}):\n"
            "  pip install '.[fast]'"
        ) from error


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """Random resized crop, horizontal flip, RandAugment, colour jitter, in this order.

    The crop covers a uniform share of the image's area at an aspect ratio whose
    logarithm is uniform: Szegedy et al., arXiv 1409.4842, as in torchvision's
    `RandomResizedCrop`, which the official recipe uses through timm.

    Attributes:
      size: side of the result, in pixels.
      crop_area: least and greatest share of the image's area.
      crop_aspect: least and greatest width / height.
      flip: whether to mirror half of the images left to right.
      interpolation: `"bicubic"`, `"bilinear"`, `"nearest"`, or `"random"`: of the first
        two, drawn for each image, and again for each geometric operation.
      rand_augment: the policy; None for none.
      color_jitter: j draws brightness, contrast and saturation from [1 - j, 1 + j], to
        apply in random order; 0 for none. As torchvision's `ColorJitter(j, j, j)`.
      fill: RGB levels where an operation leaves the image; in timm the data's mean.
      pixels: `"exact"`: equal to PIL's and so to timm's; `"fast"`: near them.
    """

    size: int
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    interpolation: str = "bicubic"
    rand_augment: RandAugment | None = None
    color_jitter: float = 0.0
    fill: tuple[int, int, int] = (124, 116, 104)
    pixels: str = "exact"

    def __call__(self, encoded: bytes, rng: np.random.Generator) -> np.ndarray:
        """Returns `uint8 [size, size, 3]`.

        Raises:
          BadRecordError: the bytes are no whole image.
        """
        images = image_operations(self.pixels)
        interpolations = (self.interpolation,)
        if self.interpolation == "random":
            interpolations = RANDOM_INTERPOLATIONS
        image = images.crop_and_resize(
            encoded,
            functools.partial(self._crop_box, rng=rng),
            size=self.size,
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
        """Left, upper, right and lower edge of the crop."""
        log_aspect = [math.log(aspect) for aspect in self.crop_aspect]
        for _ in range(10):
            area = width * height * rng.uniform(*self.crop_area)
            aspect = math.exp(rng.uniform(*log_aspect))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left = int(rng.integers(width - w + 1))
                upper = int(rng.integers(height - h + 1))
                return left, upper, left + w, upper + h
        # An image too oblong for any of them: the middle, within the allowed aspects.
        least, greatest = self.crop_aspect
        w = min(width, round(height * greatest))
        h = min(height, round(width / least))
        left, upper = (width - w) // 2, (height - h) // 2
        return left, upper, left + w, upper + h

    def _jitter(self, image, images: ModuleType, rng: np.random.Generator):
        least, greatest = max(0.0, 1 - self.color_jitter), 1 + self.color_jitter
        properties = (images.brightness, images.contrast, images.color)
        factors = rng.uniform(least, greatest, size=3)
        for index in rng.permutation(3):
            image = properties[index](image, float(factors[index]))
        return image


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """Resizes the shorter side to `size / crop` and cuts out the middle.

    As torchvision's `Resize` and `CenterCrop`, with which the official code evaluates;
    by PIL, whatever mode training uses.

    Attributes:
      size: side of the result, in pixels.
      crop: share of the resized shorter side that is kept: 224 / 256 in the recipe.
      interpolation: `"bicubic"`, `"bilinear"` or `"nearest"`.
    """

    size: int
    crop: float = 0.875
    interpolation: str = "bicubic"

    def __call__(self, image: bytes | PIL.Image.Image) -> np.ndarray:
        """Makes an encoded or a decoded image `uint8 [size, size, 3]`.

        Raises:
          BadRecordError: bytes that are no whole image.
        """
        if isinstance(image, bytes):
            image = PIL.Image.fromarray(decode(image))
        image = image.convert("RGB")
        shorter = int(self.size / self.crop)
        scaled = [int(shorter * side / min(image.size)) for side in image.size]
        image = image.resize(scaled, INTERPOLATIONS[self.interpolation])
        left, upper = (round((side - self.size) / 2) for side in image.size)
        image = image.crop((left, upper, left + self.size, upper + self.size))
        return np.asarray(image)
