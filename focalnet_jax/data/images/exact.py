"""Operations on images by PIL; the results equal those of timm's transforms.

Images are PIL's, in RGB. The module `fast` has the same functions on numpy arrays.
"""

import numpy as np
import PIL.Image
from PIL import ImageEnhance, ImageOps

from focalnet_jax.data.images.decoding import ChooseBox, decode_crop

Image = PIL.Image.Image
Fill = tuple[int, int, int]
Matrix = tuple[float, float, float, float, float, float]  # the rows (a, b, c), (d, e, f)

INTERPOLATIONS = {
    "bicubic": PIL.Image.Resampling.BICUBIC,
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "nearest": PIL.Image.Resampling.NEAREST,
}
"""The filters of PIL by name, for training."""


def crop_and_resize(
    encoded: bytes, choose_box: ChooseBox, *, size: tuple[int, int], interpolation: str
) -> Image:
    """Decodes an image, crops it and resizes the crop, antialiased.

    Args:
      encoded: the bytes of the image.
      choose_box: a function from the width and height of the image to the left, upper,
        right and lower edge of the crop, in pixels.
      size: height and width of the result, in pixels.
      interpolation: a name in `exact.INTERPOLATIONS`.
    """
    image = PIL.Image.fromarray(decode_crop(encoded, choose_box))
    return image.resize(size[::-1], INTERPOLATIONS[interpolation])


def to_array(image: Image) -> np.ndarray:
    """The pixels, `uint8 [h, w, 3]`."""
    return np.asarray(image)


def size_of(image: Image) -> tuple[int, int]:
    """The width and the height of an image, in pixels."""
    return image.size


def mirror(image: Image) -> Image:
    """Mirrors an image left to right."""
    return image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)


def affine(image: Image, matrix: Matrix, *, fill: Fill, interpolation: str) -> Image:
    """Takes each pixel from the point to which `matrix` maps it.

    Points are in pixels from the upper left corner. A pixel whose point is outside of the
    image becomes `fill`.
    """
    return image.transform(
        image.size,
        PIL.Image.Transform.AFFINE,
        matrix,
        resample=INTERPOLATIONS[interpolation],
        fillcolor=fill,
    )


def rotate(image: Image, degrees: float, *, fill: Fill, interpolation: str) -> Image:
    """Turns an image anticlockwise about its centre."""
    return image.rotate(degrees, INTERPOLATIONS[interpolation], fillcolor=fill)


def auto_contrast(image: Image) -> Image:
    """Stretches the levels of each channel to the whole range."""
    return ImageOps.autocontrast(image)


def equalize(image: Image) -> Image:
    """Spreads the levels of each channel evenly."""
    return ImageOps.equalize(image)


def map_levels(image: Image, table: tuple[int, ...]) -> Image:
    """Replaces each level by its entry in a table of 256 levels."""
    return image.point([*table] * 3)


def brightness(image: Image, factor: float) -> Image:
    """Blends an image with black; factor 0 gives black, 1 the image itself."""
    return ImageEnhance.Brightness(image).enhance(factor)


def contrast(image: Image, factor: float) -> Image:
    """Blends an image with its mean grey level."""
    return ImageEnhance.Contrast(image).enhance(factor)


def color(image: Image, factor: float) -> Image:
    """Blends an image with its greyscale version."""
    return ImageEnhance.Color(image).enhance(factor)


def sharpness(image: Image, factor: float) -> Image:
    """Blends an image with itself smoothed over 3 x 3 pixels."""
    return ImageEnhance.Sharpness(image).enhance(factor)
