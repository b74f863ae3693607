"""Meshes of the devices here, and programs for platforms that needn't be here."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AbstractDevice, AbstractMesh, Mesh


def mesh_of(*shape: int) -> Mesh:
    """A mesh with the axes "data" and, if the shape has two, "spatial"."""
    devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
    return Mesh(devices, ("data", "spatial")[: len(shape)])


def program_of(compute: Callable, *inputs, platform: str, chip: str | None = None) -> str:
    """The text of a program, before it is compiled, for one device of that kind."""
    maker = "gpu" if chip and chip.startswith("NVIDIA") else "tpu"
    device = chip and AbstractDevice(device_kind=chip, num_cores=1, platform=maker)
    mesh = AbstractMesh((1,), ("data",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(compute).trace(*inputs)
        return traced.lower(lowering_platforms=(platform,)).as_text()
