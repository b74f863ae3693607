"""Operations on images by OpenCV and fast_image_resize: similar to PIL's, and faster.

The functions are those of `exact`, on arrays `uint8 [h, w, 3]`. Operations on levels
equal PIL's, or differ by one level. Geometric operations differ for two reasons: the
cubic kernel has a = -0.75 here and -0.5 in PIL, and the border is treated otherwise.
"""

import functools
import math
import threading

import cv2
import cykooz_resizer
import numpy as np

from focalnet_jax.data.images.decoding import ChooseBox, decode_crop

Image = np.ndarray
Fill = tuple[int, int, int]
Matrix = tuple[float, float, float, float, float, float]  # the rows (a, b, c), (d, e, f)

# The pipeline has its own threads and processes for all cores.
cv2.setNumThreads(0)

_FILTERS = {  # They are antialiased, as PIL's are.
    "bicubic": cykooz_resizer.FilterType.catmull_rom,
    "bilinear": cykooz_resizer.FilterType.bilinear,
}
_INTERPOLATIONS = {
    "bicubic": cv2.INTER_CUBIC,
    "bilinear": cv2.INTER_LINEAR,
    "nearest": cv2.INTER_NEAREST,
}
# A Resizer keeps buffers and serves one caller at a time, so each thread has its own.
_of_thread = threading.local()


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
    crop = decode_crop(encoded, choose_box)
    height, width, _ = crop.shape
    rgb = cykooz_resizer.PixelType.U8x3
    source = cykooz_resizer.ImageData(width, height, rgb, crop.tobytes())
    target = cykooz_resizer.ImageData(size[1], size[0], rgb)
    if not hasattr(_of_thread, "resizer"):
        _of_thread.resizer = cykooz_resizer.Resizer()
    _of_thread.resizer.resize(source, target, _resize_options(interpolation))
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(*size, 3)


@functools.cache
def _resize_options(interpolation: str) -> cykooz_resizer.ResizeOptions:
    if interpolation == "nearest":
        return cykooz_resizer.ResizeOptions(cykooz_resizer.ResizeAlg.nearest())
    algorithm = cykooz_resizer.ResizeAlg.convolution(_FILTERS[interpolation])
    return cykooz_resizer.ResizeOptions(algorithm)


def to_array(image: Image) -> np.ndarray:
    """The pixels, `uint8 [h, w, 3]`."""
    return image


def size_of(image: Image) -> tuple[int, int]:
    """The width and the height of an image, in pixels."""
    height, width, _ = image.shape
    return width, height


def mirror(image: Image) -> Image:
    """Mirrors an image left to right."""
    return cv2.flip(image, 1)


def affine(image: Image, matrix: Matrix, *, fill: Fill, interpolation: str) -> Image:
    """Takes each pixel from the point to which `matrix` maps it.

    Points are in pixels from the upper left corner. A pixel whose point is outside of the
    image becomes `fill`.
    """
    a, b, c, d, e, f = matrix
    # OpenCV's points are in pixels from the centre of the first pixel.
    c += (a + b - 1) / 2
    f += (d + e - 1) / 2
    return cv2.warpAffine(
        image,
        np.array([[a, b, c], [d, e, f]]),
        size_of(image),
        flags=_INTERPOLATIONS[interpolation] | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=fill,
    )


def rotate(image: Image, degrees: float, *, fill: Fill, interpolation: str) -> Image:
    """Turns an image anticlockwise about its centre."""
    x, y = (side / 2 for side in size_of(image))
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
    return affine(image, matrix, fill=fill, interpolation=interpolation)


def auto_contrast(image: Image) -> Image:
    """Stretches the levels of each channel to the whole range."""
    tables = np.tile(np.arange(256, dtype=np.uint8)[:, None], 3)
    for channel in range(3):
        least, greatest, _, _ = cv2.minMaxLoc(cv2.extractChannel(image, channel))
        if greatest > least:
            scale = 255 / (greatest - least)
            levels = np.arange(256) * scale - least * scale
            tables[:, channel] = np.clip(np.trunc(levels), 0, 255)
    return cv2.LUT(image, tables[None])


def equalize(image: Image) -> Image:
    """Spreads the levels of each channel evenly."""
    return cv2.merge([_equalize(cv2.extractChannel(image, c)) for c in range(3)])


def _equalize(channel: np.ndarray) -> np.ndarray:
    counts = cv2.calcHist([channel], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    occupied = counts[counts > 0]
    step = (counts.sum() - occupied[-1]) // 255
    if len(occupied) <= 1 or step == 0:
        return channel
    before = np.cumsum(counts) - counts
    return cv2.LUT(
        channel, np.minimum((step // 2 + before) // step, 255).astype(np.uint8)
    )


def map_levels(image: Image, table: tuple[int, ...]) -> Image:
    """Replaces each level by its entry in a table of 256 levels."""
    return cv2.LUT(image, np.array(table, np.uint8))


def brightness(image: Image, factor: float) -> Image:
    """Blends an image with black; factor 0 gives black, 1 the image itself."""
    return _blend_with_level(image, 0, factor)


def contrast(image: Image, factor: float) -> Image:
    """Blends an image with its mean grey level."""
    mean = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
    return _blend_with_level(image, int(mean + 0.5), factor)


def _blend_with_level(image: Image, level: int, factor: float) -> Image:
    levels = level + np.float32(factor) * np.arange(-level, 256 - level, dtype=np.float32)
    return cv2.LUT(image, np.clip(levels, 0, 255).astype(np.uint8))


def color(image: Image, factor: float) -> Image:
    """Blends an image with its greyscale version."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return _blend(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), image, factor)


def sharpness(image: Image, factor: float) -> Image:
    """Blends an image with itself smoothed over 3 x 3 pixels."""
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
    smooth = cv2.filter2D(image, -1, kernel)
    # PIL does not smooth the border.
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        smooth[edge] = image[edge]
    return _blend(smooth, image, factor)


def _blend(degenerate: Image, image: Image, factor: float) -> Image:
    # PIL cuts fractions off, but OpenCV rounds. With almost a half subtracted, OpenCV
    # rounds down, too, and whole values stay what they are.
    return cv2.addWeighted(degenerate, 1 - factor, image, factor, -0.499)
