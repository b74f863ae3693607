"""Focal contextualisation and gated aggregation by kernels for NVIDIA GPUs.

There are two kernels. One computes a depthwise convolution and what follows it at each
position: the GELU in the forward pass; in the backward pass the sum with the cotangent
that comes through the gate, and the product with the slope of the GELU. The other one
computes the gradient of a depthwise kernel. Gates, sums and means are left to XLA, which
fuses them into few passes over the maps. To add up the gated levels within the
convolutions would take more of them, for the sum would come and go with each level.

Maps are `[images, height, width, channels]`. A program of a grid has some rows and
columns of an image and a block of channels. Its values are arrays of `[COLUMNS,
channels]`, one for each row, in registers. A tap of a depthwise kernel reads such arrays
from memory, shifted, with 0 beyond the map. What was read for one tap serves the taps
above and below it in other rows, and the caches have it for those to the left and right.

The kernels are written in Pallas for Triton. JAX has deprecated that since 0.11. A
version of JAX without it has no such kernels.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from focalnet_jax.kernels.result_shapes import result_shape

try:
    from jax.experimental.pallas import triton as pltriton
except ImportError:
    IS_THERE = False
else:
    IS_THERE = True

# Of a tile. The rows divide the maps of all stages at 224 pixels. Sizes of arrays have to
# be powers of 2, but each row is an array of its own.
ROWS, COLUMNS = 7, 8
MOST_CHANNELS = 64

# A program for the gradient of a depthwise kernel adds up the products of so many taps.
# With more of them, Triton takes minutes to compile it.
MOST_TAPS = 16

# For such a gradient. So many occupy a card; each writes a sum of its own.
PROGRAMS = 1024

# Of a depthwise kernel. For each row, a program has an array of sums in registers.
MOST_ROWS_OF_KERNEL = 32

# Maps numbers, in float32 or wider, to the values of a function and of its derivative.
Activation = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


# --- The operator ------------------------------------------------------------


# A net has many equal blocks. With `jit` kernels are traced and lowered once for them.
@functools.partial(jax.jit, static_argnames=("activate", "save", "interpret"))
def forward(
    context: jax.Array,
    gates: jax.Array,
    kernels: Sequence[jax.Array],
    *,
    activate: Activation,
    save: bool,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
    """Sums the gated levels.

    Args:
      context: `[images, height, width, channels]`.
      gates: `[images, height, width, levels + 1]`.
      kernels: `[kernel_height, kernel_width, 1, channels]` for each level.
      activate: the GELU, and its derivative.
      save: returns the maps before the GELU of each level.
      interpret: runs anywhere, and slowly.

    Returns:
      The sum, as `context`; the mean of the last level over space, `[images, 1, 1,
      channels]` in float32 or wider; and the saved maps.
    """

    def finish(before):
        value, _ = activate(before)
        return (value, before) if save else (value,)

    total, saved = jnp.zeros((), _wide(context)), []
    for level, kernel in enumerate(kernels):
        context, *before = _convolve(
            context,
            kernel,
            reach=_reach(kernel),
            finish=finish,
            results=1 + save,
            interpret=interpret,
        )
        saved += before
        total += _widen(context) * _gate(gates, level)
    mean = _widen(context).mean((1, 2), keepdims=True)
    total += activate(mean)[0] * _gate(gates, -1)
    return total.astype(context.dtype), mean, saved


@functools.partial(jax.jit, static_argnames=("activate", "interpret"))
def backward(
    context: jax.Array,
    gates: jax.Array,
    kernels: Sequence[jax.Array],
    saved: Sequence[jax.Array],
    mean: jax.Array,
    cotangent: jax.Array,
    *,
    activate: Activation,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
    """The cotangents of context, gates and kernels.

    Args:
      context, gates, kernels, activate, interpret: as for `forward`.
      saved, mean: what it returned beside the sum.
      cotangent: of the sum, as `context`.
    """
    given, levels = _widen(cotangent), [activate(_widen(x))[0] for x in saved]
    global_level, slope = activate(mean)
    of_gates = [(given * level).sum(-1) for level in (*levels, global_level)]

    of_mean = (given * _gate(gates, -1)).sum((1, 2), keepdims=True) * slope
    toward = given * _gate(gates, -2) + of_mean / math.prod(context.shape[1:3])
    toward = (toward * activate(_widen(saved[-1]))[1]).astype(context.dtype)

    def past_gelu(toward, given, gate, before):
        return ((toward + given * gate) * activate(before)[1],)

    sources = [context, *(level.astype(context.dtype) for level in levels[:-1])]
    of_kernels = []
    for level, kernel in reversed(list(enumerate(kernels))):
        # `toward` is the cotangent of what is before the GELU of this level.
        of_kernels.append(_correlate(sources[level], toward, kernel, interpret=interpret))
        height, width = kernel.shape[:2]
        up, left = _reach(kernel)
        others: tuple = ()
        if level > 0:
            others = cotangent, gates[..., level - 1, None], saved[level - 1]
        [toward] = _convolve(
            toward,
            jnp.flip(kernel, (0, 1)),
            *others,
            reach=(height - 1 - up, width - 1 - left),
            finish=past_gelu if others else lambda toward: (toward,),
            interpret=interpret,
        )
    return toward, jnp.stack(of_gates, -1).astype(gates.dtype), of_kernels[::-1]


def _gate(gates: jax.Array, level: int) -> jax.Array:
    return _widen(gates[..., level, None])


def _reach(kernel: jax.Array) -> tuple[int, int]:
    """How many rows upward and columns to the left a depthwise kernel reaches."""
    height, width = kernel.shape[:2]
    return (height - 1) // 2, (width - 1) // 2


def _wide(x) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _widen(x: jax.Array) -> jax.Array:
    return x.astype(_wide(x))


# --- Places ------------------------------------------------------------------


class _Place(NamedTuple):
    """Where values of `[columns, channels]` are in an array of four axes.

    A depthwise kernel, `[kernel_height, kernel_width, 1, channels]`, has a single column.
    """

    image: Any
    y: Any
    x: Any
    channel: Any
    columns: int
    channels: int

    def shifted(self, y, x) -> "_Place":
        return self._replace(y=self.y + y, x=self.x + x)

    @property
    def indices(self) -> tuple:
        """Of the values, along each axis."""
        column = jax.lax.broadcasted_iota(jnp.int32, (self.columns, 1), 0)
        channel = jax.lax.broadcasted_iota(jnp.int32, (1, self.channels), 1)
        return self.image, self.y, self.x + column, self.channel + channel


def _load(ref, place: _Place) -> jax.Array:
    """Values in float32 or wider, which are 0 beyond the array.

    Those of a map with a single channel are `[columns, 1]`.
    """
    if ref.shape[-1] == 1:
        place = place._replace(channel=0, channels=1)
    indices = place.indices
    mask = _is_inside(indices, ref.shape)
    return _widen(pltriton.load(ref.at[indices], mask=mask, other=0))


def _store(ref, place: _Place, values: jax.Array) -> None:
    """Writes those values that are inside of the array."""
    image, y, x, channel = map(jnp.int32, place[:4])
    *_, columns, channels = place
    view = ref.at[image, y, pl.ds(x, columns), pl.ds(channel, channels)]
    mask = _is_inside(place.indices, ref.shape)
    pltriton.store(view, values.astype(ref.dtype), mask=mask)


def _is_inside(indices: tuple, shape: tuple[int, ...]) -> jax.Array:
    pairs = zip(indices, shape, strict=True)
    inside = [(index >= 0) & (index < size) for index, size in pairs]
    return functools.reduce(jnp.logical_and, inside)


def _channel_block(channels: int) -> int:
    """A power of 2 that divides the channels, unless it would be small."""
    divisor = math.gcd(channels, MOST_CHANNELS)
    if divisor >= 16:
        return divisor
    return min(pl.next_power_of_2(channels), MOST_CHANNELS)


# Indices are 32 bits wide, even where JAX has 64. Triton divides them by `lax` alone.


def _loop(count: int, body: Callable, start: Any) -> Any:
    return jax.lax.fori_loop(0, count, lambda i, x: body(jnp.int32(i), x), start)


def _divided(number: jax.Array, divisor: int) -> tuple[jax.Array, jax.Array]:
    divisor = np.int32(divisor)
    return jax.lax.div(number, divisor), jax.lax.rem(number, divisor)


def _compiler_params(block: int):
    """For so many channels. A thread has four values of an array."""
    return pltriton.CompilerParams(num_warps=max(COLUMNS * block // 128, 1), num_stages=1)


# --- A convolution and what follows it ---------------------------------------


def _convolve(
    x: jax.Array,
    kernel: jax.Array,
    *others: jax.Array,
    reach: tuple[int, int],
    finish: Callable[..., Sequence[jax.Array]],
    results: int = 1,
    interpret: bool,
) -> list[jax.Array]:
    """Convolves a map, and computes what follows at each position.

    Args:
      x: `[images, height, width, channels]`.
      kernel: `[kernel_height, kernel_width, 1, channels]`.
      others: maps as `x`, or with a single channel that holds for all.
      reach: how many rows upward and columns to the left the kernel reaches.
      finish: from the convolution and the others, in float32 or wider, to the results.
      results: their number.

    Returns:
      The results, each as `x`.
    """
    images, height, width, channels = x.shape
    rows, block = min(ROWS, height), _channel_block(channels)
    blocks = pl.cdiv(channels, block), pl.cdiv(width, COLUMNS), pl.cdiv(height, rows)
    return pl.pallas_call(
        functools.partial(
            _convolve_kernel,
            count=len(others),
            rows=rows,
            block=block,
            reach=reach,
            finish=finish,
        ),
        name="depthwise_convolution",
        grid=(*blocks, images),
        out_shape=[result_shape(x.shape, x.dtype, like=x)] * results,
        compiler_params=_compiler_params(block),
        interpret=interpret,
    )(x, _widen(kernel), *others)


def _convolve_kernel(x, kernel, *refs, count, rows, block, reach, finish):
    others, results = refs[:count], refs[count:]
    channel, column, row, image = map(pl.program_id, range(4))
    place = _Place(image, row * rows, column * COLUMNS, channel * block, COLUMNS, block)
    (height, width, *_), (up, left) = kernel.shape, reach

    def add_column(column, sums):
        taps = [
            _load(kernel, place._replace(image=row, y=column, x=0, columns=1))
            for row in range(height)
        ]
        sums = list(sums)
        for row in range(rows + height - 1):
            values = _load(x, place.shifted(row - up, column - left))
            for tap in range(height):
                if 0 <= row - tap < rows:
                    sums[row - tap] += taps[tap] * values
        return sums

    zeros = [jnp.zeros((COLUMNS, block), kernel.dtype) for _ in range(rows)]
    sums = _loop(width, add_column, zeros)
    for row in range(rows):
        own = place.shifted(row, 0)
        values = finish(sums[row], *[_load(other, own) for other in others])
        for result, value in zip(results, values, strict=True):
            _store(result, own, value)


# --- The gradient of a depthwise kernel --------------------------------------


def _correlate(
    x: jax.Array, y: jax.Array, kernel: jax.Array, *, interpret: bool
) -> jax.Array:
    """The cotangent of the kernel of a convolution.

    Args:
      x: the map that was convolved, `[images, height, width, channels]`.
      y: the cotangent of the result, as `x`.
      kernel: what it was convolved with.

    Returns:
      As `kernel`.
    """
    images, height, _, channels = x.shape
    kernel_height, kernel_width = kernel.shape[:2]
    block = _channel_block(channels)
    blocks = pl.cdiv(channels, block)
    # Programs share the columns of the depthwise kernel, the channels and the images.
    groups = pl.cdiv(kernel_width, max(MOST_TAPS // kernel_height, 1))
    parts = min(images, pl.cdiv(PROGRAMS, groups * blocks))
    sums = pl.pallas_call(
        functools.partial(
            _correlate_kernel,
            columns=pl.cdiv(kernel_width, groups),
            block=block,
            images=pl.cdiv(images, parts),
            rows=min(ROWS, height),
            reach=_reach(kernel),
        ),
        name="depthwise_correlation",
        grid=(groups, blocks, parts),
        out_specs=pl.BlockSpec(
            (None, *kernel.shape), lambda group, block, part: (part, 0, 0, 0, 0)
        ),
        out_shape=result_shape((parts, *kernel.shape), _wide(x), like=x),
        compiler_params=_compiler_params(block),
        interpret=interpret,
    )(x, y)
    return sums.sum(0).astype(kernel.dtype)


def _correlate_kernel(x, y, sums, *, columns, block, images, rows, reach):
    group, channel, part = map(pl.program_id, range(3))
    (kernel_height, *_), (up, left) = sums.shape, reach
    row_blocks, column_blocks = pl.cdiv(x.shape[1], rows), pl.cdiv(x.shape[2], COLUMNS)
    taps = [(tap, column) for tap in range(kernel_height) for column in range(columns)]

    def add_tile(number, totals):
        number, column = _divided(number, column_blocks)
        image, row = _divided(number, row_blocks)
        place = _Place(
            part * images + image,
            row * rows,
            column * COLUMNS,
            channel * block,
            COLUMNS,
            block,
        )
        cotangents = [_load(y, place.shifted(row, 0)) for row in range(rows)]
        totals = dict(zip(taps, totals))
        for column in range(columns):
            for row in range(rows + kernel_height - 1):
                right = group * columns + column - left
                values = _load(x, place.shifted(row - up, right))
                for tap in range(kernel_height):
                    if 0 <= row - tap < rows:
                        totals[tap, column] += values * cotangents[row - tap]
        return list(totals.values())

    tiles = images * row_blocks * column_blocks
    zeros = [jnp.zeros((COLUMNS, block), sums.dtype) for _ in taps]
    totals = _loop(tiles, add_tile, zeros)
    for (tap, column), total in zip(taps, totals):
        place = _Place(tap, group * columns + column, 0, channel * block, 1, block)
        _store(sums, place, total.sum(0, keepdims=True))
