"""Images of several sizes in one batch, each in a corner of a canvas of one size.

`valid`, int32 `[b, rank]`, says how large each image is along each spatial axis, such as
its height and width. It begins at the first position of each axis; what comes after its
end is padding. None means that all of the canvas is valid, and then nothing here adds an
operation to a program.

A net that zeroes the padding before each convolution, and leaves it out of each mean,
computes for every image what it would compute for that image alone.
"""

import math
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np


def inside(valid: jax.Array, spatial: Sequence[int]) -> jax.Array:
    """Which positions of a canvas belong to its image.

    Args:
      valid: int `[b, rank]`, the size of each image.
      spatial: the spatial shape of the canvas.

    Returns:
      bool `[b, *spatial, 1]`.
    """
    rank = len(spatial)
    chex.assert_shape(valid, (None, rank))
    shape = (valid.shape[0], *spatial, 1)
    result = jnp.ones((), bool)
    for axis in range(rank):
        sizes = valid[:, axis].reshape(-1, *(1,) * (rank + 1))
        along = (*(1,) * (axis + 1), spatial[axis], *(1,) * (rank - axis))
        result &= jax.lax.broadcasted_iota(jnp.int32, along, axis + 1) < sizes
    return jnp.broadcast_to(result, shape)


def zero_outside(x: jax.Array, valid: jax.Array | None) -> jax.Array:
    """Maps `[b, *spatial, c]` to the same, with zeros where no image is.

    Args:
      x: the map.
      valid: int `[b, rank]`, the size of each image; None returns `x` as it is.
    """
    if valid is None:
        return x
    return jnp.where(inside(valid, x.shape[1:-1]), x, 0)


def mean_inside(
    x: jax.Array,
    valid: jax.Array | None,
    axes: Sequence[int],
    *,
    keepdims: bool = True,
) -> jax.Array:
    """The mean over spatial axes of what belongs to the images.

    Args:
      x: `[b, *spatial, c]`.
      valid: int `[b, rank]`, the size of each image; None for the whole canvas.
      axes: the axes of `x` to take the mean over, such as (1, 2).
      keepdims: keeps them, with length 1.

    Returns:
      The mean in the dtype of `x`, which is summed in float32 at least. That of an image
      that has no position is 0.
    """
    axes = tuple(axes)
    if valid is None:
        return x.mean(axes, keepdims=keepdims)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    total = zero_outside(x, valid).sum(axes, dtype=wide, keepdims=keepdims)
    count = math.prod(
        (valid[:, axis - 1].astype(wide) for axis in axes), start=jnp.ones((), wide)
    )
    count = jnp.maximum(count, 1).reshape(-1, *(1,) * (total.ndim - 1))
    return (total / count).astype(x.dtype)


def size_after(
    size: Any, *, kernel_size: Any, stride: Any = 1, padding: Any = 0, pad_to: Any = 1
) -> Any:
    """The length of an axis after a convolution, rounded down as in PyTorch.

    Args:
      size: the length before it: a number, or an array.
      kernel_size, stride: of the convolution.
      padding: how many zeros stand before the axis, and after it.
      pad_to: the end of the axis is padded to a multiple of it first.
    """
    return (size + -size % pad_to + 2 * padding - kernel_size) // stride + 1


def valid_after(
    valid: jax.Array,
    *,
    kernel_size: Sequence[int],
    stride: Sequence[int] | int = 1,
    padding: Sequence[int] | int = 0,
    pad_to: Sequence[int] | int = 1,
) -> jax.Array:
    """The sizes of images after a convolution of the canvas.

    Args:
      valid: int `[b, rank]`, the size of each image.
      kernel_size: as for `size_after`; this and the others are a number for all spatial
        axes, or one for each.
      stride: as for `size_after`.
      padding: as for `size_after`.
      pad_to: as for `size_after`.

    Returns:
      int32 `[b, rank]`; 0 where an image is too small for one position.
    """
    options = dict(kernel_size=kernel_size, stride=stride, padding=padding, pad_to=pad_to)
    arrays = {name: np.asarray(value, np.int32) for name, value in options.items()}
    return jnp.maximum(size_after(valid.astype(jnp.int32), **arrays), 0)
