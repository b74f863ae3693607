"""Whether a run can fit into memory at all, seen before anything is compiled."""

import math
import os
from typing import Any

import jax
from jax.sharding import Mesh

from focalnet_jax.errors import SetupError
from focalnet_jax.tasks.base import Batch


def bytes_of_a_device(abstract: Any) -> int:
    """The size of the part of some arrays that one device holds."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract)
    )


def check_memory(mesh: Mesh, *, state: Any, batch: Batch) -> None:
    """Compares what a run holds all the time with the memory that is there.

    What the step needs beside that only the compiler knows.

    Args:
      mesh: of devices that are here.
      state: the shapes, dtypes and places of the arrays of a `TrainState`.
      batch: those of a batch.

    Raises:
      SetupError: the state does not fit on a device, or a batch on this machine.
    """
    local = mesh.local_devices
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = (local[0].memory_stats() or {}).get("bytes_limit", machine / len(local))
    if (needed := bytes_of_a_device(state)) > limit:
        raise SetupError(
            f"the model and its optimiser take {_gigabytes(needed)} on each device, "
            f"which has {_gigabytes(limit)}: make the model smaller, or split it over "
            "more devices by mesh.fsdp"
        )
    if (needed := bytes_of_a_device(batch) * len(local)) > machine:
        raise SetupError(
            f"the part of a batch that this machine loads takes {_gigabytes(needed)}, "
            f"and it has {_gigabytes(machine)} of memory: lower batch_size"
        )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"
