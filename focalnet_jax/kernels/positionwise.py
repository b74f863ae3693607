"""What each position of a map goes through by itself, in one kernel, for TPUs.

Dense layers, LayerNorms and GELUs mix channels and no positions. A function made of them,
see `layers.py`, is given a tile of positions and the weights, all in the memory beside
the vector unit (VMEM). So what is between its layers never leaves this memory. The
backward pass is a second kernel: it computes the function of each tile again, and pulls
the cotangents back through it. A function may keep what would take long to compute again.

Maps are `[positions, images, channels]`, which is the order in which XLA keeps maps of
`[images, height, width, channels]` on a TPU.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from focalnet_jax.kernels.result_shapes import result_shape

SUBLANES, LANES = 8, 128  # of a vector register of float32

# A tile has at most so many rows, each of which is a position of an image. Above that, a
# kernel gains little.
_MOST_ROWS = 1024

# Rows of a tile times weights. The code of a tile is unrolled, and grows with them, and
# so does the time that it takes to compile.
_MOST_PRODUCTS = 2**30

# What a step of the grid costs beside its tile, in rows: about what it takes to fill the
# pipeline of the matrix unit.
_ROWS_OF_A_STEP = 48

# So many are a large enough piece to fetch, and divide the usual batches.
_MOST_IMAGES = 64

# Between layers the compiler keeps values in VMEM. In the blocks of base and large, for
# v4 and v5e, it took up to 4.2 rows of the widest layer for each row of a tile, or 0.32
# of the gradients of the weights, whichever is more.
_SCRATCH_ROWS = 5
_SCRATCH_GRADIENTS = 0.35
_USABLE_VMEM = 0.95


class Arguments(NamedTuple):
    """Those of a function of positions: arrays, or what stands for each of them.

    Attributes:
      maps: `[positions, images, channels]`; a function of tiles has `[rows, channels]`.
      images: factors of whole images, `[images, 1]` in float32.
      weights: matrices, and rows of `[1, channels]` in float32.
    """

    maps: Sequence[Any]
    images: Sequence[Any]
    weights: Sequence[Any]


# From arguments and `keep` to maps. In a kernel it computes in float32, whatever maps are
# stored as. `keep` returns the rows that it is given. What they are is saved in the
# forward pass, and so not computed again in the backward pass.
Function = Callable[[Arguments, Callable], Sequence[jax.Array]]


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How maps are cut. The last tile of an axis may reach beyond them.

    Attributes:
      positions, images: of a tile; images are a multiple of `SUBLANES`.
      shape: of the maps, `[positions, images]`.
      cores: that share the positions; each of them has as many tiles.
    """

    positions: int
    images: int
    shape: tuple[int, int]
    cores: int = 1

    @property
    def grid(self) -> tuple[int, int, int]:
        """Cores, and how many tiles of images and of positions each of them has."""
        positions, images = self.shape
        tiles = math.ceil(positions / self.positions)
        return self.cores, math.ceil(images / self.images), tiles // self.cores


