"""Known accelerators: what they can do at most, and how much of that a run does."""

import dataclasses
from collections.abc import Sequence

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of accelerator, as its maker's documentation describes it.

    Attributes:
      kinds: the beginnings of what JAX calls it in `device_kind`.
      peak: dense bfloat16 operations a second.
    """

    kinds: tuple[str, ...]
    peak: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tpu(Chip):
    """A kind of TPU, which programs are compiled for in advance.

    Attributes:
      memory: bytes.
      vmem: bytes beside the vector unit of a core, into which kernels have to fit.
      clock: cycles a second, which turn the compiler's estimates into seconds.
      bandwidth: bytes a second between the chip and its memory.
      cores: of a chip; two of them share a program where they are one device.
      vector_slots: operations of a core's vector unit in one cycle, each for 8 x 128
        numbers, as the tables of `libtpu` have them.
    """

    memory: int
    vmem: int
    clock: float
    bandwidth: float
    cores: int = 1
    vector_slots: int = 4

    @property
    def vector_peak(self) -> float:
        """Float32 operations a second of the vector units."""
        return self.cores * self.vector_slots * 8 * 128 * self.clock


TPUS = {
    "v4": Tpu(
        ("TPU v4",),
        275e12,
        memory=32 << 30,
        vmem=16 << 20,
        clock=1.05e9,
        bandwidth=1228e9,
        cores=2,
        vector_slots=2,
    ),
    "v5e": Tpu(
        ("TPU v5 lite", "TPU v5e"),
        197e12,
        memory=16 << 30,
        vmem=128 << 20,
        clock=1.5e9,
        bandwidth=819e9,
    ),
    "v5p": Tpu(
        ("TPU v5p", "TPU v5"),
        459e12,
        memory=95 << 30,
        vmem=64 << 20,
        clock=1.75e9,
        bandwidth=2765e9,
        cores=2,
    ),
    "v6e": Tpu(
        ("TPU v6 lite", "TPU v6e"),
        918e12,
        memory=32 << 30,
        vmem=128 << 20,
        clock=1.75e9,
        bandwidth=1640e9,
    ),
}
GPUS = {
    "A100": Chip(("NVIDIA A100",), 312e12),
    "H100 PCIe": Chip(("NVIDIA H100 PCIe",), 756e12),
    "H100": Chip(("NVIDIA H100", "NVIDIA H200", "NVIDIA GH200"), 989e12),
}


def chip_of(device: jax.Device) -> Chip | None:
    """The chip that a device is, or is a part of; None if it isn't known."""
    for chip in (*TPUS.values(), *GPUS.values()):
        if device.device_kind.startswith(chip.kinds):
            return chip
    return None


def count_chips(devices: Sequence[jax.Device]) -> int:
    """The number of chips; in some TPUs each of a chip's two cores is a device."""
    places = {
        (getattr(device, "slice_index", None), *device.coords)
        if hasattr(device, "coords")
        else device.id
        for device in devices
    }
    return len(places)


def model_flops_utilization(
    multiply_adds: int, examples_per_second: float, *, chips: int, peak: float
) -> float:
    """The share of the peak that training uses (MFU): Chowdhery et al., arXiv 2204.02311.

    It counts what the model asks for, and not what recomputation adds.

    Args:
      multiply_adds: of a forward pass of one example; the backward pass has twice as
        many.
      examples_per_second: of all chips.
      chips: their number.
      peak: operations a second of one chip.
    """
    return 3 * 2 * multiply_adds * examples_per_second / (chips * peak)


def peak_memory() -> dict[str, int]:
    """`device_memory`: the most bytes that a local device has held; empty if unknown."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    return {"device_memory": max(peaks)} if peaks else {}
