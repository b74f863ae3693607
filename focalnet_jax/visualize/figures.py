"""Figures of what a FocalNet looks at, made with matplotlib.

They have no background, and a grey that can be read on white and on black, so that they
fit on pages of both kinds.
"""

from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np

from focalnet_jax.errors import SetupError, counted
from focalnet_jax.pages import SIGNED, UNSIGNED, Figure
from focalnet_jax.visualize.inside import BlockMaps, Inside, place

INK = "#777777"
_TILE = 1.9  # the width of an image in inches
_MOST_BLOCKS = 8  # of a stage, in a row
_MOST_KERNELS = 7  # of a level, in a row
_LONGEST = 4  # a kernel with a greater ratio of its sides is not drawn to scale
_DARKEST = -4  # the power of ten that is black, beside the greatest gradient


def draw_gates(inside: Inside, blocks: Sequence[BlockMaps] | None = None) -> Figure:
    """Draws the gates of blocks: a row for each block, a column for each level.

    Red gates are above zero, and blue ones below. The colours of a row have one scale.

    Args:
      inside: from `look_inside`.
      blocks: those that are drawn; None for the last block of each stage.

    Raises:
      SetupError: no blocks are given.
    """
    blocks = inside.last_blocks() if blocks is None else blocks
    check_any(blocks, "blocks")
    levels = max(block.gates.shape[-1] for block in blocks)
    figure, axes = _grid_for(inside, len(blocks), levels + 1, "Gates by level")
    _show(axes[0, 0], inside.pixels, title="image")
    for row, block in zip(axes, blocks):
        most = max(np.abs(block.gates).max(), np.finfo(np.float32).tiny)
        row[1].set_ylabel(_title(block), size=9)
        for level, name in enumerate(block.level_names):
            _show(
                row[level + 1],
                block.gates[..., level],
                cmap=SIGNED,
                vmin=-most,
                vmax=most,
                title=name,
            )
        figure.colorbar(row[block.gates.shape[-1]].images[0], ax=list(row), pad=0.01)
    return _with_grey_text(figure)


def draw_modulators(inside: Inside) -> Figure:
    """Draws the norm of the modulator at each place: a row for each stage.

    Each block has a scale of its own. Of a stage with many blocks, eight are drawn, the
    first and the last one among them. A map lies as its positions do in the image.
    """
    stages = range(inside.blocks[-1].stage + 1)
    rows = [_spread([b for b in inside.blocks if b.stage == stage]) for stage in stages]
    columns = max(len(row) for row in rows) + 1
    figure, axes = _grid_for(inside, len(rows), columns, "Norm of the modulator")
    _show(axes[0, 0], inside.pixels, title="image")
    height, width, _ = inside.pixels.shape
    for row, blocks, stride in zip(axes, rows, inside.strides):
        for tile, block in zip(row[1:], blocks):
            # In pixels, from edge to edge: the last ones may belong to no position.
            bottom, right = np.array(block.norm.shape) * stride - 0.5
            extent = (-0.5, right, bottom, -0.5)
            _show(tile, block.norm, cmap=UNSIGNED, extent=extent, title=_title(block))
            tile.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
            _add_scale(figure, tile)
    return _with_grey_text(figure)


