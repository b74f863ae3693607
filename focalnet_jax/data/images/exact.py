"""Operations on images by PIL: what timm's transforms compute, to the last bit.

Images are PIL's, in RGB. `fast` has the same functions on numpy arrays.
"""

import numpy as np
import PIL.Image
from PIL import ImageEnhance, ImageOps

from focalnet_jax.data.images.decoding import decode

Image = PIL.Image.Image
Fill = tuple[int, int, int]
Matrix = tuple[float, float, float, float, float, float]  # two rows

INTERPOLATIONS = {
    "bicubic": PIL.Image.Resampling.BICUBIC,
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "nearest": PIL.Image.Resampling.NEAREST,
}


def crop_and_resize(
    encoded: bytes, choose_box, *, size: int, interpolation: str
) -> Image:
    """Decodes, and resizes `choose_box(width, height)` to a square, antialiased."""
    pixels = decode(encoded)
    left, upper, right, lower = choose_box(pixels.shape[1], pixels.shape[0])
    image = PIL.Image.fromarray(pixels[upper:lower, left:right])
    return image.resize((size, size), INTERPOLATIONS[interpolation])


def to_array(image: Image) -> np.ndarray:
    """`uint8 [h, w, 3]`."""
    return np.asarray(image)


def size_of(image: Image) -> tuple[int, int]:
    """Width and height."""
    return image.size


def mirror(image: Image) -> Image:
    """Left becomes right."""
    return image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)


def affine(image: Image, matrix: Matrix, *, fill: Fill, interpolation: str) -> Image:
    """Takes each pixel from where `matrix` sends it, in pixels from the corner."""
    return image.transform(
        image.size,
        PIL.Image.Transform.AFFINE,
        matrix,
        resample=INTERPOLATIONS[interpolation],
        fillcolor=fill,
    )


def rotate(image: Image, degrees: float, *, fill: Fill, interpolation: str) -> Image:
    """Turns the image anticlockwise about its middle."""
    return image.rotate(degrees, INTERPOLATIONS[interpolation], fillcolor=fill)


def auto_contrast(image: Image) -> Image:
    """Stretches each channel to the whole range."""
    return ImageOps.autocontrast(image)


def equalize(image: Image) -> Image:
    """Spreads the grey levels of each channel evenly."""
    return ImageOps.equalize(image)


def map_levels(image: Image, table: tuple[int, ...]) -> Image:
    """Replaces each of the 256 levels by its entry in a table."""
    return image.point([*table] * 3)


def brightness(image: Image, factor: float) -> Image:
    """Blends with black: 0 is black, 1 the image."""
    return ImageEnhance.Brightness(image).enhance(factor)


def contrast(image: Image, factor: float) -> Image:
    """Blends with the image's mean grey."""
    return ImageEnhance.Contrast(image).enhance(factor)


def color(image: Image, factor: float) -> Image:
    """Blends with the image in grey."""
    return ImageEnhance.Color(image).enhance(factor)


def sharpness(image: Image, factor: float) -> Image:
    """Blends with the image smoothed over 3 x 3 pixels."""
    return ImageEnhance.Sharpness(image).enhance(factor)
