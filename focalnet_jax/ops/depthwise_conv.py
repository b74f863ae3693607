"""Depthwise convolution over any number of spatial axes, channels last.

Two implementations compute the same sum:

* `lax` is one `jax.lax.conv_general_dilated` with as many feature groups as there are
  channels. The compilers for accelerators turn it into good code.
* `shifted` multiplies the padded input by each entry of the kernel, shifted to where the
  entry belongs, and adds up the products. XLA runs grouped convolutions on CPUs many
  times slower than this.

`auto` chooses one of them by the platform that a program is lowered for. So a program
that a CPU machine compiles for a TPU holds the convolution.
"""

import functools
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from focalnet_jax.errors import check_choice


def depthwise_conv(
    x: jax.Array, kernel: jax.Array, *, implementation: str = "auto"
) -> jax.Array:
    """Convolves each channel with its own kernel.

    The stride is 1, and zeros around the map keep its size. Sums are taken in float32 or
    wider, and the result has the dtype of `x`.

    `auto` and `shifted` have a rule of their own for reverse-mode differentiation, so
    JAX refuses to differentiate them in forward mode (`jax.jvp`); `lax` supports both.

    Args:
      x: `[batch, *spatial, channels]` with one or more spatial axes.
      kernel: `[*kernel_size, 1, channels]`, with an odd size for each spatial axis.
      implementation: a name in `CONVOLUTIONS`.

    Returns:
      `[batch, *spatial, channels]`.

    Raises:
      OptionError: an implementation that does not exist.
      ValueError: an even kernel size.
      AssertionError: a kernel whose shape or dtype does not fit.
    """
    check_choice("implementation", implementation, CONVOLUTIONS)
    chex.assert_rank(kernel, x.ndim)
    chex.assert_axis_dimension(kernel, -1, x.shape[-1])
    chex.assert_axis_dimension(kernel, -2, 1)
    chex.assert_type(kernel, x.dtype)
    if any(size % 2 == 0 for size in kernel.shape[:-2]):
        raise ValueError(
            f"depthwise_conv needs odd kernel sizes, got {kernel.shape[:-2]}: "
            "an even one would change the size of the map"
        )
    return CONVOLUTIONS[implementation](x, kernel)


# --- lax ---------------------------------------------------------------------


def _lax_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    spatial = "0123456789"[: x.ndim - 2]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1,) * len(spatial),
        padding=[(size // 2, size // 2) for size in kernel.shape[:-2]],
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=x.shape[-1],
    )


# --- shifted -----------------------------------------------------------------


@jax.custom_vjp
def _shifted_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    padded = _widen(_pad(x, kernel))
    terms = [
        _shift(padded, tap, x.shape[1:-1]) * weight
        for tap, weight in zip(_taps(kernel), _widen(kernel).reshape(-1, x.shape[-1]))
    ]
    return functools.reduce(jnp.add, terms).astype(x.dtype)


def _shifted_forward(x, kernel):
    return _shifted_conv(x, kernel), (x, kernel)


def _shifted_backward(residuals, cotangent):
    x, kernel = residuals
    spatial_axes = tuple(range(kernel.ndim - 2))
    x_cotangent = _shifted_conv(cotangent, jnp.flip(kernel, spatial_axes))
    return x_cotangent, _shifted_kernel_cotangent(x, kernel, cotangent)


_shifted_conv.defvjp(_shifted_forward, _shifted_backward)


def _shifted_kernel_cotangent(x, kernel, cotangent):
    """Sums `x[shifted by tap] * cotangent` over batch and space for every tap.

    A tap is the place of an entry in the kernel. On CPUs XLA reduces over leading axes in
    scalar loops. So this loop walks along the first spatial axis and keeps a row of sums
    for every tap. What remains are vectorised multiply-adds, and a reduction that is
    smaller by the length of that axis. The batch axis stays whole, so that it can be
    sharded.
    """
    padded = _widen(_pad(x, kernel))
    cotangent = _widen(cotangent)
    row_shape = x.shape[2:-1]

    def add_row(row, sums):
        window = jax.lax.dynamic_slice_in_dim(padded, row, kernel.shape[0], axis=1)
        row_cotangent = jax.lax.dynamic_index_in_dim(cotangent, row, axis=1)
        return [
            total + _shift(window, tap, (1, *row_shape)) * row_cotangent
            for total, tap in zip(sums, _taps(kernel))
        ]

    zero = jnp.zeros_like(cotangent[:, :1])
    sums = jax.lax.fori_loop(0, x.shape[1], add_row, [zero for _ in _taps(kernel)])
    leading = tuple(range(x.ndim - 1))
    totals = jnp.stack([total.sum(leading) for total in sums])
    return totals.reshape(kernel.shape).astype(kernel.dtype)


def _taps(kernel: jax.Array) -> list[tuple[int, ...]]:
    """The places of the kernel's entries, in row-major order."""
    return list(np.ndindex(*kernel.shape[:-2]))


def _pad(x: jax.Array, kernel: jax.Array) -> jax.Array:
    margins = [(size // 2, size // 2) for size in kernel.shape[:-2]]
    return jnp.pad(x, [(0, 0), *margins, (0, 0)])


def _shift(padded: jax.Array, offset: Sequence[int], size: Sequence[int]) -> jax.Array:
    """The window of the spatial `size` that starts at the spatial `offset`."""
    stop = [start + length for start, length in zip(offset, size)]
    batch, channels = padded.shape[0], padded.shape[-1]
    return jax.lax.slice(padded, (0, *offset, 0), (batch, *stop, channels))


def _widen(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


# --- auto --------------------------------------------------------------------


# The rule for differentiation makes the choice again for the backward pass, because
# differentiating `platform_dependent` itself would store what both branches need.
@jax.custom_vjp
def _auto_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.platform_dependent(x, kernel, cpu=_shifted_conv, default=_lax_conv)


def _auto_forward(x, kernel):
    return _auto_conv(x, kernel), (x, kernel)


def _auto_backward(residuals, cotangent):
    def pull_back(convolution):
        return lambda x, kernel, cotangent: jax.vjp(convolution, x, kernel)[1](cotangent)

    return jax.lax.platform_dependent(
        *residuals, cotangent, cpu=pull_back(_shifted_conv), default=pull_back(_lax_conv)
    )


_auto_conv.defvjp(_auto_forward, _auto_backward)


# --- The implementations by name ---------------------------------------------

CONVOLUTIONS = {"auto": _auto_conv, "lax": _lax_conv, "shifted": _shifted_conv}