def draw_kernels(kernels: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draws depthwise kernels of the last block of each stage, a row for each level.

    The first column has the mean of the absolute weights over all channels, and the
    others have the kernels of the channels with the greatest weights, with one scale.

    Args:
      kernels: from `depthwise_kernels`.

    Raises:
      SetupError: there are none.
    """
    last = {name.partition("/")[0]: name for name in kernels}.values()
    levels = [(name, level) for name in last for level in kernels[name]]
    check_any(levels, "depthwise kernels")
    columns = _MOST_KERNELS + 1
    figure, axes = _grid(len(levels), columns, "Depthwise kernels", tile=(1, 1), text=0)
    for row, (name, level) in zip(axes, levels):
        kernel = kernels[name][level]
        title = f"{name}\n{level}, {kernel.shape[0]} x {kernel.shape[1]}"
        # A causal global level has one column of many rows.
        is_long = max(kernel.shape[:2]) > _LONGEST * min(kernel.shape[:2])
        aspect = "auto" if is_long else "equal"
        _show(row[0], np.abs(kernel).mean(-1), cmap=UNSIGNED, vmin=0, aspect=aspect)
        row[0].text(
            -0.15, 0.5, title, transform=row[0].transAxes, ha="right", va="center", size=8
        )
        _add_scale(figure, row[0])
        strength = np.square(kernel).sum((0, 1))
        strongest = np.argsort(-strength, kind="stable")[:_MOST_KERNELS]
        most = max(np.abs(kernel[..., strongest]).max(), np.finfo(np.float32).tiny)
        for tile, channel in zip(row[1:], strongest):
            values = kernel[..., channel]
            _show(tile, values, cmap=SIGNED, vmin=-most, vmax=most, aspect=aspect)
        _add_scale(figure, tile)
    axes[0, 0].set_title("mean of |weight|", size=8)
    axes[0, 1].set_title("strongest", size=8)
    return _with_grey_text(figure)


def draw_receptive_fields(
    inside: Inside, fields: Mapping[str, np.ndarray], *, at: Sequence[int] | None = None
) -> Figure:
    """Draws effective receptive fields, on a logarithmic scale.

    What is black has less than a ten-thousandth of the greatest gradient. The text below
    each says how far from its centre of mass half of the gradient lies.

    Args:
      inside: from `look_inside`.
      fields: from `receptive_fields`, for the same image.
      at: as it was given to `receptive_fields`; a cross marks it.

    Raises:
      SetupError: no fields are given, or `at` is no pixel of the image.
    """
    check_any(fields, "receptive fields")
    row, column = place(inside.pixels.shape[:2], at)
    figure, axes = _grid_for(inside, 1, len(fields) + 1, "Effective receptive field")
    _show(axes[0, 0], inside.pixels, title="image")
    axes[0, 0].plot(column, row, marker="+", color=INK, markersize=12)
    for tile, (name, field) in zip(axes[0, 1:], fields.items()):
        most = max(field.max(), np.finfo(np.float32).tiny)
        powers = np.log10(np.maximum(field / most, 10.0**_DARKEST))
        _show(tile, powers, cmap=UNSIGNED, vmin=_DARKEST, vmax=0, title=name)
        radius = counted(round(half_radius(field)), "pixel")
        tile.set_xlabel(f"half within {radius} of its centre", size=8)
    scale = figure.colorbar(axes[0, -1].images[0], ax=list(axes[0]), pad=0.01)
    scale.set_label("power of ten", size=8)
    return _with_grey_text(figure)


def check_any(things: Sized, noun: str) -> None:
    """Raises SetupError if there is nothing to draw; the noun is a plural."""
    if not len(things):
        raise SetupError(f"no {noun} are given, so there is nothing to draw")


def half_radius(field: np.ndarray) -> float:
    """The distance in pixels from the centre of mass within which half of it lies."""
    rows, columns = np.indices(field.shape)
    total = max(field.sum(dtype=np.float64), np.finfo(np.float64).tiny)
    centre = [(field * axis).sum(dtype=np.float64) / total for axis in (rows, columns)]
    distances = np.hypot(rows - centre[0], columns - centre[1]).ravel()
    order = np.argsort(distances)
    shares = np.cumsum(field.ravel()[order], dtype=np.float64) / total
    return float(distances[order][min(np.searchsorted(shares, 0.5), shares.size - 1)])


def _grid_for(
    inside: Inside, rows: int, columns: int, title: str
) -> tuple[Figure, np.ndarray]:
    """As `_grid`, with tiles of the shape of the image, unless it is very long."""
    height, width, _ = inside.pixels.shape
    sides = _TILE * min(max(height / width, 0.25), 2), _TILE
    return _grid(rows, columns, title, tile=sides)


def _grid(
    rows: int,
    columns: int,
    title: str,
    *,
    tile: tuple[float, float],
    text: float = 0.25,
) -> tuple[Figure, np.ndarray]:
    """A figure and `[rows, columns]` axes without frames or numbers.

    Args:
      rows, columns: of axes.
      title: of the figure.
      tile: height and width of axes, in inches.
      text: the height of the text above axes, in inches.
    """
    size = columns * tile[1] + 0.8, rows * (tile[0] + text) + 0.6
    figure = Figure(figsize=size, layout="constrained", facecolor="none")
    figure.suptitle(title, size=11)
    axes = figure.subplots(rows, columns, squeeze=False)
    for each in axes.flat:
        each.set(xticks=[], yticks=[], facecolor="none")
        each.set_frame_on(False)
    return figure, axes


def _show(axes: Any, values: np.ndarray, *, title: str = "", **options: Any) -> None:
    axes.imshow(values, interpolation="nearest", **options)
    axes.set_title(title, size=9)


def _add_scale(figure: Figure, axes: Any) -> None:
    """Says beside axes which colour is which number."""
    scale = figure.colorbar(axes.images[0], ax=axes, fraction=0.08, pad=0.03)
    scale.ax.locator_params(nbins=3)


def _title(block: BlockMaps) -> str:
    height, width = block.norm.shape
    return f"{block.name}, {height} x {width}"


def _spread(blocks: Sequence[BlockMaps]) -> list[BlockMaps]:
    """At most `_MOST_BLOCKS` of the blocks, evenly."""
    count = min(len(blocks), _MOST_BLOCKS)
    return [blocks[i] for i in np.linspace(0, len(blocks) - 1, count).round().astype(int)]


def _with_grey_text(figure: Figure) -> Figure:
    texts: list[Any] = figure.findobj(lambda artist: hasattr(artist, "get_text"))
    for text in texts:
        text.set_color(INK)
    for axes in figure.axes:
        axes.tick_params(colors=INK, labelsize=8)
        for line in axes.spines.values():
            line.set_edgecolor(INK)
    return figure
