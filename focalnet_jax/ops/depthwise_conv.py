"""Depthwise convolution over any number of spatial axes, channels last.

Two implementations compute the same sum:

* `lax` is one `jax.lax.conv_general_dilated` with as many feature groups as there are
  channels. The compilers for accelerators turn it into good code.
* `shifted` multiplies the padded input by each entry of the kernel, shifted to where the
  entry belongs, and adds up the products. XLA runs grouped convolutions on CPUs many
  times slower than this.

`auto` chooses one of them by the platform that a program is lowered for. So a program
that a CPU machine compiles for a TPU holds the convolution.

All of them can be differentiated in forward and in reverse mode, and any number of times.
"""

import functools
import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec

from focalnet_jax.errors import check_choice
from focalnet_jax.ops.varying import vary_alike

PADDINGS = ("same", "causal")
CONVOLUTIONS = ("auto", "lax", "shifted")

# How many zeros stand before and after each spatial axis.
Margins = tuple[tuple[int, int], ...]


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    padding: str = "same",
    implementation: str = "auto",
) -> jax.Array:
    """Convolves each channel with its own kernel.

    The stride is 1, and the result is as large as the map. Sums are taken in float32 or
    wider, and the result has the dtype of `x`.

    Args:
      x: `[batch, *spatial, channels]` with one or more spatial axes.
      kernel: `[*kernel_size, 1, channels]`. A kernel of even size reaches one position
        further forward than backward, as torch's `padding="same"` has it.
        It is cast to the dtype of `x`.
      bias: `[channels]`, which is cast, too, and added to the result.
      padding: "same" puts zeros around the map. "causal" differs along the first spatial
        axis, which is time: a position sees only itself and what is before it, and the
        first position stands for all that is before the beginning, as in FocalCodec.
      implementation: a name in `CONVOLUTIONS`.

    Returns:
      `[batch, *spatial, channels]`.

    Raises:
      OptionError: a padding or an implementation that does not exist.
      AssertionError: a kernel or a bias whose shape does not fit, or that is not floating
        point.
    """
    check_choice("implementation", implementation, CONVOLUTIONS)
    check_choice("padding", padding, PADDINGS)
    chex.assert_rank(kernel, x.ndim)
    chex.assert_axis_dimension(kernel, -1, x.shape[-1])
    chex.assert_axis_dimension(kernel, -2, 1)
    chex.assert_type(kernel, float)
    kernel = kernel.astype(x.dtype)
    margins = [((size - 1) // 2, size // 2) for size in kernel.shape[:-2]]
    spatial = x.shape[1:-1]
    if padding == "causal":
        kernel = _fold_the_past(kernel, spatial[0])
        past = [(0, 0)] * x.ndim
        past[1] = (kernel.shape[0] - 1, 0)
        x = jnp.pad(x, past, mode="edge")
        margins[0] = (0, 0)
    kernel, margins = _within_reach(kernel, margins, spatial)
    y = _convolve(x, kernel, margins, implementation)
    if bias is not None:
        chex.assert_shape(bias, x.shape[-1:])
        chex.assert_type(bias, float)
        y = y + bias.astype(x.dtype)
    return y


def _fold_the_past(kernel: jax.Array, length: int) -> jax.Array:
    """Adds up the entries that see the first position wherever the kernel stands."""
    if not isinstance(length, int) or kernel.shape[0] <= length:
        return kernel
    folded, rest = jnp.split(kernel, [kernel.shape[0] - length + 1])
    folded = folded.sum(0, keepdims=True, dtype=_wide(kernel.dtype))
    return jnp.concatenate([folded.astype(kernel.dtype), rest])


def _within_reach(kernel: jax.Array, margins, spatial) -> tuple[jax.Array, Margins]:
    """Leaves out the entries that see nothing but zeros wherever the kernel stands."""
    kept, within = [], []
    for (before, after), length, size in zip(margins, spatial, kernel.shape):
        # A program for sizes that are not known yet, `jax.export`, keeps them all.
        most = length - 1 if isinstance(length, int) else size
        within.append((min(before, most), min(after, most)))
        kept.append(slice(max(before - most, 0), size - max(after - most, 0)))
    return kernel[tuple(kept)], tuple(within)


def _convolve(x, kernel, margins: Margins, implementation: str) -> jax.Array:
    if implementation == "lax":
        return _lax_conv(x, kernel, margins)
    x, kernel = vary_alike(x, kernel)
    return _conv.bind(x, kernel, margins=margins, implementation=implementation)


# --- lax ---------------------------------------------------------------------


def _lax_conv(x: jax.Array, kernel: jax.Array, margins: Margins) -> jax.Array:
    spatial = "0123456789"[: x.ndim - 2]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1,) * len(spatial),
        padding=margins,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=x.shape[-1],
    )


