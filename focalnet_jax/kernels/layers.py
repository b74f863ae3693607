"""The layers that kernels of positions are made of, see `positionwise.py`.

A tile is `[rows, channels]` in float32. Each layer has a derivative of its own in reverse
mode, for the kernel of the gradient. Matrix products multiply in the dtype of their
matrix, in both passes, and add up in float32.
"""

import functools
import itertools
from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp

from focalnet_jax.kernels.focal_aggregation import Activation

_ROWS_BY_MATRIX = ((1,), (0,)), ((), ())
_ROWS_BY_TRANSPOSE = ((1,), (1,)), ((), ())
_OVER_ROWS = ((0,), (0,)), ((), ())


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Multiplies rows of `[rows, c]` with `[c, d]`, and adds `[1, d]`."""
    return _product(x, kernel, False) + bias


def split_dense(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, *, parts: Sequence[int]
) -> list[jax.Array]:
    """`dense` by a transposed kernel, `[d, c]`, in parts with so many channels each."""
    chex.assert_equal(sum(parts), kernel.shape[0])
    y = _product(x, kernel, True) + bias
    ends = [sum(parts[:count]) for count in range(len(parts) + 1)]
    return [y[:, start:end] for start, end in itertools.pairwise(ends)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x, kernel, is_transposed):
    return _product_forward(x, kernel, is_transposed)[0]


def _product_forward(x, kernel, is_transposed):
    x = x.astype(kernel.dtype)
    forth = _ROWS_BY_TRANSPOSE if is_transposed else _ROWS_BY_MATRIX
    return _dot(x, kernel, forth), (x, kernel)


def _product_backward(is_transposed, saved, cotangent):
    """The gradient of the kernel stays in float32, as wide as it was added up."""
    x, kernel = saved
    cotangent = cotangent.astype(kernel.dtype)
    back = _ROWS_BY_MATRIX if is_transposed else _ROWS_BY_TRANSPOSE
    pair = (cotangent, x) if is_transposed else (x, cotangent)
    return _dot(cotangent, kernel, back), _dot(*pair, _OVER_ROWS)


_product.defvjp(_product_forward, _product_backward)


def _dot(a, b, dimensions):
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float = 1e-5
) -> jax.Array:
    """Normalises the rows of `[rows, c]`; scale and bias are `[1, c]`."""
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(x, scale, bias, epsilon):
    x = x - x.mean(-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon)
    normalized = x * factor
    return normalized * scale + bias, (normalized, factor, scale)


def _layer_norm_backward(epsilon, saved, cotangent):
    del epsilon
    normalized, factor, scale = saved
    of_normalized = cotangent * scale
    along = (of_normalized * normalized).mean(-1, keepdims=True)
    of_x = of_normalized - of_normalized.mean(-1, keepdims=True) - normalized * along
    of_scale = (cotangent * normalized).sum(0, keepdims=True)
    return factor * of_x, of_scale, cotangent.sum(0, keepdims=True)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def activation(value_and_slope: Activation) -> Callable[[jax.Array], jax.Array]:
    """Makes a layer of a function from numbers to values and their derivatives."""

    @jax.custom_vjp
    def activate(x: jax.Array) -> jax.Array:
        return value_and_slope(x)[0]

    activate.defvjp(value_and_slope, lambda slope, cotangent: (slope * cotangent,))
    return activate


def add_branch(
    x: jax.Array,
    y: jax.Array,
    *,
    scale: jax.Array | None = None,
    keep: jax.Array | None = None,
) -> jax.Array:
    """Adds a residual branch to rows `[rows, c]`.

    Args:
      x, y: what there is, and the branch.
      scale: `[1, c]`, which multiplies the branch.
      keep: `[images, 1]`, which multiplies the branch of each image.
    """
    if scale is not None:
        y = y * scale
    if keep is not None:
        of_images = y.reshape(-1, keep.shape[0], y.shape[-1])
        keep = jnp.broadcast_to(keep, of_images.shape)
        # What is dropped is 0 even where it isn't finite.
        y = jnp.where(keep == 0, 0, of_images * keep).reshape(y.shape)
    return x + y
