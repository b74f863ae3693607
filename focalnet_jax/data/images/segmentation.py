"""Images with labels of their pixels, for training and for evaluation.

The pixels are those of mmsegmentation 1.2.2, to the last bit if the draws are equal: its
`RandomResize`, `RandomCrop`, `RandomFlip` and `PhotoMetricDistortion` for training, and
`Resize` for evaluation. Images are resized bilinearly and labels to the nearest, both
without antialiasing, by OpenCV, as there. One thing differs: an EXIF orientation is not
applied to an image, since there it turns the image alone, and not its mask.
"""

import dataclasses
import functools
import importlib
import io
from types import ModuleType
from typing import NamedTuple

import numpy as np
import PIL.ExifTags
import PIL.Image

from focalnet_jax.data.bad_records import BadRecordError
from focalnet_jax.data.images.decoding import decode
from focalnet_jax.data.sources.mask_classes import IGNORED
from focalnet_jax.errors import SetupError
from focalnet_jax.image_size import ImageSize, height_and_width

_REDRAWS = 10  # of a crop with too much of one class
_TURNED = range(5, 9)  # EXIF orientations that swap height and width


@functools.cache
def segmentation_operations() -> ModuleType:
    """The module `opencv`.

    Raises:
      SetupError: OpenCV is not installed.
    """
    try:
        return importlib.import_module("focalnet_jax.data.images.opencv")
    except ImportError as error:
        raise SetupError(
            f"segmentation resizes images by OpenCV, which is not there ({error}):\n"
            "  pip install 'focalnet_jax[fast]'"
        ) from error


def resized_size(size: tuple[int, int], scale: tuple[int, int]) -> tuple[int, int]:
    """The height and width of an image that is resized to fit into a scale.

    It keeps its proportions, and becomes as large as possible such that neither its
    longer side exceeds that of the scale, nor its shorter one.

    Args:
      size: height and width.
      scale: two sides in any order.
    """
    factor = min(max(scale) / max(size), min(scale) / min(size))
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width


class Distortion(NamedTuple):
    """Photometric distortions; None for each that an image doesn't get.

    Attributes:
      brightness: levels that are added.
      contrast: a factor of the levels.
      contrast_first: whether contrast comes before saturation and hue, or after them.
      saturation: a factor.
      hue: steps of 2 degrees.
    """

    brightness: float | None = None
    contrast: float | None = None
    contrast_first: bool = False
    saturation: float | None = None
    hue: int | None = None

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Distortion":
        """Draws each distortion for half of the images."""
        brightness = rng.uniform(-32, 32) if rng.integers(2) else None
        contrast_first = bool(rng.integers(2))
        contrast = None
        if contrast_first:
            contrast = rng.uniform(0.5, 1.5) if rng.integers(2) else None
        saturation = rng.uniform(0.5, 1.5) if rng.integers(2) else None
        hue = int(rng.integers(-18, 18)) if rng.integers(2) else None
        if not contrast_first:
            contrast = rng.uniform(0.5, 1.5) if rng.integers(2) else None
        return cls(brightness, contrast, contrast_first, saturation, hue)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """The distorted image, uint8 `[h, w, 3]`; levels are clipped after each step."""
        images = segmentation_operations()
        before: list[np.ndarray] = []
        after: list[np.ndarray] = []
        if self.brightness is not None:
            before.append(images.scaled_levels(offset=self.brightness))
        if self.contrast is not None:
            place = before if self.contrast_first else after
            place.append(images.scaled_levels(self.contrast))
        image = images.map_levels(image, before)
        if self.saturation is not None:
            image = images.saturate(image, self.saturation)
        if self.hue is not None:
            image = images.turn_hue(image, self.hue)
        return images.map_levels(image, after)


class Draw(NamedTuple):
    """What is drawn for an image and its labels, after they have been resized.

    Attributes:
      corner: the row and the column at which the crop begins.
      flip: whether the crop is mirrored left to right.
      distortion: of the image; None for none.
    """

    corner: tuple[int, int]
    flip: bool
    distortion: Distortion | None


class Cropped(NamedTuple):
    """A training crop.

    Attributes:
      image: uint8 `[h, w, 3]`; 0 where `valid` ends.
      label: uint8 `[h, w]`; 255 where `valid` ends, and where a pixel doesn't count.
      valid: the height and width of the crop's part inside of the image, int32 `[2]`.
    """

    image: np.ndarray
    label: np.ndarray
    valid: np.ndarray


