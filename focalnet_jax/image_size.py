"""The size of images in pixels: one number for squares, else a height and a width."""

import ast
import operator
import re
from typing import Any

from focalnet_jax.values import NotAllowed, Values

ImageSize = int | tuple[int, int]

# Larger ones are most likely a mistake. No accelerator holds the maps of such an image.
LARGEST_SIDE = 16_384


def parse_image_size(given: Any) -> ImageSize:
    """A size in its shortest form: an int for a square, else `(height, width)`.

    Args:
      given: a whole number, a pair of them, or the text of either: `"224"`,
        `"(360, 880)"`, `"360x880"`.

    Raises:
      ValueError: it is no size. The message is the end of a sentence that begins with
        what was given.
    """
    if isinstance(given, str):
        pair = re.fullmatch(r"\s*([0-9]+)\s*[xX]\s*([0-9]+)\s*", given)
        try:
            given = pair.groups() if pair else ast.literal_eval(given.strip())
            given = tuple(map(int, given)) if pair else given
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            given = None
    sides = given if isinstance(given, (tuple, list)) else (given, given)
    try:
        sides = tuple(operator.index(s) for s in sides if not isinstance(s, bool))
    except TypeError:
        sides = ()
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(
            "is no size in pixels: it is a whole number, such as 224, or (height, "
            "width), such as (360, 880)"
        )
    if max(sides) > LARGEST_SIDE:
        raise ValueError(
            f"is too large: an image has at most {LARGEST_SIDE:,} pixels a side"
        )
    height, width = sides
    return height if height == width else (height, width)


class ImageSizes(Values):
    """Sizes of images: a number for squares, or height and width."""

    def words(self) -> str:
        return f"a whole number or (height, width), from 1 to {LARGEST_SIDE:,}"

    def _convert(self, value: Any) -> ImageSize:
        value = value.tolist() if hasattr(value, "tolist") else value
        try:
            return parse_image_size(value)
        except ValueError as error:
            raise NotAllowed(str(error)) from error


def height_and_width(size: ImageSize) -> tuple[int, int]:
    """Both sides of a size."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def size_spelt(size: ImageSize) -> str:
    """A size to read: `224 x 224`."""
    return " x ".join(map(str, height_and_width(size)))
