"""TPU slices that aren't here, as the TPU compiler in `libtpu` knows them."""

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import topologies

from focalnet_jax.chips import TPUS, Tpu
from focalnet_jax.errors import SetupError, did_you_mean, first_line
from focalnet_jax.train.aot.bundles import requested

# Without these variables libtpu would look for the machine that it is on, and refuse to
# serve two programs at once, as if they shared a TPU.
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

# In runs, the two cores of a v4 are one device.
_CHIP_CONFIGS = {"v4": {"chip_config_name": "megacore"}}


def chip_of_slice(slice_name: str) -> Tpu:
    """The chip that a slice such as `v5e:16x16` is made of.

    Raises:
      SetupError: this is no slice.
    """
    generation = slice_name.partition(":")[0]
    if generation not in TPUS or not re.fullmatch(
        r"\w+:[1-9]\d*(x[1-9]\d*){1,2}", slice_name
    ):
        hint = did_you_mean(generation, TPUS) if generation not in TPUS else ""
        raise SetupError(
            f"--compile_for={slice_name} is no slice such as v5e:16x16 or v4:4x4x4{hint}"
        )
    return TPUS[generation]


def devices_of_slice(slice_name: str) -> list[Any]:
    """The devices of a slice, which needn't be here, as the compiler describes them.

    Raises:
      SetupError: the compiler isn't installed, or refuses.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise SetupError(
            "--compile_for needs the TPU compiler, which is not there:\n"
            "  pip install libtpu"
        )
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        with requested():
            return topologies.get_topology_desc(
                platform="tpu",
                topology_name=slice_name,
                **_CHIP_CONFIGS.get(slice_name.partition(":")[0], {}),
            ).devices
    except jax.errors.JaxRuntimeError as error:
        reason = first_line(error)
        if "lockfile" in reason:
            reason = (
                "another process of this machine has the TPU compiler. If there is none, "
                "rm /tmp/libtpu_lockfile"
            )
        raise SetupError(f"--compile_for={slice_name}: {reason}") from error


@contextlib.contextmanager
def without_flags() -> Iterator[None]:
    """Hides flags of other compilers: libtpu would end the program at them silently."""
    jax.devices("cpu")  # The compiler for CPUs has read its flags after this.
    flags = os.environ.pop("XLA_FLAGS", None)
    try:
        yield
    finally:
        if flags is not None:
            os.environ["XLA_FLAGS"] = flags