def _lax_correlation(x: jax.Array, y: jax.Array, margins: Margins) -> jax.Array:
    kernel = jax.ShapeDtypeStruct(_kernel_shape(x, y, margins), x.dtype)
    [cotangent] = jax.linear_transpose(lambda k: _lax_conv(x, k, margins), kernel)(y)
    return cotangent


# --- shifted -----------------------------------------------------------------

# Larger kernels are taken in blocks of rows. With many terms in a sum, XLA takes long to
# compile it, and makes several passes over the map.
MAX_UNROLLED_TAPS = 64


def _shifted_conv(x: jax.Array, kernel: jax.Array, margins: Margins) -> jax.Array:
    padded, kernel = _widen(_pad(x, margins)), _widen(kernel)
    rows = _rows_of_block(kernel.shape[:-2])
    if rows == kernel.shape[0]:
        return _sum_taps(padded, kernel).astype(x.dtype)

    nowhere, spatial = (0,) * (x.ndim - 2), _result_size(padded, kernel.shape)
    zero = jnp.zeros_like(_shift(padded, nowhere, spatial))
    starts, padded = _starts_of_blocks(padded, kernel.shape[0], rows)
    missing = [(0, len(starts) * rows - kernel.shape[0])] + [(0, 0)] * (kernel.ndim - 1)
    blocks = jnp.pad(kernel, missing).reshape(-1, rows, *kernel.shape[1:])
    length = padded.shape[1] - starts[-1]

    def add_block(total, block):
        start, kernel = block
        window = jax.lax.dynamic_slice_in_dim(padded, start, length, axis=1)
        return total + _sum_taps(window, kernel), None

    return jax.lax.scan(add_block, zero, (jnp.array(starts), blocks))[0].astype(x.dtype)


def _shifted_correlation(x: jax.Array, y: jax.Array, margins: Margins) -> jax.Array:
    """Sums `x[shifted by tap] * y` over batch and space for every tap.

    A tap is the place of an entry in the kernel.
    """
    shape = _kernel_shape(x, y, margins)
    padded, y = _widen(_pad(x, margins)), _widen(y)
    rows = _rows_of_block(shape[:-2])
    if rows == shape[0]:
        return _correlate(padded, y, shape).astype(x.dtype)

    starts, padded = _starts_of_blocks(padded, shape[0], rows)
    length = padded.shape[1] - starts[-1]

    def correlate_block(start):
        window = jax.lax.dynamic_slice_in_dim(padded, start, length, axis=1)
        return _correlate(window, y, (rows, *shape[1:]))

    blocks = jax.lax.map(correlate_block, jnp.array(starts))
    return blocks.reshape(-1, *shape[1:])[: shape[0]].astype(x.dtype)


