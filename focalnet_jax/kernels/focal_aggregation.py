"""Focal contextualisation and gated aggregation in one kernel, for TPUs.

All levels of `ops.focal_modulation.aggregate_level_by_level` are computed in the memory
beside the vector unit (VMEM): depthwise convolutions, GELUs, gates and sums. The backward
pass is a second kernel. For it the forward pass saves the maps before each GELU.

Maps are `[height, width, images, channels]`, which is the order in which XLA keeps them
on a TPU. Images lie on sublanes and channels on lanes. So a shift in space is another
address and costs nothing. A program of the grid has 8 images, 128 channels and a band of
rows, see `bands.py`.

The global level needs the mean of the last level. Where a map is one band, the kernels
have it. Else it is left to XLA, because no band knows the mean before all are done.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from focalnet_jax.kernels.bands import CHANNELS, IMAGES, Bands
from focalnet_jax.kernels.result_shapes import result_shape

# Above this number of multiply-adds for a tile, the rows of a kernel are a loop. Unrolled
# code is faster, and takes long to compile.
MAX_UNROLLED = 1024

# Maps float32 numbers to the values of a function and of its derivative.
Activation = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


# --- Forward -----------------------------------------------------------------


# A net has many equal blocks. With `jit` the kernel is traced and lowered once for them.
@functools.partial(
    jax.jit, static_argnames=("activate", "bands", "save", "vmem", "interpret")
)
def forward(
    context: jax.Array,
    gates: jax.Array,
    kernels: Sequence[jax.Array],
    *,
    activate: Activation,
    bands: Bands,
    save: bool,
    vmem: int,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
    """Sums the gated levels.

    Args:
      context: `[height, width, images, channels]`.
      gates: `[height, width, images, levels + 1]`.
      kernels: `[kernel_height, kernel_width, 1, channels]` for each level.
      activate: the GELU, and its derivative.
      bands: of `forward_bands`.
      save: returns the maps before the GELU of each level.
      vmem: bytes that the kernel may take.
      interpret: runs anywhere, and slowly.

    Returns:
      The sum, as `context`; the mean of the last level over space, `[1, 1, images,
      channels]` in float32; and the saved maps.
    """
    height, width, images, channels = context.shape
    kernels = [kernel.astype(jnp.float32) for kernel in kernels]
    struct = functools.partial(result_shape, like=context)
    levels = len(kernels)
    saved = levels if save else 0
    own = _map_spec(bands, context.shape)
    block = (IMAGES, CHANNELS)
    total, sums, *pre_activations = pl.pallas_call(
        functools.partial(_forward_kernel, activate=activate, bands=bands),
        name="focal_aggregation",
        grid=_grid(bands, images, channels),
        in_specs=[
            _map_spec(bands, context.shape, bands.whole_halo),
            _gates_spec(bands, gates.shape),
            *map(_kernel_spec, kernels),
        ],
        out_specs=[
            own,
            pl.BlockSpec((1, 1, *block), lambda b, band, c: (band, 0, b, c)),
            *[own] * saved,
        ],
        out_shape=[
            struct(context.shape, context.dtype),
            struct((bands.count, 1, images, channels), jnp.float32),
            *[struct(context.shape, context.dtype)] * saved,
        ],
        scratch_shapes=[
            pltpu.VMEM((*bands.buffer_shape, *block), jnp.float32),
            pltpu.VMEM((*bands.buffer_shape, *block), jnp.float32),
            pltpu.VMEM((bands.rows, width, *block), jnp.float32),
        ],
        compiler_params=_compiler_params(vmem),
        interpret=interpret,
    )(context, gates, *kernels)
    mean = sums.sum(0, keepdims=True) / (height * width)
    if bands.count > 1:
        global_level = activate(mean)[0] * gates[..., -1:]
        total = (total + global_level).astype(total.dtype)
    return total, mean, pre_activations


def _forward_kernel(context, gates, *refs, activate: Activation, bands: Bands):
    levels = len(bands.sizes)
    kernels, results, buffers = refs[:levels], refs[levels:-3], refs[-3:]
    total, level_sum, *saved = results
    source, target, running_total = buffers
    program = _Program(bands)
    _zero_outside(program, source, target)
    _copy(program, context, source, bands.whole_halo)

    for level in range(levels):
        last_sum = _forward_level(
            program,
            level,
            source,
            kernels[level],
            gates,
            running_total=running_total,
            target=target if level < levels - 1 else None,
            saved=saved[level] if saved else None,
            activate=activate,
        )
        source, target = target, source
    level_sum[0, 0] = last_sum
    global_context, _ = activate(last_sum / (bands.height * bands.width))

    def write(y, x, width, _):
        for at in ((y, x + column) for column in range(width)):
            value = running_total[at]
            if bands.count == 1:
                value += global_context * _gate(gates[at], levels)
            total[at] = value.astype(total.dtype)

    program.for_own_tiles(write)


def _forward_level(
    program, level, source, kernel, gates, *, running_total, target, saved, activate
) -> jax.Array:
    """Writes the context of a level, if there is a target, and adds it to the total.

    Returns:
      The sum over the positions of the band.
    """
    beyond = range(level + 1, len(program.bands.sizes))

    def tile(y, x, width, level_sum):
        is_own = level_sum is not None
        values = _convolve(program, source, kernel, y, x, width)
        for column, value in enumerate(values):
            at = y, x + column
            if is_own and saved is not None:
                saved[at] = value.astype(saved.dtype)
            value, _ = activate(value)
            if target is not None:
                target[program.at(*at)] = value
            if not is_own:
                continue
            gated = value * _gate(gates[at], level)
            if level > 0:
                gated += running_total[at]
            running_total[at] = gated
            if target is None:
                level_sum += value
        return level_sum

    program.for_halo_tiles(program.bands.halo(*beyond), tile)
    return program.for_own_tiles(tile, jnp.zeros(source.shape[2:], jnp.float32))


# --- Backward ----------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("activate", "bands", "vmem", "interpret"))
def backward(
    context: jax.Array,
    gates: jax.Array,
    kernels: Sequence[jax.Array],
    pre_activations: Sequence[jax.Array],
    mean: jax.Array,
    cotangent: jax.Array,
    *,
    activate: Activation,
    bands: Bands,
    vmem: int,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
    """The cotangents of context, gates and kernels.

    Args:
      context, gates, kernels, activate, vmem, interpret: as for `forward`.
      pre_activations, mean: what it returned beside the sum.
      cotangent: of the sum, as `context`.
      bands: of `backward_bands`.
    """
    width, images, channels = context.shape[1:]
    levels = len(kernels)
    dtypes = [kernel.dtype for kernel in kernels]
    kernels = [kernel.astype(jnp.float32) for kernel in kernels]
    struct = functools.partial(result_shape, like=context)
    grid = _grid(bands, images, channels)
    halo = bands.whole_halo
    block = (IMAGES, CHANNELS)
    rows = [bands.inputs_halo(level) for level in range(levels)] + [halo]
    per_image = pl.BlockSpec((1, 1, *block), lambda b, band, c: (0, 0, b, c))
    # That of the global context.
    sums = []
    if bands.count > 1:
        # On a TPU, the product with all gates, of which the last one's is taken, is
        # faster than to cut out that gate first.
        all_sums = jnp.einsum(
            "hwbc,hwbl->bcl",
            cotangent,
            gates,
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        sums = [all_sums[None, None, ..., -1]]
    context_cotangent, gates_cotangent, *kernel_cotangents = pl.pallas_call(
        functools.partial(
            _backward_kernel,
            activate=activate,
            bands=bands,
            images=images,
            channels=channels,
        ),
        name="focal_aggregation_gradient",
        grid=grid,
        in_specs=[
            _map_spec(bands, context.shape, rows[0]),
            _gates_spec(bands, gates.shape, halo),
            per_image,
            _map_spec(bands, cotangent.shape, halo),
            *map(_kernel_spec, kernels),
            *[_map_spec(bands, context.shape, count) for count in rows[1:]],
            *[per_image for _ in sums],
        ],
        out_specs=[
            _map_spec(bands, context.shape),
            _gates_spec(bands, gates.shape),
            *map(_kernel_cotangent_spec, kernels),
        ],
        out_shape=[
            struct(context.shape, context.dtype),
            struct(gates.shape, gates.dtype),
            *[struct((*grid[:2], *kernel.shape), jnp.float32) for kernel in kernels],
        ],
        scratch_shapes=[
            *[pltpu.VMEM((*bands.buffer_shape, *block), jnp.float32)] * 3,
            pltpu.VMEM((bands.rows + 2 * bands.slopes_halo, width, *block), jnp.float32),
            pltpu.VMEM((bands.rows, width, IMAGES, levels + 1), jnp.float32),
        ],
        compiler_params=_compiler_params(vmem),
        interpret=interpret,
    )(
        context,
        gates,
        mean,
        cotangent,
        *kernels,
        *pre_activations,
        *sums,
    )
    return (
        context_cotangent,
        gates_cotangent,
        [c.sum((0, 1)).astype(d) for c, d in zip(kernel_cotangents, dtypes)],
    )


def _backward_kernel(
    context,
    gates,
    mean,
    cotangent,
    *refs,
    activate: Activation,
    bands: Bands,
    images: int,
    channels: int,
):
    levels = len(bands.sizes)
    kernels, pre_activations = refs[:levels], refs[levels : 2 * levels]
    *sums, context_cotangent, gates_cotangent = refs[2 * levels : -5 - levels]
    kernel_cotangents = refs[-5 - levels : -5]
    source, target, inputs, slopes, gate_sums = refs[-5:]
    program = _Program(bands)
    halo = bands.whole_halo
    _zero_outside(program, source, target, inputs)

    def given(y, x):
        return cotangent[program.row_in_block(y, halo), x].astype(jnp.float32)

    def gate(y, x, level):
        return _gate(gates[program.row_in_block(y, halo), x], level)

    def add_to_gates(y, x, products: dict[int, jax.Array], *, first: bool):
        """Adds sums of products over the channels to the cotangents of these gates."""
        total = gate_sums[y, x]
        if first:
            total = jnp.where(program.channel_block == 0, 0, total)
        gate_index = jax.lax.broadcasted_iota(jnp.int32, total.shape, 1)
        for level, product in products.items():
            product = _within(product, channels, axis=1, block=program.channel_block)
            total += jnp.where(gate_index == level, product.sum(1, keepdims=True), 0)
        gate_sums[y, x] = total

    def through_activation(level, rows, y, x):
        """The context of a level, and the derivative of its GELU."""
        at = program.row_in_block(y, rows), x
        before = pre_activations[level][at].astype(jnp.float32)
        return activate(before)

    def add_up(y, x, width, total):
        for at in ((y, x + column) for column in range(width)):
            total += given(*at) * gate(*at, levels)
        return total

    if sums:
        global_cotangent = sums[0][0, 0]
    else:
        zero = jnp.zeros((IMAGES, CHANNELS), jnp.float32)
        global_cotangent = program.for_own_tiles(add_up, zero)
    global_context, slope_of_global = activate(mean[0, 0])
    # For each position of the last level, that of its share in the mean.
    mean_cotangent = global_cotangent * slope_of_global / (bands.height * bands.width)

    def through_last_activation(is_own, y, x, width, _):
        for at in ((y, x + column) for column in range(width)):
            value, slope = through_activation(levels - 1, halo, *at)
            toward = given(*at) * gate(*at, levels - 1) + mean_cotangent
            source[program.at(*at)] = toward * slope
            if is_own:
                products = {
                    levels - 1: given(*at) * value,
                    levels: given(*at) * global_context,
                }
                add_to_gates(*at, products, first=True)

    def compute_inputs(level, is_own, y, x, width, _):
        for at in ((y, x + column) for column in range(width)):
            value, slope = through_activation(level - 1, bands.inputs_halo(level), *at)
            inputs[program.at(*at)] = value
            slopes[y + bands.slopes_halo, at[1]] = slope
            if is_own:
                product = given(*at) * value
                add_to_gates(*at, {level - 1: product}, first=False)

    def through_convolution(level, source, target, y, x, width, _):
        values = _convolve(program, source, kernels[level], y, x, width, flip=True)
        for column, value in enumerate(values):
            at = y, x + column
            if level == 0:
                context_cotangent[at] = value.astype(context_cotangent.dtype)
            else:
                value += given(*at) * gate(*at, level - 1)
                target[program.at(*at)] = value * slopes[y + bands.slopes_halo, at[1]]

    def everywhere(rows, run, *arguments):
        program.for_own_tiles(functools.partial(run, *arguments))
        program.for_halo_tiles(rows, functools.partial(run, *arguments))

    def own_and_halo(rows, run, *arguments):
        program.for_own_tiles(functools.partial(run, *arguments, True))
        program.for_halo_tiles(rows, functools.partial(run, *arguments, False))

    own_and_halo(halo, through_last_activation)
    for level in reversed(range(levels)):
        if level == 0:
            _copy(program, context, inputs, bands.inputs_halo(0))
        else:
            own_and_halo(bands.inputs_halo(level), compute_inputs, level)
        _correlate(program, inputs, source, kernel_cotangents[level], level, images)
        below = bands.halo(*range(level))
        everywhere(below, through_convolution, level, source, target)
        source, target = target, source

    # Programs with other channels of the same images have added their part by then.
    @pl.when(program.channel_block == pl.num_programs(2) - 1)
    def _():
        def write(y, x, width, _):
            for at in ((y, x + column) for column in range(width)):
                gates_cotangent[at] = gate_sums[at].astype(gates_cotangent.dtype)

        program.for_own_tiles(write)


def _correlate(program, inputs, cotangents, result, level: int, images: int) -> None:
    """The gradient of a kernel: products summed over the band and its images."""
    height, width = program.bands.sizes[level]
    zeros = tuple(jnp.zeros((IMAGES, CHANNELS), jnp.float32) for _ in range(width))

    def kernel_row(row, _):
        def tile(y, x, count, sums):
            sums = list(sums)
            row_of_inputs, column = program.at(y + row - height // 2, x - width // 2)
            seen = [inputs[row_of_inputs, column + offset] for offset in range(width - 1)]
            for offset in range(count):
                seen.append(inputs[row_of_inputs, column + offset + width - 1])
                given = cotangents[program.at(y, x + offset)]
                for tap in range(width):
                    sums[tap] += seen[offset + tap] * given
            return tuple(sums)

        for tap, total in enumerate(program.for_own_tiles(tile, zeros)):
            total = _within(total, images, axis=0, block=program.image_block)
            result[0, 0, row, tap] = total.sum(0, keepdims=True)

    jax.lax.fori_loop(0, height, kernel_row, None)


# --- Parts of both -----------------------------------------------------------


class _Program:
    """One program of the grid. Rows are counted from the first one of its band."""

    def __init__(self, bands: Bands):
        self.bands = bands
        self.image_block, band, self.channel_block = map(pl.program_id, range(3))
        self.start = band * bands.rows if bands.count > 1 else 0

    def row_in_block(self, y, halo: int):
        """Where a row is in a block that holds the band and a halo."""
        if halo == 0:
            return y
        return y + self.start - self.bands.first_row(self.start, halo)

    def is_in_map(self, y):
        """Whether a row is above the lower edge of the map."""
        return self.start + y < self.bands.height

    def for_own_tiles(self, run: Callable, carry=None):
        """Runs `run(y, x, width, carry)` for each tile of the band."""
        return self._for_tiles(0, self.bands.rows, run, carry)

    def for_halo_tiles(self, halo: int, run: Callable) -> None:
        """Runs `run(y, x, width, None)` for each tile of the halo that is in the map.

        A band is at least as high as a halo, so the one before it holds all of its halo,
        and only the last band may hold less.
        """
        if halo == 0:
            return
        rows = self.bands.rows

        @pl.when(self.start > 0)
        def _():
            self._for_tiles(-halo, 0, run, None)

        @pl.when(self.is_in_map(rows))
        def _():
            self._for_tiles(rows, rows + halo, run, None)

    def at(self, y, x):
        """Where a position is in a buffer."""
        rows, columns = self.bands.margin
        return y + rows, x + columns

    def _for_tiles(self, first: int, last: int, run: Callable, carry):
        width = self.bands.tile_width
        tiles, rest = divmod(self.bands.width, width)
        if self.bands.height % self.bands.rows:
            run = functools.partial(self._run_in_map, run)

        def tile(index, carry):
            y, tile = (index, 0) if tiles == 1 else _divmod(index, tiles)
            return run(first + y, tile * width, width, carry)

        carry = jax.lax.fori_loop(0, (last - first) * tiles, tile, carry)
        if rest:
            carry = jax.lax.fori_loop(
                first,
                last,
                lambda y, carry: run(y, tiles * width, rest, carry),
                carry,
            )
        return carry

    def _run_in_map(self, run: Callable, y, x, width: int, carry):
        """Runs it unless the row is beyond the map.

        The last band is shorter then. A condition for each tile keeps the number of turns
        of the loop a constant, so that the time of the kernel can be counted.
        """
        return jax.lax.cond(
            self.is_in_map(y), lambda: run(y, x, width, carry), lambda: carry
        )


def _divmod(a, b: int):
    return jax.lax.div(a, b), jax.lax.rem(a, b)


def _convolve(program, source, kernel, y, x, count: int, *, flip: bool = False) -> list:
    """`count` results in a row of a depthwise convolution."""
    height, width = kernel.shape[:2]
    top, left = program.at(y - height // 2, x - width // 2)

    def add_row(row, sums):
        sums = list(sums)
        seen = [source[top + row, left + column] for column in range(count + width - 1)]
        for tap in range(width):
            if flip:
                weight = kernel[height - 1 - row, width - 1 - tap]
            else:
                weight = kernel[row, tap]
            for column in range(count):
                sums[column] += seen[column + tap] * weight
        return tuple(sums)

    sums = tuple(jnp.zeros(source.shape[2:], jnp.float32) for _ in range(count))
    if height * width * count > MAX_UNROLLED:
        return list(jax.lax.fori_loop(0, height, add_row, sums))
    for row in range(height):
        sums = add_row(row, sums)
    return list(sums)


def _gate(gates: jax.Array, level: int) -> jax.Array:
    return gates[:, level : level + 1].astype(jnp.float32)


def _copy(program: _Program, source, buffer, halo: int) -> None:
    def copy(y, x, width, _):
        for column in range(width):
            value = source[program.row_in_block(y, halo), x + column].astype(buffer.dtype)
            buffer[program.at(y, x + column)] = value

    program.for_own_tiles(copy)
    program.for_halo_tiles(halo, copy)


def _zero_outside(program: _Program, *buffers) -> None:
    """Writes zeros around the map, where no program writes anything else.

    Programs that differ in their channels alone follow one another, so it is done once
    for them.
    """
    rows, columns = program.bands.buffer_shape
    margin_rows, margin_columns = program.bands.margin
    zero = jnp.zeros((IMAGES, CHANNELS), jnp.float32)
    sides = [*range(margin_columns), *range(columns - margin_columns, columns)]

    def zero_row(row, columns):
        for buffer in buffers:
            for column in columns:
                buffer[row, column] = zero

    def zero_row_beyond(row, carry):
        @pl.when(jnp.logical_not(program.is_in_map(row - margin_rows)))
        def _():
            zero_row(row, range(columns))

    @pl.when(program.channel_block == 0)
    def _():
        jax.lax.fori_loop(0, rows, lambda row, _: zero_row(row, sides), None)
        jax.lax.fori_loop(
            0, margin_rows, lambda row, _: zero_row(row, range(columns)), None
        )
        first_beyond = margin_rows + program.bands.last_rows
        jax.lax.fori_loop(first_beyond, rows, zero_row_beyond, None)


def _within(x: jax.Array, size: int, *, axis: int, block) -> jax.Array:
    """Zeros in place of what lies beyond an array of that size, in its last block."""
    if size % x.shape[axis] == 0:
        return x
    index = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
    return jnp.where(index < size - block * x.shape[axis], x, 0)


def _grid(bands: Bands, images: int, channels: int) -> tuple[int, int, int]:
    return pl.cdiv(images, IMAGES), bands.count, pl.cdiv(channels, CHANNELS)


def _map_spec(bands: Bands, shape: Sequence[int], halo: int = 0) -> pl.BlockSpec:
    """Blocks of maps of that shape, with some rows beyond the band."""
    return _rows_spec(bands, shape, halo, CHANNELS, lambda c: c)


def _gates_spec(bands: Bands, shape: Sequence[int], halo: int = 0) -> pl.BlockSpec:
    """Blocks of gates, which hold all levels."""
    return _rows_spec(bands, shape, halo, shape[-1], lambda c: 0)


def _rows_spec(bands: Bands, shape, halo: int, size: int, block_of) -> pl.BlockSpec:
    if halo == 0:
        return pl.BlockSpec(
            (bands.rows, bands.width, IMAGES, size),
            lambda b, band, c: (band, 0, b, block_of(c)),
        )

    # Blocks that overlap are indexed by their first entries, on all axes.
    def first_entries(b, band, c):
        row = bands.first_row(band * bands.rows, halo)
        return row, 0, b * IMAGES, block_of(c) * size

    block = (
        pl.Element(bands.rows_with(halo)),
        pl.Element(bands.width),
        pl.Element(IMAGES, (0, -shape[-2] % IMAGES)),
        pl.Element(size, (0, -shape[-1] % size)),
    )
    return pl.BlockSpec(block, first_entries)


def _kernel_spec(kernel: jax.Array) -> pl.BlockSpec:
    return pl.BlockSpec((*kernel.shape[:-1], CHANNELS), lambda b, band, c: (0, 0, 0, c))


def _kernel_cotangent_spec(kernel: jax.Array) -> pl.BlockSpec:
    return pl.BlockSpec(
        (1, 1, *kernel.shape[:-1], CHANNELS), lambda b, band, c: (b, band, 0, 0, 0, c)
    )


def _compiler_params(vmem: int) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(
        vmem_limit_bytes=vmem,
        # Bands and channels of the same images follow one another on one core.
        dimension_semantics=("parallel", "arbitrary", "arbitrary"),
    )
