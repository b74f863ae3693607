"""The picture of a confusion matrix, for two classes as for a hundred."""

import html
import math
from collections.abc import Sequence

import numpy as np

# The picture is so wide, in its own units, which a page scales to what it has.
_WIDTH = 900
# Cells have numbers in them, if there are so many classes at most.
_WITH_NUMBERS = 40
_LARGEST_CELL = 64
_LONGEST_NAME = 22  # letters
_RIGHT, _WRONG = "#2e7d4f", "#c2571a"


def matrix(classes: Sequence[str], counts: np.ndarray) -> str:
    """Draws a confusion matrix as an SVG element.

    A row is a class, and its cells say what its images were taken for. The colour of a
    cell is the share of the row. Whoever points at a cell reads what it means. Text has
    the colour of the page's text.

    Args:
      classes: the name of each class.
      counts: int `[truth, answer]`.
    """
    names = [_short(name) for name in classes]
    count = len(names)
    font = min(13.0, max(5.0, 0.62 * (_WIDTH - 150) / count))
    margin = 12 + 0.6 * font * max(len(name) for name in names)
    cell = min(_LARGEST_CELL, (_WIDTH - margin) / count)
    # Names that would lie on each other are left out; those of cells are in their titles.
    every = math.ceil(font / cell)
    parts = [
        _names_of(classes[row], names[row], margin + (row + 0.5) * cell, margin, font)
        for row in range(0, count, every)
    ]
    for row in range(count):
        of_row = counts[row].sum()
        for column in np.flatnonzero(counts[row]).tolist():
            parts.append(
                _cell(
                    margin + column * cell,
                    margin + row * cell,
                    cell,
                    number=int(counts[row, column]),
                    share=counts[row, column] / of_row,
                    is_right=row == column,
                    title=f"{classes[row]} taken for {classes[column]}",
                    has_number=count <= _WITH_NUMBERS,
                )
            )
    side = margin + count * cell
    frame = (
        f'<rect x="{margin:.1f}" y="{margin:.1f}" width="{count * cell:.1f}" '
        f'height="{count * cell:.1f}" fill="none" stroke="currentColor" '
        'stroke-opacity=".35"/>'
    )
    return (
        f'<svg class="matrix" viewBox="0 0 {side + 2:.0f} {side + 2:.0f}" '
        f'style="max-width:{side + 2:.0f}px" font-size="{font:.1f}" fill="currentColor" '
        f'role="img" aria-label="confusion matrix">{_grid(margin, cell, count)}'
        f"{''.join(parts)}{frame}</svg>"
    )


def _names_of(title: str, name: str, middle: float, margin: float, font: float) -> str:
    """The name of a class beside its row and above its column."""
    shown = f"{html.escape(name)}<title>{html.escape(title)}</title></text>"
    at, edge = f"{middle + font / 3:.1f}", f"{margin - 5:.1f}"
    return (
        f'<text x="{edge}" y="{at}" text-anchor="end">{shown}'
        f'<text transform="translate({at} {edge}) rotate(-90)">{shown}'
    )


def _grid(margin: float, cell: float, count: int) -> str:
    """Lines between the cells: of all of them, or of every tenth if they are many."""
    every = 1 if count <= _WITH_NUMBERS else 10
    end = margin + count * cell
    lines = []
    for index in range(every, count, every):
        at = margin + index * cell
        lines.append(f"M{margin:.1f} {at:.1f}H{end:.1f}M{at:.1f} {margin:.1f}V{end:.1f}")
    path = "".join(lines)
    return f'<path d="{path}" stroke="currentColor" stroke-opacity=".15" fill="none"/>'


def _cell(
    x: float,
    y: float,
    side: float,
    *,
    number: int,
    share: float,
    is_right: bool,
    title: str,
    has_number: bool,
) -> str:
    color = _RIGHT if is_right else _WRONG
    title = html.escape(f"{title}: {number:,} ({share:.0%})")
    # A single mistake among many images has to be seen, too.
    opacity = 0.12 + 0.68 * share if is_right else 0.3 + 0.6 * share
    text = ""
    if has_number:
        text = (
            f'<text x="{x + side / 2:.1f}" y="{y + side / 2:.1f}" '
            f'text-anchor="middle" dominant-baseline="central">{number:,}</text>'
        )
    return (
        f'<g><title>{title}</title><rect x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" '
        f'height="{side:.1f}" fill="{color}" fill-opacity="{opacity:.2f}"/>{text}</g>'
    )


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
