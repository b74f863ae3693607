"""A small Pallas kernel for TPUs, with loops of every sort, to see what is counted."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

ROWS = 10


def _kernel(count_ref, x_ref, y_ref):
    def add(index, total):
        return total * 1.5 + x_ref[index]

    def add_all(_, total):
        return jax.lax.fori_loop(0, ROWS, add, total)

    total = jnp.zeros(y_ref.shape, y_ref.dtype)
    total = jax.lax.fori_loop(0, 5, add_all, total)  # one in another
    total = jax.lax.fori_loop(2, 9, add, total)
    total = jax.lax.fori_loop(0, count_ref[0], add, total)  # of unknown length

    @pl.when(pl.program_id(0) > 0)
    def _():
        y_ref[...] = total


def add_rows(count, x):
    """Adds up the rows of x, `[ROWS, h, w]`, more than once; count is `[1]`."""
    tile = (8, 128)
    grid = (x.shape[1] // tile[0], x.shape[2] // tile[1])
    return pl.pallas_call(
        _kernel,
        grid=grid,
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            pl.BlockSpec((ROWS, *tile), lambda i, j: (0, i, j)),
        ],
        out_specs=pl.BlockSpec(tile, lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
        name="add_rows",
    )(count, x)
