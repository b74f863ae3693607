"""Resizing and average pooling of maps, equal to PyTorch's, on whole maps and canvases.

All of them are linear and separable: along each spatial axis, every new position is a
weighted sum of old ones. So each is a product with one matrix of weights for each axis,
which suits matrix units better than gathers do. `jax.image.resize` differs from PyTorch:
it smooths by default where maps shrink, has no `align_corners`, and rounds otherwise to
the nearest position.

Where images of several sizes lie on canvases (`ops/canvas.py`), each image has matrices
of its own. Since its padding has the weight 0, the padding must be finite.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from focalnet_jax.errors import OptionError, check_choice

METHODS = ("bilinear", "nearest")


def resize(
    x: jax.Array,
    size: Sequence[int],
    *,
    method: str = "bilinear",
    align_corners: bool = False,
    valid: jax.Array | None = None,
    new_valid: jax.Array | None = None,
) -> jax.Array:
    """Resizes maps as `torch.nn.functional.interpolate` with `size`.

    Args:
      x: `[b, *spatial, c]`, floating point.
      size: the new length of each spatial axis.
      method: "bilinear", which doesn't smooth where maps shrink and is linear along each
        of any number of axes; or "nearest", which rounds as PyTorch's mode of that name.
      align_corners: for "bilinear", whether the centres of the first and last positions
        stay where they are; else the outer edges of these positions do.
      valid: int `[b, rank]`, the size of each image on the canvas `x`; None for the size
        of the canvas.
      new_valid: int `[b, rank]`, the size that each image gets on the canvas of `size`;
        None for the size of that canvas.

    Returns:
      `[b, *size, c]` in the dtype of `x`, computed in float32 at least. It is 0 outside
      of `new_valid`.

    Raises:
      OptionError: a method that doesn't exist, or `align_corners` with "nearest".
      AssertionError: a map that isn't floating point, or sizes for another number of
        axes.
    """
    check_choice("method", method, METHODS)
    if method == "nearest":
        if align_corners:
            raise OptionError(
                "align_corners", "=True has no effect with method='nearest': leave it out"
            )
        return _along_each_axis(x, size, _nearest, valid, new_valid)
    weights = functools.partial(_linear, align_corners=align_corners)
    return _along_each_axis(x, size, weights, valid, new_valid)


def adaptive_average_pool(
    x: jax.Array, size: Sequence[int] | int, *, valid: jax.Array | None = None
) -> jax.Array:
    """Averages maps to a size, as `torch.nn.AdaptiveAvgPool2d`.

    New position i of s is the mean of the old ones from `floor(i n / s)` to before
    `ceil((i + 1) n / s)`, where n is the old length. Windows may overlap, and `size` may
    be larger than the map.

    Args:
      x: `[b, *spatial, c]`, floating point.
      size: the new length of each spatial axis, or one number for all.
      valid: int `[b, rank]`, the size of each image on the canvas `x`; None for the size
        of the canvas.

    Returns:
      `[b, *size, c]` in the dtype of `x`, computed in float32 at least.

    Raises:
      AssertionError: as `resize`.
    """
    if isinstance(size, int):
        size = (size,) * (x.ndim - 2)
    return _along_each_axis(x, size, _average, valid, None)


def bilinear_matrices(
    size: int, new_size: int, *, valid: jax.Array, new_valid: jax.Array, dtype: Any
) -> jax.Array:
    """What bilinear resizing multiplies one axis with, a matrix for each image.

    Products of these matrices resize several times at once.

    Args:
      size, new_size: of the axis on the old canvas and on the new one.
      valid, new_valid: int `[b]`, the length of each image on them.
      dtype: of the matrices.

    Returns:
      `[b, new_size, size]`, whose rows are 0 outside of `new_valid`.
    """
    chex.assert_rank([valid, new_valid], 1)
    weights = functools.partial(_linear, align_corners=False)
    source, target = (n.astype(jnp.int32)[:, None, None] for n in (valid, new_valid))
    return _matrix(jnp, weights, (size, new_size), source, target, dtype)


# --- Weights -----------------------------------------------------------------
#
# Each function takes the module to compute with (NumPy for sizes that all images share,
# and then in float64), the old and the new length of an axis, the new positions as a
# column and the old ones as a row, and a dtype. It returns a matrix whose rows are new
# positions, or one for each image.


def _linear(xp, source, target, new, old, dtype, *, align_corners: bool):
    source, target, new = (n.astype(dtype) for n in (source, target, new))
    if align_corners:
        at = new * ((source - 1) / xp.maximum(target - 1, 1))
    else:
        at = (new + 0.5) * (source / xp.maximum(target, 1)) - 0.5
    at = xp.clip(at, 0, source - 1)
    return xp.maximum(1 - abs(at - old), 0)


def _nearest(xp, source, target, new, old, dtype):
    # PyTorch computes in float32 for maps of all dtypes. Its rounding decides which of
    # two positions is taken where the exact quotient is whole or nearly so.
    source, target, new = (n.astype(np.float32) for n in (source, target, new))
    at = xp.floor(new * (source / xp.maximum(target, 1)))
    return (xp.minimum(at, source - 1) == old).astype(dtype)


def _average(xp, source, target, new, old, dtype):
    first, end = new * source // target, -(-(new + 1) * source // target)
    within = (first <= old) & (old < end)
    return within.astype(dtype) / xp.maximum(end - first, 1).astype(dtype)


# --- Products ----------------------------------------------------------------


def _along_each_axis(
    x: jax.Array,
    size: Sequence[int],
    weights: Callable[..., Any],
    valid: jax.Array | None,
    new_valid: jax.Array | None,
) -> jax.Array:
    batch, *spatial, _ = x.shape
    chex.assert_type(x, float)
    chex.assert_equal(len(size), len(spatial))
    for sizes in (valid, new_valid):
        if sizes is not None:
            chex.assert_shape(sizes, (batch, len(spatial)))
            chex.assert_type(sizes, int)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    result = x
    # An axis that shrinks comes first: so there is less to do for the others.
    for axis in sorted(range(len(spatial)), key=lambda axis: size[axis] / spatial[axis]):
        lengths = spatial[axis], size[axis]
        if valid is None and new_valid is None:
            if lengths[0] == lengths[1]:
                continue  # The matrix is the identity.
            source, target = np.array(lengths)
            matrix = _matrix(np, weights, lengths, source, target, np.float64)
            matrix = jnp.asarray(matrix, dtype)
        else:
            source, target = (
                jnp.full((batch, 1, 1), length)
                if sizes is None
                else sizes[:, axis, None, None].astype(jnp.int32)
                for sizes, length in zip((valid, new_valid), lengths)
            )
            # XLA would divide by what all images share as by a constant, whose inverse it
            # rounds first. Then some nearest positions are others than PyTorch's.
            target = jax.lax.optimization_barrier(target)
            matrix = _matrix(jnp, weights, lengths, source, target, dtype)
        result = _product(result.astype(dtype), matrix, axis + 1)
    return result.astype(x.dtype)


def _matrix(xp, weights, lengths, source, target, dtype):
    """The weights, `[..., new, old]`, with rows of zeros from `target` on."""
    old, new = xp.arange(lengths[0]), xp.arange(lengths[1])[:, None]
    matrix = weights(xp, source, target, new, old, dtype)
    return xp.where(new < target, matrix, 0)


def _product(x: jax.Array, matrix: jax.Array, axis: int) -> jax.Array:
    """Multiplies along an axis of `x` with `[new, old]`, or one for each image."""
    axes = "abcdefghij"[: x.ndim]
    old, new = axes[axis], "n"
    of_matrix = f"a{new}{old}" if matrix.ndim == 3 else f"{new}{old}"
    # The default of accelerators would round maps of float32 to fewer digits first.
    return jnp.einsum(
        f"{axes},{of_matrix}->{axes.replace(old, new)}",
        x,
        matrix,
        precision=jax.lax.Precision.HIGHEST,
    )
