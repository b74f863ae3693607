"""From an image to what a model takes, outside of a training run."""

import dataclasses
import os
import pathlib

import numpy as np
import PIL.Image

from focalnet_jax.data.images.transforms import EvalTransform

# Of pixels in [0, 1]; red, green and blue over ImageNet.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The evaluation transform and normalisation that a model was trained for.

    Attributes:
      image_size: side of the result, in pixels.
      mean, std: of pixels in [0, 1], by channel.
      interpolation: `"bicubic"`, `"bilinear"` or `"nearest"`.
      crop: share of the resized shorter side that is kept.
    """

    image_size: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    crop: float = 0.875

    def __call__(
        self, image: str | os.PathLike | bytes | PIL.Image.Image | np.ndarray
    ) -> np.ndarray:
        """Makes an image float32 `[size, size, 3]`.

        Args:
          image: a path, an encoded or a PIL image, or `uint8 [h, w, 3]`.
        """
        if isinstance(image, np.ndarray):
            image = PIL.Image.fromarray(image)
        if isinstance(image, (str, os.PathLike)):
            image = pathlib.Path(image).read_bytes()
        transform = EvalTransform(
            self.image_size, crop=self.crop, interpolation=self.interpolation
        )
        return self.normalize(transform(image))

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """Makes `uint8 [..., 3]` float32, `(x / 255 - mean) / std` by channel."""
        mean, std = np.float32(self.mean), np.float32(self.std)
        return (np.float32(pixels) / np.float32(255) - mean) / std