@dataclasses.dataclass(frozen=True)
class TrainSegmentationTransform:
    """Random resize, crop and flip of an image and its labels, and its distortion.

    Attributes:
      crop_size: of the result, in pixels: a number for a square, or height and width.
      scale: an image is resized to fit into it, two sides in any order, times a number.
      ratio_range: the least and the greatest of these numbers.
      category_share: a crop is drawn anew, up to ten times, if one class has this share
        of the pixels that count, or more, or is alone. 1 takes the first crop.
      flip: whether half of the images are mirrored left to right.
      photometric: whether brightness, contrast, saturation and hue are changed, each in
        half of the images.
    """

    crop_size: ImageSize = 512
    scale: tuple[int, int] = (2048, 512)
    ratio_range: tuple[float, float] = (0.5, 2.0)
    category_share: float = 0.75
    flip: bool = True
    photometric: bool = True

    def load_operations(self) -> ModuleType:
        """The module with the operations on pixels; SetupError without OpenCV."""
        return segmentation_operations()

    def __call__(
        self, encoded: bytes, label: np.ndarray, rng: np.random.Generator
    ) -> Cropped:
        """Makes a crop.

        Args:
          encoded: the bytes of the image.
          label: of its pixels, uint8 `[h, w]`.
          rng: makes the draws.

        Raises:
          BadRecordError: the bytes are not a whole image, or not of the labels' size.
        """
        images = segmentation_operations()
        image = decode_with_label(encoded, label)
        size = self.draw_size(image.shape[:2], rng)
        image, label = images.resize_image(image, size), images.resize_mask(label, size)
        return self.apply(image, label, self.draw(label, rng))

    def draw_size(
        self, size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[int, int]:
        """Draws the height and width that an image of some size is resized to."""
        least, greatest = self.ratio_range
        ratio = rng.random() * (greatest - least) + least
        long, short = (max(1, int(side * ratio)) for side in self.scale)
        return resized_size(size, (long, short))

    def draw(self, label: np.ndarray, rng: np.random.Generator) -> Draw:
        """Draws what happens to a resized image with these labels, uint8 `[h, w]`."""
        corner = self._draw_corner(label, rng)
        flip = self.flip and rng.random() < 0.5
        distortion = Distortion.draw(rng) if self.photometric else None
        return Draw(corner, flip, distortion)

    def _draw_corner(
        self, label: np.ndarray, rng: np.random.Generator
    ) -> tuple[int, int]:
        """The row and the column at which a crop begins."""

        def draw() -> tuple[int, int]:
            top, left = (
                int(rng.integers(0, max(side - crop, 0) + 1))
                for side, crop in zip(label.shape, height_and_width(self.crop_size))
            )
            return top, left

        corner = draw()
        if self.category_share < 1:
            for _ in range(_REDRAWS):
                if self._is_mixed(self._crop(label, corner)):
                    break
                corner = draw()
        return corner

    def _is_mixed(self, label: np.ndarray) -> bool:
        """Whether there are several classes, and none has too large a share."""
        counts = segmentation_operations().count_labels(label)[:IGNORED]
        if np.count_nonzero(counts) < 2:
            return False
        return bool(counts.max() / counts.sum() < self.category_share)

    def _crop(self, array: np.ndarray, corner: tuple[int, int]) -> np.ndarray:
        top, left = corner
        height, width = height_and_width(self.crop_size)
        return array[top : top + height, left : left + width]

    def apply(self, image: np.ndarray, label: np.ndarray, draw: Draw) -> Cropped:
        """The drawn crop of an image, `[h, w, 3]`, and of its labels, `[h, w]`."""
        images = segmentation_operations()
        image, label = (self._crop(array, draw.corner) for array in (image, label))
        if draw.flip:
            image, label = images.mirror(image), images.mirror(label)
        if draw.distortion is not None:
            image = draw.distortion.apply(image)
        sides = height_and_width(self.crop_size)
        return Cropped(
            placed(image, sides, fill=0),
            placed(label, sides, fill=IGNORED),
            np.array(label.shape, np.int32),
        )


def placed(array: np.ndarray, canvas: tuple[int, int], *, fill: int) -> np.ndarray:
    """An array `[h, w, ...]` in the upper left corner of a canvas.

    Args:
      array: an image or labels.
      canvas: its height and width.
      fill: what is right of the array and below it.

    Raises:
      ValueError: the canvas is too small.
    """
    height, width = array.shape[:2]
    if (height, width) == canvas:
        return np.ascontiguousarray(array)
    if height > canvas[0] or width > canvas[1]:
        raise ValueError(f"{height} x {width} pixels do not fit on a canvas of {canvas}")
    whole = np.full((*canvas, *array.shape[2:]), fill, array.dtype)
    whole[:height, :width] = array
    return whole


def decode_with_label(encoded: bytes, label: np.ndarray) -> np.ndarray:
    """Decodes an image to `uint8 [h, w, 3]`, which has to be of its labels' size.

    Raises:
      BadRecordError: the bytes are not a whole image, or it is of another size.
    """
    if not encoded:
        raise BadRecordError("its image has zero bytes")
    image = decode(encoded)
    if image.shape[:2] == label.shape:
        return image
    (height, width, _), (mask_height, mask_width) = image.shape, label.shape
    text = (
        f"its mask has {mask_width} x {mask_height} pixels, but the image "
        f"{width} x {height}"
    )
    if (mask_width, mask_height) == (height, width) and _is_turned(encoded):
        text += (
            ", which its EXIF orientation would turn: turn the file itself, for example "
            "by magick mogrify -auto-orient"
        )
    raise BadRecordError(text)


def _is_turned(encoded: bytes) -> bool:
    """Whether viewers swap height and width, since EXIF data say so."""
    with PIL.Image.open(io.BytesIO(encoded)) as image:
        return image.getexif().get(PIL.ExifTags.Base.Orientation) in _TURNED


@dataclasses.dataclass(frozen=True)
class EvalSegmentationTransform:
    """Resizes an image to fit into a scale, and puts it on a canvas.

    Attributes:
      scale: two sides in any order, as of `resized_size`.
      canvas: height and width; what is right of the image and below it is 0.
    """

    scale: tuple[int, int]
    canvas: tuple[int, int]

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Resizes an image `uint8 [h, w, 3]`.

        Returns:
          The canvas, uint8 `[height, width, 3]`; and the height and width of the resized
          image, int32 `[2]`.

        Raises:
          ValueError: the canvas is too small for the resized image.
        """
        height, width, _ = image.shape
        size = resized_size((height, width), self.scale)
        resized = segmentation_operations().resize_image(image, size)
        return placed(resized, self.canvas, fill=0), np.array(size, np.int32)
