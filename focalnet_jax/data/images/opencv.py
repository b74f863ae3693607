"""Operations on images and masks by OpenCV: those of mmsegmentation, to the last bit.

Images are `uint8 [h, w, 3]` in RGB, masks `uint8 [h, w]`. mmsegmentation's images are in
BGR; OpenCV computes the same levels in either order.
"""

import functools
from collections.abc import Sequence

import cv2
import numpy as np

# The pipeline has its own threads and processes for all cores.
cv2.setNumThreads(0)

_HUES = 180  # OpenCV's hues of 8 bits are half of the degrees.
_LEVELS = np.arange(256, dtype=np.uint8)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes an image to height and width, bilinear and not antialiased."""
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a mask to height and width: each pixel is one of the mask's own."""
    return cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST)


def mirror(image: np.ndarray) -> np.ndarray:
    """Mirrors an image or a mask left to right."""
    return cv2.flip(image, 1)


def count_labels(mask: np.ndarray) -> np.ndarray:
    """How many pixels have each label, int64 `[256]`, of fewer than 2**24 pixels."""
    return cv2.calcHist([mask], [0], None, [256], [0, 256]).ravel().astype(np.int64)


def scaled_levels(factor: float = 1.0, offset: float = 0.0) -> np.ndarray:
    """`level * factor + offset` of each level, clipped and cut off: uint8 `[256]`."""
    levels = _LEVELS.astype(np.float32) * factor + offset
    return np.clip(levels, 0, 255).astype(np.uint8)


def map_levels(image: np.ndarray, tables: Sequence[np.ndarray]) -> np.ndarray:
    """Replaces each level by its entry in tables, uint8 `[256]`, one after the other.

    It is the image itself where there are no tables.
    """
    if not tables:
        return image
    return cv2.LUT(image, functools.reduce(lambda first, then: then[first], tables))


def saturate(image: np.ndarray, factor: float) -> np.ndarray:
    """Scales the saturation of HSV, of 8 bits."""
    return _in_hsv(image, 1, scaled_levels(factor))


def turn_hue(image: np.ndarray, steps: int) -> np.ndarray:
    """Turns the hue of HSV by steps of 2 degrees."""
    return _in_hsv(image, 0, ((_LEVELS.astype(int) + steps) % _HUES).astype(np.uint8))


def _in_hsv(image: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
    tables = np.tile(_LEVELS[:, None], 3)
    tables[:, channel] = table
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), tables[None])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
