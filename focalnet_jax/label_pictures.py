"""Pictures of labelled pixels: colours, legends, and pictures side by side."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

# What has no label, and what is wrong where it has one.
_UNLABELLED, _WRONG = (128, 128, 128), (220, 30, 30)
_MARGIN, _SWATCH, _LINE = 8, 14, 22
_PAPER, _INK = (255, 255, 255), (30, 30, 30)
_MOST_NAMES = 40  # in a legend


class Legend(NamedTuple):
    """What labels mean, and what they look like.

    Attributes:
      names: of the classes, by label.
      colors: red, green and blue of each, uint8 `[classes, 3]`.
    """

    names: Sequence[str]
    colors: np.ndarray


class Labelled(NamedTuple):
    """An image and labels of its pixels.

    Attributes:
      image: uint8 `[h, w, 3]`, of any size.
      predicted: integers `[height, width]`.
      truth: the same where it is known, with numbers beyond the classes where a pixel has
        no label; None where nothing is known.
      title: stands above the pictures.
    """

    image: np.ndarray
    predicted: np.ndarray
    truth: np.ndarray | None = None
    title: str = ""


def coloured(labels: np.ndarray, legend: Legend) -> PIL.Image.Image:
    """A picture with the colour of each pixel's class; grey where there is none."""
    table = np.full((256, 3), _UNLABELLED, np.uint8)
    colors = np.asarray(legend.colors, np.uint8)[:256]
    table[: len(colors)] = colors
    return PIL.Image.fromarray(table[np.minimum(labels, 255)])


def with_palette(labels: np.ndarray, legend: Legend) -> PIL.Image.Image:
    """An image whose pixels are the labels, and which viewers show in their colours."""
    image = PIL.Image.fromarray(labels.astype(np.uint8))
    image.putpalette(np.asarray(legend.colors, np.uint8)[:256].tobytes())
    return image


def side_by_side(rows: Sequence[Labelled], legend: Legend, *, side: int) -> bytes:
    """A PNG of a row of pictures for each image, and a legend.

    A row has the image, the truth if it is known, what is predicted, and with the truth
    the errors: wrong pixels are red, and those without a label grey.

    Args:
      rows: the images.
      legend: names and colours of the classes.
      side: the longer side of each picture, in pixels, at most; smaller ones stay so, but
        for whole multiples.
    """
    names = ["image", "truth", "prediction", "errors"]
    if all(row.truth is None for row in rows):
        names = ["image", "prediction"]
    strips = [_strip(row, names, legend, side) for row in rows]
    width = max(strip.width for strip in strips)
    used = [row.predicted for row in rows]
    used += [row.truth for row in rows if row.truth is not None]
    strips.append(_legend_of(used, legend, width, has_truth=len(names) > 2))
    page = PIL.Image.new("RGB", (width, sum(strip.height for strip in strips)), _PAPER)
    top = 0
    for strip in strips:
        page.paste(strip, (0, top))
        top += strip.height
    return png(page)


def png(image: PIL.Image.Image) -> bytes:
    """The bytes of a PNG file."""
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _strip(
    row: Labelled, names: Sequence[str], legend: Legend, side: int
) -> PIL.Image.Image:
    """The pictures of one image beside each other, with a line of text above each."""
    height, width = row.predicted.shape
    factor = side / max(height, width)
    factor = int(factor) if factor >= 2 else min(factor, 1.0)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    image = PIL.Image.fromarray(row.image)
    pictures = {"image": image.resize(size, PIL.Image.Resampling.BICUBIC)}
    labels = {"prediction": coloured(row.predicted, legend)}
    if row.truth is not None:
        labels["truth"] = coloured(row.truth, legend)
        labels["errors"] = _errors(row, legend)
    nearest = PIL.Image.Resampling.NEAREST
    pictures |= {name: picture.resize(size, nearest) for name, picture in labels.items()}
    # A narrow picture still has room for its name.
    column = max(size[0], 80) + _MARGIN
    top = _LINE * (2 if row.title else 1)
    strip = PIL.Image.new(
        "RGB", (_MARGIN + len(names) * column, top + size[1] + _MARGIN), _PAPER
    )
    draw = PIL.ImageDraw.Draw(strip)
    if row.title:
        _write(draw, (_MARGIN, 3), row.title)
    for number, name in enumerate(names):
        if name in pictures:
            left = _MARGIN + number * column
            _write(draw, (left, top - _LINE + 3), name)
            strip.paste(pictures[name], (left, top))
    return strip


def _errors(row: Labelled, legend: Legend) -> PIL.Image.Image:
    assert row.truth is not None
    picture = np.full((*row.truth.shape, 3), 240, np.uint8)
    picture[row.truth != row.predicted] = _WRONG
    picture[row.truth >= len(legend.names)] = _UNLABELLED
    return PIL.Image.fromarray(picture)


def _legend_of(
    labels: Sequence[np.ndarray], legend: Legend, width: int, *, has_truth: bool
) -> PIL.Image.Image:
    """Colours with the names of the classes that occur, the most frequent ones first."""
    count = len(legend.names)
    pixels = np.concatenate([array.ravel() for array in labels])
    areas = np.bincount(np.minimum(pixels, 256), minlength=257)
    order = [int(label) for label in np.argsort(-areas[:count], kind="stable")]
    found = [label for label in order if areas[label]]
    entries = [(legend.names[n], tuple(map(int, legend.colors[n]))) for n in found]
    if len(entries) > _MOST_NAMES:
        more = len(entries) - _MOST_NAMES
        entries = [*entries[:_MOST_NAMES], (f"and {more:,} more classes", _PAPER)]
    if has_truth:
        entries += [("wrong", _WRONG), ("not labelled", _UNLABELLED)]
    places, left, top = [], _MARGIN, 0
    for name, _ in entries:
        room = _SWATCH + 3 * _MARGIN + int(_font().getlength(name))
        if left + room > width and left > _MARGIN:
            left, top = _MARGIN, top + _LINE
        places.append((left, top))
        left += room
    picture = PIL.Image.new("RGB", (width, top + _LINE + _MARGIN), _PAPER)
    draw = PIL.ImageDraw.Draw(picture)
    for (name, color), (left, top) in zip(entries, places):
        corner = (left + _SWATCH, top + _SWATCH)
        draw.rectangle(((left, top), corner), fill=color)
        _write(draw, (left + _SWATCH + _MARGIN, top - 1), name)
    return picture


def _write(draw: PIL.ImageDraw.ImageDraw, place: tuple[int, int], text: str) -> None:
    draw.text(place, text, fill=_INK, font=_font())


def _font() -> PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont:
    return PIL.ImageFont.load_default(13)