def choose_tiles(
    function: Function,
    arguments: Arguments,
    *,
    vmem: int,
    cores: int = 1,
    backward: bool = False,
) -> Tiles | None:
    """The tiles that cost least; None if not even the smallest one fits into VMEM.

    Args:
      function, arguments: of the kernel; the arguments may be described by their shapes.
      vmem: bytes that the kernel may take.
      cores: of a chip, which can share the positions.
      backward: for the gradient.
    """
    maps, _, weights = arguments
    positions, images, _ = maps[0].shape
    widths = [m.shape[-1] for m in maps]
    results, kept = _widths(function, arguments)
    stored = [*widths, *results, *kept, *(widths if backward else ())]
    # Blocks of maps are there twice: one is computed while the next one is fetched.
    row = 2 * maps[0].dtype.itemsize * sum(map(_whole_lanes, stored))
    widest = max([*widths, *(size for w in weights for size in w.shape)])
    scratch_row = 4 * _SCRATCH_ROWS * _whole_lanes(widest)
    gradients = sum(4 * _size(w) for w in weights) if backward else 0
    free = _USABLE_VMEM * vmem - gradients
    free -= sum(w.dtype.itemsize * _size(w) for w in weights)
    most_rows = min(
        _MOST_ROWS,
        _MOST_PRODUCTS // max(sum(w.size for w in weights), 1),
        int(free // (row + scratch_row)),
        int((free - _SCRATCH_GRADIENTS * gradients) // row),
    )
    most_images = min(math.ceil(images / SUBLANES) * SUBLANES, _MOST_IMAGES)
    choices = [
        Tiles(p, i, (positions, images), math.gcd(cores, math.ceil(positions / p)))
        for i in range(SUBLANES, most_images + 1, SUBLANES)
        for p in range(1, min(positions, most_rows // i) + 1)
    ]

    def cost(tiles: Tiles) -> tuple[int, int]:
        """Of each core, and then by how much is fetched at once."""
        rows = tiles.positions * tiles.images
        _, *steps = tiles.grid
        return math.prod(steps) * (rows + _ROWS_OF_A_STEP), -tiles.images

    return min(choices, key=cost, default=None)


# A net has many equal blocks. With `jit` a kernel is traced and lowered once for them.
@functools.partial(
    jax.jit, static_argnames=("function", "tiles", "save", "vmem", "interpret")
)
def forward(
    arguments: Arguments,
    *,
    function: Function,
    tiles: Tiles,
    save: bool,
    vmem: int,
    interpret: bool = False,
) -> list[jax.Array]:
    """Computes the function of maps, as maps of the same dtype.

    Args:
      arguments, function: see `Arguments` and `Function`.
      tiles: of `choose_tiles`.
      save: returns what the function keeps, too, after its results.
      vmem: bytes that the kernel may take.
      interpret: runs anywhere, and slowly.
    """
    like = arguments.maps[0]
    results, kept = _widths(function, arguments)
    widths = results + kept if save else results
    return pl.pallas_call(
        functools.partial(_forward_kernel, function=function, tiles=tiles, save=save),
        name=function.__name__,
        grid=tiles.grid,
        in_specs=[_specs(tiles, arguments)],
        out_specs=[_map_spec(tiles, width) for width in widths],
        out_shape=[
            result_shape((*like.shape[:2], width), like.dtype, like=like)
            for width in widths
        ],
        compiler_params=_compiler_params(vmem, rest="parallel"),
        interpret=interpret,
    )(arguments)


def _forward_kernel(arguments, *refs, function, tiles, save):
    results, kept = _run(function, _read(arguments, tiles))
    for ref, value in zip(refs, results + kept if save else results, strict=True):
        _write(ref, value)


def _run(function: Function, arguments: Arguments) -> tuple[list, list]:
    """The results of a function, and what it keeps."""
    kept = []

    def keep(x):
        kept.append(x)
        return x

    return list(function(arguments, keep)), kept


@functools.partial(jax.jit, static_argnames=("function", "tiles", "vmem", "interpret"))
def backward(
    arguments: Arguments,
    kept: Sequence[jax.Array],
    cotangents: Sequence[jax.Array],
    *,
    function: Function,
    tiles: Tiles,
    vmem: int,
    interpret: bool = False,
) -> tuple[list[jax.Array], list[jax.Array]]:
    """The cotangents of maps and weights from those of the results.

    Args:
      arguments, function, tiles, vmem, interpret: as for `forward`.
      kept: what it saved.
      cotangents: of the results.

    Returns:
      Cotangents of the maps in their dtype, and of the weights in float32.
    """
    maps, _, weights = arguments
    struct = functools.partial(result_shape, like=maps[0])
    of_maps, of_weights = pl.pallas_call(
        functools.partial(_backward_kernel, function=function, tiles=tiles),
        name=f"{function.__name__}_gradient",
        grid=tiles.grid,
        in_specs=[
            _specs(tiles, arguments),
            *[
                [_map_spec(tiles, m.shape[-1]) for m in group]
                for group in (kept, cotangents)
            ],
        ],
        out_specs=[
            [_map_spec(tiles, m.shape[-1]) for m in maps],
            [_gradient_spec(w) for w in weights],
        ],
        out_shape=[
            [struct(m.shape, m.dtype) for m in maps],
            # Each core adds up its own.
            [struct((tiles.cores, *w.shape), jnp.float32) for w in weights],
        ],
        compiler_params=_compiler_params(vmem, rest="arbitrary"),
        interpret=interpret,
    )(arguments, list(kept), list(cotangents))
    return of_maps, [w.sum(0) for w in of_weights]


def _backward_kernel(
    arguments, kept, cotangents, of_maps, of_weights, *, function, tiles: Tiles
):
    @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
    def _():
        for ref in of_weights:
            ref[...] = jnp.zeros(ref.shape, ref.dtype)

    maps, images, weights = _read(arguments, tiles)
    kept = _read_maps(kept, tiles)

    def run(maps, weights):
        values = iter(kept)
        arguments = Arguments(maps, images, weights)
        return list(function(arguments, lambda x: _replaced(x, next(values))))

    _, pull = jax.vjp(run, maps, weights)
    toward_maps, toward_weights = pull(_read_maps(cotangents, tiles))
    chex.assert_type(toward_weights, jnp.float32)
    for ref, value in zip(of_maps, toward_maps, strict=True):
        _write(ref, value)
    for ref, value in zip(of_weights, toward_weights, strict=True):
        ref[0] += value


@jax.custom_vjp
def _replaced(x: jax.Array, value: jax.Array) -> jax.Array:
    """The value that `x` is known to have, so that `x` need not be computed."""
    del x
    return value


_replaced.defvjp(lambda x, value: (value, None), lambda _, cotangent: (cotangent, None))


# --- Parts of both -----------------------------------------------------------


def _read(arguments: Arguments, tiles: Tiles) -> Arguments:
    """The arguments of a function of tiles. What is beyond the maps is 0."""
    maps, images, weights = arguments
    start = pl.program_id(1) * tiles.images
    inside = _inside((tiles.images, 1), 0, start, tiles.shape[1])
    return Arguments(
        _read_maps(maps, tiles),
        [_where(inside, ref[...]) for ref in images],
        [ref[...] for ref in weights],
    )


def _read_maps(maps, tiles: Tiles) -> list[jax.Array]:
    """Tiles of maps as rows, in float32. What is beyond the maps is 0."""
    core, image_step, step = map(pl.program_id, range(3))
    starts = (core * tiles.grid[2] + step) * tiles.positions, image_step * tiles.images
    shape = tiles.positions, tiles.images, 1
    values = [ref[...].astype(jnp.float32) for ref in maps]
    for axis in range(2):
        inside = _inside(shape, axis, starts[axis], tiles.shape[axis])
        values = [_where(inside, value) for value in values]
    return [value.reshape(-1, value.shape[-1]) for value in values]


def _inside(shape, axis: int, start, size: int) -> jax.Array | None:
    """Where a block that begins there is in an array of that size; None if all of it."""
    if size % shape[axis] == 0:
        return None
    return start + jax.lax.broadcasted_iota(jnp.int32, shape, axis) < size


def _where(inside: jax.Array | None, value: jax.Array) -> jax.Array:
    return value if inside is None else jnp.where(inside, value, 0)


def _write(ref, value: jax.Array) -> None:
    ref[...] = value.reshape(ref.shape).astype(ref.dtype)


def _specs(tiles: Tiles, arguments: Arguments) -> Arguments:
    return Arguments(
        [_map_spec(tiles, m.shape[-1]) for m in arguments.maps],
        [pl.BlockSpec((tiles.images, 1), lambda core, i, p: (i, 0))]
        * len(arguments.images),
        [_weight_spec(w) for w in arguments.weights],
    )


def _map_spec(tiles: Tiles, width: int) -> pl.BlockSpec:
    steps = tiles.grid[2]
    return pl.BlockSpec(
        (tiles.positions, tiles.images, width),
        lambda core, i, p: (core * steps + p, i, 0),
    )


def _weight_spec(weight: jax.Array) -> pl.BlockSpec:
    # It stays where it is, so that it needs no second place.
    return pl.BlockSpec(
        weight.shape, lambda core, i, p: (0, 0), pipeline_mode=pl.Buffered(1)
    )


def _gradient_spec(weight: jax.Array) -> pl.BlockSpec:
    return pl.BlockSpec(
        (1, *weight.shape), lambda core, i, p: (core, 0, 0), pipeline_mode=pl.Buffered(1)
    )


def _widths(function: Function, arguments: Arguments) -> tuple[list[int], list[int]]:
    """The channels of each result, and of what is kept."""
    rows = [
        jax.ShapeDtypeStruct((SUBLANES, m.shape[-1]), jnp.float32) for m in arguments.maps
    ]
    factors = [jax.ShapeDtypeStruct((SUBLANES, 1), jnp.float32)] * len(arguments.images)
    tile = Arguments(rows, factors, arguments.weights)
    shapes = jax.eval_shape(functools.partial(_run, function), tile)
    results, kept = ([shape.shape[-1] for shape in group] for group in shapes)
    return results, kept


def _whole_lanes(width: int) -> int:
    return math.ceil(width / LANES) * LANES


def _size(weight: jax.Array) -> int:
    """Numbers that a weight has room for in VMEM."""
    rows, width = weight.shape
    return math.ceil(rows / SUBLANES) * SUBLANES * _whole_lanes(width)


def _compiler_params(
    vmem: int, *, rest: Literal["parallel", "arbitrary"]
) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(
        vmem_limit_bytes=vmem, dimension_semantics=("parallel", rest, rest)
    )