def _sum_taps(padded: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution, of a map that needs no more padding."""
    spatial = _result_size(padded, kernel.shape)
    weights = kernel.reshape(math.prod(kernel.shape[:-1]), kernel.shape[-1])
    terms = [
        _shift(padded, tap, spatial) * weight
        for tap, weight in zip(_taps(kernel.shape[:-2]), weights)
    ]
    return functools.reduce(jnp.add, terms)


def _correlate(padded: jax.Array, y: jax.Array, shape: Sequence[int]) -> jax.Array:
    """The correlation, of a map that needs no more padding.

    On CPUs XLA reduces over leading axes in scalar loops. So this loop walks along the
    first spatial axis and keeps a row of sums for every tap. What remains are vectorised
    multiply-adds, and a reduction that is smaller by the length of that axis. The batch
    axis stays whole, so that it can be sharded.
    """
    size = shape[:-2]

    def add_row(row, sums):
        window = jax.lax.dynamic_slice_in_dim(padded, row, size[0], axis=1)
        y_row = jax.lax.dynamic_index_in_dim(y, row, axis=1)
        return [
            total + _shift(window, tap, (1, *y.shape[2:-1])) * y_row
            for total, tap in zip(sums, _taps(size))
        ]

    zero = jnp.zeros_like(y[:, :1])
    sums = jax.lax.fori_loop(0, y.shape[1], add_row, [zero for _ in _taps(size)])
    leading = tuple(range(y.ndim - 1))
    return jnp.stack([total.sum(leading) for total in sums]).reshape(shape)


def _rows_of_block(size: Sequence[int]) -> int:
    """How many steps along the first axis of a kernel are taken at once."""
    most = max(MAX_UNROLLED_TAPS // math.prod(size[1:]), 1)
    blocks = math.ceil(size[0] / most)
    return math.ceil(size[0] / blocks)


def _starts_of_blocks(padded: jax.Array, size: int, rows: int):
    """Where along the first spatial axis each block begins, and a map that holds all."""
    starts = np.arange(0, size, rows)
    after = [(0, 0)] * padded.ndim
    after[1] = (0, int(starts[-1]) + rows - size)
    return starts, jnp.pad(padded, after)


def _result_size(padded: jax.Array, kernel_shape: Sequence[int]) -> list[int]:
    return [n - k + 1 for n, k in zip(padded.shape[1:-1], kernel_shape)]


def _taps(size: Sequence[int]) -> list[tuple[int, ...]]:
    """The places of the kernel's entries, in row-major order."""
    return list(np.ndindex(*size))


def _pad(x: jax.Array, margins: Margins) -> jax.Array:
    return jnp.pad(x, [(0, 0), *margins, (0, 0)])


def _shift(padded: jax.Array, offset: Sequence[int], size: Sequence[int]) -> jax.Array:
    """The window of the spatial `size` that starts at the spatial `offset`."""
    stop = [start + length for start, length in zip(offset, size)]
    batch, channels = padded.shape[0], padded.shape[-1]
    return jax.lax.slice(padded, (0, *offset, 0), (batch, *stop, channels))


def _widen(x: jax.Array) -> jax.Array:
    return x.astype(_wide(x.dtype))


def _wide(dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)


# --- Two operations for JAX --------------------------------------------------
#
# The convolution is linear in the map and in the kernel. Its cotangent of the map is a
# convolution. Its cotangent of the kernel is the correlation of the map with the
# cotangent of the result. The correlation is linear in both, too, and has convolutions as
# cotangents. So the two operations are closed under differentiation, and JAX derives all
# modes and orders from the four rules below. A `jax.custom_vjp` would shut forward mode.

_conv = Primitive("depthwise_conv")  # x, kernel -> y
_correlation = Primitive("depthwise_correlation")  # x, y -> kernel


def _conv_of_map(y, _, kernel, *, margins, implementation):
    """The cotangent of `x` in `conv(x, kernel)`, whose cotangent is `y`."""
    size = kernel.shape[:-2]
    margins = tuple((k - 1 - lo, k - 1 - hi) for k, (lo, hi) in zip(size, margins))
    flipped = jnp.flip(kernel, tuple(range(len(size))))
    return _conv.bind(y, flipped, margins=margins, implementation=implementation)


ad.defbilinear(
    _conv,
    _conv_of_map,
    lambda y, x, _, **options: _correlation.bind(x, y, **options),
)
ad.defbilinear(
    _correlation,
    lambda kernel, x, y, **options: _conv_of_map(y, x, kernel, **options),
    lambda kernel, x, _, **options: _conv.bind(x, kernel, **options),
)


def _kernel_shape(x, y, margins: Margins) -> tuple[int, ...]:
    lengths = zip(x.shape[1:-1], y.shape[1:-1], margins)
    size = [n + lo + hi - result + 1 for n, result, (lo, hi) in lengths]
    return (*size, 1, x.shape[-1])


@_conv.def_abstract_eval
def _(x, kernel, *, margins, implementation):
    del implementation
    lengths = zip(x.shape[1:-1], kernel.shape, margins)
    spatial = [n + lo + hi - k + 1 for n, k, (lo, hi) in lengths]
    return x.update(shape=(x.shape[0], *spatial, x.shape[-1]), weak_type=False)


@_correlation.def_abstract_eval
def _(x, y, *, margins, implementation):
    del implementation
    # Of what a mesh with explicit axes splits, the channels alone are left.
    spec = PartitionSpec(*[None] * (x.ndim - 1), x.sharding.spec[-1])
    sharding = x.sharding.update(spec=spec)
    shape = _kernel_shape(x, y, margins)
    return x.update(shape=shape, weak_type=False, sharding=sharding)


def _lower(primitive: Primitive, by_shifts, by_lax) -> None:
    """Says how a program computes the operation on each platform."""

    def on_cpu(a, b, *, margins, implementation):
        del implementation  # both choices are the same here
        return by_shifts(a, b, margins)

    # On an NVIDIA H200 a training step of FocalNet-T (SRF) takes 42 ms with `lax`, and
    # 56 ms with `shifted`: benchmarks/results/h200_train_step.jsonl.
    def elsewhere(a, b, *, margins, implementation):
        compute = by_lax if implementation == "auto" else by_shifts
        return compute(a, b, margins)

    register = functools.partial(mlir.register_lowering, primitive)
    register(mlir.lower_fun(elsewhere, multiple_results=False))
    register(mlir.lower_fun(on_cpu, multiple_results=False), platform="cpu")


_lower(_conv, _shifted_conv, _lax_conv)
_lower(_correlation, _shifted_correlation, _lax_correlation)


@functools.partial(jax.jit, static_argnames=("primitive", "margins", "implementation"))
def _compiled(primitive, a, b, *, margins, implementation):
    return primitive.bind(a, b, margins=margins, implementation=implementation)


def _run(primitive, a, b, **options):
    with jax.disable_jit(False):  # Else this would call itself.
        return _compiled(primitive, a, b, **options)


def _batch(primitive, arrays, axes, **options):
    """The rule for `jax.vmap`: its axis joins the batch, or else the channels."""
    [size] = {a.shape[axis] for a, axis in zip(arrays, axes) if axis is not None}
    if primitive is _conv and axes[1] is None:
        x = jnp.moveaxis(arrays[0], axes[0], 0)
        batch = x.shape[1]
        y = _conv.bind(x.reshape(size * batch, *x.shape[2:]), arrays[1], **options)
        return y.reshape(size, batch, *y.shape[1:]), 0
    joined = []
    for array, axis in zip(arrays, axes):
        array = batching.bdim_at_front(array, axis, size)
        array = jnp.moveaxis(array, 0, -2)
        channels = array.shape[-1]
        joined.append(array.reshape(*array.shape[:-2], size * channels))
    y = primitive.bind(*joined, **options)
    return y.reshape(*y.shape[:-1], size, channels), y.ndim - 1


for _primitive in (_conv, _correlation):
    _primitive.def_impl(functools.partial(_run, _primitive))
    batching.primitive_batchers[_primitive] = functools.partial(_batch, _primitive)
