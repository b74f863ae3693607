"""From views of images to the class of each pixel, at the images' original sizes.

Reference code: mmsegmentation, `mmseg/models/segmentors/encoder_decoder.py` and
`seg_tta.py`. A view is a resized and perhaps mirrored copy of an image. A net sees it as
a whole, or in windows that overlap. Its logits, which are smaller than what it sees, are
resized to the view, averaged where windows overlap, and resized to the original size.
There the softmax is taken, and the mean of several views is their result.

All of this but the softmax is linear, and separable into rows and columns. So each view
keeps the small logits, and the products of the matrices that resize and place them. The
large maps are made of these a band of rows at a time.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from focalnet_jax.ops.canvas import zero_outside
from focalnet_jax.ops.resize import bilinear_matrices

# Numbers of a band in one image: 32 MB of float32.
_BAND = 2**23

Net = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""Maps images `[b, H, W, 3]` and the size of each on this canvas, int32 `[b, 2]`, to
logits `[b, h, w, c]` and the size of each on theirs."""


class Windows(NamedTuple):
    """How windows cover an image, row by row.

    Attributes:
      size: height and width of a window; a smaller image is one window.
      stride: from one window to the next. The last ones are moved to end with the image.
    """

    size: tuple[int, int]
    stride: tuple[int, int]


class View(NamedTuple):
    """Logits of the windows of one view of each image, and where they belong.

    Attributes:
      logits: `[n, m, b, h, w, c]`, of n rows of m windows.
      rows: `[n, b, height, h]`; what a row of windows contributes to each row of the
        original images, on a canvas.
      columns: `[m, b, width, w]`; the same for columns.
    """

    logits: jax.Array
    rows: jax.Array
    columns: jax.Array


def make_view(
    net: Net,
    images: jax.Array,
    *,
    valid: jax.Array,
    size: jax.Array,
    canvas: tuple[int, int],
    windows: Windows | None = None,
    mirror: bool = False,
) -> View:
    """Applies a net to a view of images.

    Args:
      net: makes logits.
      images: float `[b, H, W, channels]`, at the size of the view, on a canvas.
      valid: int32 `[b, 2]`, the height and width of each.
      size: int32 `[b, 2]`, those of each original image.
      canvas: height and width of a canvas for the original images.
      windows: in which the net sees them; None for whole images.
      mirror: whether it sees them mirrored left to right.
    """
    chex.assert_rank(images, 4)
    chex.assert_shape([valid, size], (len(images), 2))
    images = zero_outside(images, valid)
    if mirror:
        images = _mirrored(images, valid[:, 1], axis=2)
    _, height, width, channels = images.shape
    windows = windows or Windows((height, width), (height, width))
    sides = [min(pair) for pair in zip(windows.size, (height, width))]
    starts, counts = zip(
        *(
            _starts(
                images.shape[axis + 1], sides[axis], windows.stride[axis], valid, axis
            )
            for axis in range(2)
        )
    )
    inner = jnp.minimum(valid, jnp.array(sides))

    def of_window(index):
        row, column = index // len(starts[1]), index % len(starts[1])
        corners = jnp.stack([starts[0][row], starts[1][column]], -1)
        if sides == [height, width]:
            return net(images, inner)
        cut = jax.vmap(
            lambda image, corner: jax.lax.dynamic_slice(
                image, (*corner, 0), (*sides, channels)
            )
        )
        return net(cut(images, corners), inner)

    grid = len(starts[0]), len(starts[1])
    logits, inner_logits = jax.lax.map(of_window, jnp.arange(math.prod(grid)))
    logits = logits.reshape(*grid, *logits.shape[1:])
    matrices = []
    for axis in range(2):
        # From logits to the window, to its place in the view, to the original image.
        dtype = jnp.promote_types(logits.dtype, jnp.float32)
        own = bilinear_matrices(
            logits.shape[3 + axis],
            sides[axis],
            valid=inner_logits[0, :, axis],
            new_valid=inner[:, axis],
            dtype=dtype,
        )
        placed = _placed(
            own, starts[axis], counts[axis], inner[:, axis], images.shape[1 + axis]
        )
        to_original = bilinear_matrices(
            images.shape[1 + axis],
            canvas[axis],
            valid=valid[:, axis],
            new_valid=size[:, axis],
            dtype=dtype,
        )
        matrices.append(_product("boi,nbih->nboh", to_original, placed))
    rows, columns = matrices
    if mirror:
        columns = jax.vmap(lambda one: _mirrored(one, size[:, 1], axis=1))(columns)
    return View(logits, rows, columns)


