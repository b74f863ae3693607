"""From an encoded image to `uint8 [size, size, 3]`, for training and for evaluation."""

import dataclasses
import io
import math

import numpy as np
import PIL.Image

INTERPOLATIONS = {
    "bicubic": PIL.Image.Resampling.BICUBIC,
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "nearest": PIL.Image.Resampling.NEAREST,
}


def decode(encoded: bytes) -> PIL.Image.Image:
    """Decodes a PNG, JPEG ... to an RGB image."""
    return PIL.Image.open(io.BytesIO(encoded)).convert("RGB")


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """Random resized crop and horizontal flip.

    The crop covers a uniform share of the image's area at an aspect ratio whose
    logarithm is uniform: Szegedy et al., arXiv 1409.4842, as in torchvision's
    `RandomResizedCrop`, which the official recipe uses through timm.

    Attributes:
      size: side of the result, in pixels.
      crop_area: least and greatest share of the image's area.
      crop_aspect: least and greatest width / height.
      flip: whether to mirror half of the images left to right.
      interpolation: `"bicubic"`, `"bilinear"` or `"nearest"`.
    """

    size: int
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    interpolation: str = "bicubic"

    def __call__(self, encoded: bytes, rng: np.random.Generator) -> np.ndarray:
        """Returns `uint8 [size, size, 3]`."""
        image = decode(encoded)
        image = image.crop(self._crop_box(*image.size, rng))
        resampling = INTERPOLATIONS[self.interpolation]
        image = image.resize((self.size, self.size), resampling)
        pixels = np.asarray(image)
        if self.flip and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        return np.ascontiguousarray(pixels)

    def _crop_box(self, width, height, rng) -> tuple[int, int, int, int]:
        """Left, upper, right and lower edge of the crop."""
        for _ in range(10):
            area = width * height * rng.uniform(*self.crop_area)
            aspect = math.exp(rng.uniform(*np.log(self.crop_aspect)))
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


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """Resizes the shorter side to `size / crop` and cuts out the middle.

    As torchvision's `Resize` and `CenterCrop`, with which the official code evaluates.

    Attributes:
      size: side of the result, in pixels.
      crop: share of the resized shorter side that is kept: 224 / 256 in the recipe.
      interpolation: `"bicubic"`, `"bilinear"` or `"nearest"`.
    """

    size: int
    crop: float = 0.875
    interpolation: str = "bicubic"

    def __call__(self, image: bytes | PIL.Image.Image) -> np.ndarray:
        """Makes an encoded or a decoded image `uint8 [size, size, 3]`."""
        image = decode(image) if isinstance(image, bytes) else image.convert("RGB")
        shorter = int(self.size / self.crop)
        scaled = [int(shorter * side / min(image.size)) for side in image.size]
        image = image.resize(scaled, INTERPOLATIONS[self.interpolation])
        left, upper = (round((side - self.size) / 2) for side in image.size)
        image = image.crop((left, upper, left + self.size, upper + self.size))
        return np.asarray(image)
