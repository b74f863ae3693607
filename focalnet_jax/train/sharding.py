"""Where arrays live: a mesh with named axes, and which array is split over which.

One list of shardings, made here from the abstract state, serves initialisation,
restoring and compilation.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from focalnet_jax.data import Shard
from focalnet_jax.errors import SetupError

PyTree = Any

BATCH_AXES = ("data", "fsdp")

# The first pattern found in an array's path, such as `params/head/kernel` or
# `opt_state/1/0/mu/head/kernel`, decides its tactic.
RULES: tuple[tuple[str, str], ...] = (
    # Small, read by every device at every step: splitting them only adds messages.
    (r"(bias|scale|gamma_[12]|step|count)$", "replicate"),
    (r".*", "fsdp"),
)


def make_mesh(*, data: int, fsdp: int) -> Mesh:
    """Arranges all devices as `data` x `fsdp`; `data=-1` takes what `fsdp` leaves.

    Raises:
      SetupError: sizes whose product is not the number of devices.
    """
    devices = jax.device_count()
    given = f"mesh.data={data} and mesh.fsdp={fsdp}"
    if data == -1:
        data = devices // fsdp
    if data * fsdp != devices:
        choices = ", ".join(f"{devices // f} x {f}" for f in _divisors(devices))
        raise SetupError(
            f"{given} don't make up the {devices} devices that are here; "
            f"data x fsdp can be {choices}"
        )
    arranged = process_major(jax.devices()).reshape(data, fsdp)
    return Mesh(arranged, BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def process_major(devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices of each process side by side, in the order of the processes.

    Then each process holds neighbouring rows of a batch, and the first process the
    first ones. `jax.make_mesh` orders TPUs by their place in the torus instead, which
    scatters a host's rows.
    """
    return np.array(sorted(devices, key=lambda device: (device.process_index, device.id)))


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def state_shardings(abstract_state: PyTree, mesh: Mesh) -> PyTree:
    """A sharding for each array of the state, by `RULES`."""

    def sharding(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        tactic = next(tactic for rule, tactic in RULES if re.search(rule, name))
        return NamedSharding(mesh, _TACTICS[tactic](leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, abstract_state)


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


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises SetupError unless `batch_size` rows divide over the mesh."""
    if batch_size % mesh.size:
        below = batch_size // mesh.size * mesh.size
        near = " or ".join(str(size) for size in (below, below + mesh.size) if size)
        raise SetupError(
            f"batch_size={batch_size} doesn't divide over {mesh.size} devices; "
            f"the nearest that do are {near}"
        )


def process_shard(mesh: Mesh, batch_size: int) -> Shard:
    """The part of each batch that the devices of this process hold."""
    index_map = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    rows = np.concatenate([np.arange(batch_size)[i] for i in index_map.values()])
    first = int(rows.min())
    assert rows.max() - first + 1 == len(rows), "the mesh is not process-major"
    return Shard(index=first // len(rows), count=batch_size // len(rows))


def to_device(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays of the rows that each process has loaded."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }
