"""Runs the programs of a kernel for Triton one by one in NumPy, and watches its memory.

Pallas' own interpreter moves an address beyond an array inward, or gives it padding. A
GPU would read and write another array there.
"""

import contextlib
import functools
import types
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl


class _Reference:
    """An array in memory, and how often each of its entries was written."""

    def __init__(self, values: np.ndarray, writes: np.ndarray | None = None):
        self.values, self.writes = values, writes
        self.shape, self.dtype, self.at = values.shape, values.dtype, self

    def __getitem__(self, indices) -> tuple["_Reference", tuple]:
        return self, indices


def _entries(array: _Reference, indices, mask) -> tuple[tuple, np.ndarray]:
    """The places of values in an array; those that the mask names must be inside."""
    slices = [index for index in indices if isinstance(index, slice)]
    for axis, index in enumerate(slices):
        places = np.arange(index.start, index.stop)
        shape = [-1 if other == axis else 1 for other in range(len(slices))]
        indices = [places.reshape(shape) if i is index else i for i in indices]
    places = np.broadcast_arrays(*map(np.asarray, indices))
    mask = np.broadcast_to(mask, places[0].shape)
    for place, size in zip(places, array.shape, strict=True):
        assert ((place >= 0) & (place < size))[mask].all(), "beyond an array"
    return tuple(place[mask] for place in places), mask


def _load(view, *, mask=True, other) -> np.ndarray:
    array, indices = view
    entries, mask = _entries(array, indices, mask)
    values = np.full(mask.shape, other, array.dtype)
    values[mask] = array.values[entries]
    return values


def _store(view, values, *, mask=True) -> None:
    array, indices = view
    entries, mask = _entries(array, indices, mask)
    array.values[entries] = np.asarray(values)[mask]
    array.writes[entries] += 1


# What kernels call, but for the functions that know which program it is.
_NUMPY = types.SimpleNamespace(
    float32=np.float32,
    int32=np.int32,
    logical_and=np.logical_and,
    promote_types=jnp.promote_types,
    zeros=np.zeros,
)
_LAX = types.SimpleNamespace(
    broadcasted_iota=lambda dtype, shape, axis: np.indices(shape)[axis].astype(dtype),
    div=np.floor_divide,  # No number is negative.
    fori_loop=lambda start, stop, body, carry: functools.reduce(
        lambda carry, i: body(i, carry), range(start, stop), carry
    ),
    rem=np.remainder,
)
_TRITON = types.SimpleNamespace(load=_load, store=_store, CompilerParams=dict)


@contextlib.contextmanager
def one_by_one(kernels: types.ModuleType) -> Iterator[None]:
    """Kernels of the module that are called in this context run like that.

    Raises:
      AssertionError: a program reads or writes beyond an array, or an entry of a result
        is not written exactly once.
    """

    def call(kernel: Callable, *, grid, out_shape, out_specs=None, **_):
        def run(*inputs):
            arrays = [_Reference(np.asarray(array)) for array in inputs]
            shapes = jax.tree.leaves(out_shape)
            values = [np.full(shape.shape, np.nan, shape.dtype) for shape in shapes]
            writes = [np.zeros(shape.shape, int) for shape in shapes]
            for program in np.ndindex(*grid):
                at = () if out_specs is None else out_specs.index_map(*program)[:1]
                views = [_Reference(v[at], w[at]) for v, w in zip(values, writes)]
                pallas = types.SimpleNamespace(
                    program_id=np.array(program, np.int32).__getitem__,
                    ds=lambda start, size: slice(int(start), int(start) + size),
                    cdiv=pl.cdiv,
                )
                with _replaced(kernels, pl=pallas, jnp=_NUMPY, jax=_JAX):
                    kernel(*arrays, *views)
            assert all((w == 1).all() for w in writes), "written never or twice"
            structure = jax.tree.structure(out_shape)
            return jax.tree.unflatten(structure, map(jnp.asarray, values))

        return run

    own = types.SimpleNamespace(
        pallas_call=call,
        cdiv=pl.cdiv,
        next_power_of_2=pl.next_power_of_2,
        BlockSpec=pl.BlockSpec,
    )
    with _replaced(kernels, pl=own, pltriton=_TRITON), jax.disable_jit():
        yield


_JAX = types.SimpleNamespace(lax=_LAX, Array=np.ndarray)


@contextlib.contextmanager
def _replaced(module: types.ModuleType, **values) -> Iterator[None]:
    before = {name: getattr(module, name) for name in values}
    vars(module).update(values)
    try:
        yield
    finally:
        vars(module).update(before)
