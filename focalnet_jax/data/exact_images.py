"""Operations on images by PIL: what timm's transforms compute, to the last bit.

Images are PIL's, in RGB. `fast_images` has the same functions on numpy arrays.
"""

import numpy as np
import PIL.Image
from PIL import ImageEnhance, ImageOps

from focalnet_jax.data.decoding import decode

Image = PIL.Image.Image
Fill = tuple[int, int, int]

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


def mirror(image: Image) -> Image:
    """Left becomes right."""
    return image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)


def shear_x(image: Image, factor: float, *, fill: Fill, interpolation: str) -> Image:
    """Moves each row by `factor` times its height."""
    return _affine(image, (1, factor, 0, 0, 1, 0), fill, interpolation)


def shear_y(image: Image, factor: float, *, fill: Fill, interpolation: str) -> Image:
    """Moves each column by `factor` times its distance from the left."""
    return _affine(image, (1, 0, 0, factor, 1, 0), fill, interpolation)


def translate_x(image: Image, share: float, *, fill: Fill, interpolation: str) -> Image:
    """Moves the image to the left by a share of its width."""
    return _affine(image, (1, 0, share * image.width, 0, 1, 0), fill, interpolation)


def translate_y(image: Image, share: float, *, fill: Fill, interpolation: str) -> Image:
    """Moves the image upwards by a share of its height."""
    return _affine(image, (1, 0, 0, 0, 1, share * image.height), fill, interpolation)


def rotate(image: Image, degrees: float, *, fill: Fill, interpolation: str) -> Image:
    """Turns the image anticlockwise about its middle."""
    return image.rotate(degrees, INTERPOLATIONS[interpolation], fillcolor=fill)


def _affine(image: Image, matrix, fill: Fill, interpolation: str) -> Image:
    return image.transform(
        image.size,
        PIL.Image.Transform.AFFINE,
        matrix,
        resample=INTERPOLATIONS[interpolation],
        fillcolor=fill,
    )


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
