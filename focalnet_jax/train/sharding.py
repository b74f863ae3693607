"""Where arrays live: a mesh with named axes, and which array is split over which.

One list of shardings, made here from the abstract state, serves initialisation,
restoring and compilation: `abstract_with_shardings`.
"""

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from focalnet_jax.errors import SetupError, counted
from focalnet_jax.placement import map_axes_over
from focalnet_jax.tasks.base import BatchArray
from focalnet_jax.trees import map_named

PyTree = Any

# Rows of a batch are split over the first two, parameters over `fsdp`, and the height of
# images and maps, or the time of sequences, over `spatial`: XLA exchanges the rows that a
# convolution needs of the neighbours (the halo).
AXES = ("data", "fsdp", "spatial")
BATCH_AXES = AXES[:2]
# By the name of a map's axis, the axis of the mesh that it is split over.
MAP_AXES = {"height": "spatial", "time": "spatial"}

# The first pattern found in an array's path, such as `params/head/kernel` or
# `opt_state/1/0/mu/head/kernel`, decides its tactic.
RULES: tuple[tuple[str, str], ...] = (
    # These are small, and every device reads them at every step: to split them would
    # only add messages.
    (r"(bias|scale|gamma_[12]|mean|var|step|count)$", "replicate"),
    (r".*", "fsdp"),
)


def make_mesh(
    *,
    data: int = -1,
    fsdp: int = 1,
    spatial: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Arranges devices as `data` x `fsdp` x `spatial`.

    Neighbours in the mesh are neighbours in the network, as far as JAX knows it. Slices
    lie along `data`: between them only gradients travel.

    Args:
      data: -1 takes what the others leave.
      fsdp, spatial: their product lies within a slice.
      devices: all by default.

    Raises:
      SetupError: sizes whose product is not the number of devices, or that reach across
        slices.
    """
    devices = jax.devices() if devices is None else devices
    given = f"mesh.data={data}, mesh.fsdp={fsdp} and mesh.spatial={spatial}"
    count, inner = len(devices), fsdp * spatial
    slices = len({_slice_index(device) for device in devices})
    if data == -1:
        data = count // inner
    if data * inner != count:
        fitting = ", ".join(
            f"{count // spatial // f} x {f} x {spatial}"
            for f in _divisors(count // spatial)
            if count % (spatial * f * slices) == 0
        )
        hint = f"with that spatial, data x fsdp x spatial can be {fitting}"
        if not fitting:
            hint = f"spatial can be {', '.join(map(str, _divisors(count // slices)))}"
        raise SetupError(
            f"{given} don't make up the {counted(count, 'device')} here; {hint}"
        )
    if data % slices:
        held = count // slices
        raise SetupError(
            f"{given}: a slice holds {held} devices, and mesh.fsdp and mesh.spatial stay "
            f"within one: {inner} doesn't divide {held}"
        )
    if slices == 1:
        arranged = mesh_utils.create_device_mesh(
            (data, fsdp, spatial), devices, allow_split_physical_axes=True
        )
    else:
        arranged = mesh_utils.create_hybrid_device_mesh(
            (data // slices, fsdp, spatial),
            (slices, 1, 1),
            devices,
            allow_split_physical_axes=True,
        )
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slice_index(device: jax.Device) -> int:
    return getattr(device, "slice_index", None) or 0


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def abstract_with_shardings(abstract: PyTree, mesh: Mesh) -> PyTree:
    """Shapes and dtypes with the place of each array, by `RULES`."""

    def placed(name, leaf):
        tactic = next(tactic for rule, tactic in RULES if re.search(rule, name))
        place = NamedSharding(mesh, _TACTICS[tactic](leaf.shape, mesh))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    return map_named(placed, abstract)


def shardings_of(abstract: PyTree) -> PyTree:
    """The places in a tree from `abstract_with_shardings`."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def abstract_batch(
    arrays: Mapping[str, BatchArray], *, batch_size: int, mesh: Mesh
) -> PyTree:
    """What a training step is given beside the state, with the place of each array."""
    return {
        name: jax.ShapeDtypeStruct(
            (batch_size, *array.shape),
            array.dtype,
            sharding=_batch_sharding(array.shape, array.axes, mesh),
        )
        for name, array in arrays.items()
    }