def probabilities(views: Sequence[View]) -> jax.Array:
    """The mean of the views' softmax, `[b, height, width, c]`.

    Outside of an image it means nothing.
    """
    each = [jax.nn.softmax(_logits(view), axis=-1) for view in views]
    return functools.reduce(jnp.add, each) / len(views)


def classes_of(views: Sequence[View], *, band: int = _BAND) -> jax.Array:
    """The class of each pixel, int32 `[b, height, width]`.

    Outside of an image it means nothing.

    Args:
      views: of the same images.
      band: how many numbers of an image are made at a time.
    """

    def of_rows(rows):
        parts = [view._replace(rows=own) for view, own in zip(views, rows)]
        # Softmax keeps the order.
        values = probabilities(parts) if len(parts) > 1 else _logits(parts[0])
        return jnp.argmax(values, -1).astype(jnp.int32)

    height, width = views[0].rows.shape[2], views[0].columns.shape[2]
    step = min(max(band // (width * views[0].logits.shape[-1]), 1), height)
    count = -(-height // step)
    if count == 1:
        return of_rows([view.rows for view in views])

    def split(rows):
        rows = jnp.pad(rows, [(0, 0), (0, 0), (0, count * step - height), (0, 0)])
        rows = rows.reshape(*rows.shape[:2], count, step, rows.shape[3])
        return jnp.moveaxis(rows, 2, 0)

    bands = jax.lax.map(of_rows, [split(view.rows) for view in views])
    batch = bands.shape[1]
    return jnp.moveaxis(bands, 0, 1).reshape(batch, count * step, width)[:, :height]


def _logits(view: View) -> jax.Array:
    """Logits at the original size, `[b, height, width, c]`."""
    across = _product("nboh,nmbhwc->mbowc", view.rows, view.logits)
    return _product("mbpw,mbowc->bopc", view.columns, across)


def _starts(
    canvas: int, side: int, stride: int, valid: jax.Array, axis: int
) -> tuple[jax.Array, jax.Array]:
    """Where windows begin along an axis, `[n, b]`; and how many each image has, `[b]`.

    There are as many as a whole canvas needs.
    """
    most = max(canvas - side + stride - 1, 0) // stride + 1
    length = valid[:, axis]
    ends = jnp.minimum(jnp.arange(most)[:, None] * stride + side, length)
    counts = jnp.maximum(length - side + stride - 1, 0) // stride + 1
    return jnp.maximum(ends - side, 0), counts


def _placed(
    matrix: jax.Array, starts: jax.Array, counts: jax.Array, inner: jax.Array, size: int
) -> jax.Array:
    """Rows of a window at their place in the view, over the number of windows there.

    Args:
      matrix: `[b, side, h]`, from logits to the window.
      starts: `[n, b]`, where windows begin.
      counts: `[b]`, how many of them an image has.
      inner: `[b]`, the part of a window that is inside of the image.
      size: of the view's canvas.

    Returns:
      `[n, b, size, h]`.
    """
    within = jnp.arange(size) - starts[..., None]
    is_used = jnp.arange(len(starts))[:, None] < counts
    is_inside = (within >= 0) & (within < inner[:, None]) & is_used[..., None]
    nearest = jnp.clip(within, 0, matrix.shape[1] - 1)
    rows = jnp.take_along_axis(matrix[None], nearest[..., None], axis=2)
    share = is_inside / jnp.maximum(is_inside.sum(0), 1).astype(matrix.dtype)
    return rows * share[..., None]


def _mirrored(x: jax.Array, lengths: jax.Array, *, axis: int) -> jax.Array:
    """Turns the first `lengths` positions of an axis around, for each of the batch."""
    # Whole maps are turned, and then moved to where they began.
    turned = jnp.flip(x, axis)
    shift = lengths - x.shape[axis]
    return jax.vmap(lambda one, by: jnp.roll(one, by, axis - 1))(turned, shift)


def _product(axes: str, *arrays: jax.Array) -> jax.Array:
    # The default of accelerators would round float32 to fewer digits first.
    wide = jnp.promote_types(arrays[0].dtype, jnp.float32)
    arrays = tuple(array.astype(wide) for array in arrays)
    return jnp.einsum(axes, *arrays, precision=jax.lax.Precision.HIGHEST)
