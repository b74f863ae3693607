"""Known accelerators: what they can do at most, and how much of it a run does."""

import dataclasses
from collections.abc import Sequence

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """What the maker's documentation says.

    Attributes:
      kinds: what JAX's `device_kind` begins with.
      peak: dense bfloat16 operations a second.
      memory: bytes; as those that follow for TPUs only.
      clock: cycles a second, by which the compiler's estimates become seconds.
    """

    kinds: tuple[str, ...]
    peak: float
    memory: int | None = None
    clock: float | None = None


TPUS = {
    "v4": Chip(("TPU v4",), 275e12, memory=32 << 30, clock=1.05e9),
    "v5e": Chip(("TPU v5 lite", "TPU v5e"), 197e12, memory=16 << 30, clock=1.5e9),
    "v5p": Chip(("TPU v5p", "TPU v5"), 459e12, memory=95 << 30, clock=1.75e9),
    "v6e": Chip(("TPU v6 lite", "TPU v6e"), 918e12, memory=32 << 30, clock=1.75e9),
}
GPUS = {
    "A100": Chip(("NVIDIA A100",), 312e12),
    "H100 PCIe": Chip(("NVIDIA H100 PCIe",), 756e12),
    "H100": Chip(("NVIDIA H100", "NVIDIA H200", "NVIDIA GH200"), 989e12),
}


def chip_of(device: jax.Device) -> Chip | None:
    """The chip that a device is (of), if it is known."""
    for chip in (*TPUS.values(), *GPUS.values()):
        if device.device_kind.startswith(chip.kinds):
            return chip
    return None


def count_chips(devices: Sequence[jax.Device]) -> int:
    """How many chips devices are: of some TPUs a chip's two cores are a device each."""
    places = {
        (getattr(device, "slice_index", None), *device.coords)
        if hasattr(device, "coords")
        else device.id
        for device in devices
    }
    return len(places)


def model_flops_utilization(
    multiply_adds: int, images_per_second: float, *, chips: int, peak: float
) -> float:
    """The share of the peak that training does (MFU): Chowdhery et al., arXiv 2204.02311.

    Counts what the model asks for, not what recomputation adds.

    Args:
      multiply_adds: of a forward pass of one image; the backward pass has twice as many.
      images_per_second: of all chips.
      chips: their number.
      peak: operations a second of one chip.
    """
    return 3 * 2 * multiply_adds * images_per_second / (chips * peak)


def peak_memory() -> dict[str, int]:
    """`device_memory`: the most bytes that any local device held; empty if unknown."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    return {"device_memory": max(peaks)} if peaks else {}