def _replicate(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    del shape, mesh
    return PartitionSpec()


def _split_longest(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Splits the longest axis that divides over `fsdp`; the last of equals."""
    devices = mesh.shape["fsdp"]
    axes = [axis for axis, size in enumerate(shape) if size % devices == 0]
    if devices == 1 or not axes:
        return PartitionSpec()
    longest = max(axes, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*(None,) * longest, "fsdp")


_TACTICS = {"replicate": _replicate, "fsdp": _split_longest}


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def _batch_sharding(
    shape: Sequence[int], axes: Sequence[str | None], mesh: Mesh
) -> NamedSharding:
    """Rows are split over `BATCH_AXES`, axes of an example as `MAP_AXES` says.

    Devices along an axis of the mesh that splits nothing hold the same.
    """
    # The frames of a video stay together, and their height is split.
    split = [axis for axis in axes if not (axis == "time" and "height" in axes)]
    parts = [MAP_AXES.get(axis) if axis and axis in split else None for axis in axes]
    # A size that doesn't divide is split in the program, which pads it.
    parts = [
        part if part and size % mesh.shape[part] == 0 else None
        for part, size in zip(parts, shape)
    ]
    while parts and parts[-1] is None:
        parts.pop()
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES, *parts))


class Layout(NamedTuple):
    """Where a model computes.

    Attributes:
      mesh: the devices over which its maps are split.
      params: a sharding for each parameter, as they are stored.
    """

    mesh: Mesh
    params: PyTree


def maps_on(layout: Layout | None) -> contextlib.AbstractContextManager[None]:
    """Models traced inside have their maps split as their images are."""
    mesh = layout and layout.mesh
    return map_axes_over(mesh, {"batch": BATCH_AXES, **MAP_AXES})


def gathered(params: PyTree, layout: Layout | None) -> PyTree:
    """Parameters whole on every device, for as long as they are computed with.

    The constraint is explicit, because XLA would otherwise split some convolutions by
    channels, and move maps in place of kernels. Gradients come back split as the
    parameters are.
    """
    if layout is None:
        return params

    @jax.custom_vjp
    def gather(params):
        return jax.lax.with_sharding_constraint(params, replicated(layout.mesh))

    def scatter(_, gradients):
        return (jax.lax.with_sharding_constraint(gradients, layout.params),)

    gather.defvjp(lambda params: (gather(params), None), scatter)
    return gather(params)


def check_batch_size(batch_size: int, mesh: Mesh, *, parts: int = 1) -> None:
    """Raises SetupError unless each of so many parts divides over the mesh."""
    devices = mesh.size // mesh.shape["spatial"]
    unit = devices * parts
    if batch_size % unit:
        below = batch_size // unit * unit
        near = " or ".join(str(size) for size in (below, below + unit) if size)
        steps = f" in accumulate_steps={parts}" if parts > 1 else ""
        raise SetupError(
            f"batch_size={batch_size} doesn't divide over {devices} devices{steps}; "
            f"the nearest that do are {near}"
        )


def process_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """The rows of each global batch that the devices of this process hold, in order.

    They aren't always neighbours, since the mesh follows the network. Processes that
    split the height of images between them hold the same rows.
    """
    places = _batch_sharding((), (), mesh)
    index_map = places.addressable_devices_indices_map((batch_size,))
    slices = [index[0] for index in index_map.values() if index]
    return sorted({row for rows in slices for row in range(batch_size)[rows]})


def to_device(
    batch: Mapping[str, np.ndarray],
    arrays: Mapping[str, BatchArray],
    mesh: Mesh,
    *,
    batch_size: int,
) -> dict[str, jax.Array]:
    """Makes global arrays of the rows that each process has loaded: `process_rows`.

    Args:
      batch: these rows.
      arrays: what is known of the axes of some of them; others are split by rows alone.
      mesh: where they go.
      batch_size: rows of all processes.
    """

    def place(name, value):
        axes = arrays[name].axes if name in arrays else ()
        return jax.make_array_from_process_local_data(
            _batch_sharding(value.shape[1:], axes, mesh),
            value,
            (batch_size, *value.shape[1:]),
        )

    return {name: place(name, value) for name, value in batch.items()}
