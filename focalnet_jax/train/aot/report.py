"""What the compiler says of a training step, for people."""

import dataclasses
import math

from focalnet_jax.chips import model_flops_utilization
from focalnet_jax.train.aot.slices import chip_of_slice


@dataclasses.dataclass(frozen=True)
class Report:
    """What the compiler says of a training step.

    Attributes:
      slice_name: such as `v5e:16x16`.
      chips: in it.
      mesh: sizes by axis.
      model: what is trained.
      batch_size: global, in examples.
      unit: what an example is called, in the plural.
      input_shapes: of an example, by name.
      fits: whether a chip's memory holds it.
      parameter_bytes, optimizer_bytes: of a device; the optimiser's with the average of
        the parameters and the running averages of BatchNorm, where there are any.
      activation_bytes: of a device, all that the step needs beside its arguments; None
        if the compiler gave up.
      multiply_adds: of a forward pass of one example; None if that isn't known.
      step_seconds: estimated; None if it does not fit, or for a loop of unknown length.
      kernel_calls, kernel_seconds: of Pallas kernels, a part of the step's time.
      open_loops: loops in these kernels that count once, for their lengths are known only
        when they run.
      uncounted_calls: those of Pallas kernels whose time isn't known and isn't in the
        step's.
      collectives: by kind, how many and the bytes that they give a device.
      compile_seconds: that compilation took here.
      problem: in the compiler's words, if it doesn't fit.
    """

    slice_name: str
    chips: int
    mesh: dict[str, int]
    model: str
    batch_size: int
    unit: str
    input_shapes: dict[str, tuple[int, ...]]
    fits: bool
    parameter_bytes: int
    optimizer_bytes: int
    activation_bytes: int | None
    multiply_adds: int | None
    step_seconds: float | None
    kernel_calls: int
    kernel_seconds: float
    open_loops: int
    uncounted_calls: int
    collectives: dict[str, tuple[int, int]]
    compile_seconds: float
    problem: str | None = None

    @property
    def examples_per_second_and_chip(self) -> float | None:
        if self.step_seconds is None:
            return None
        return self.batch_size / self.step_seconds / self.chips

    @property
    def model_flops_utilization(self) -> float | None:
        speed = self.examples_per_second_and_chip
        if self.multiply_adds is None or speed is None:
            return None
        return model_flops_utilization(
            self.multiply_adds,
            speed,
            chips=1,
            peak=chip_of_slice(self.slice_name).peak,
        )

    def __str__(self) -> str:
        chip = chip_of_slice(self.slice_name)
        mesh = " x ".join(f"{axis} {size}" for axis, size in self.mesh.items())
        verdict = "fits" if self.fits else f"does NOT fit: {self.problem}"
        memory = f"{_gb(self.parameter_bytes)} parameters, "
        memory += f"{_gb(self.optimizer_bytes)} optimiser"
        if self.activation_bytes is not None:
            memory += f", {_gb(self.activation_bytes)} activations and the like"
        lines = [
            f"{self.slice_name}: {self.chips} chips, mesh {mesh}; {verdict}",
            f"memory of a chip: {memory}, of {_gb(chip.memory)}",
            f"{self.model}: batch {self.batch_size:,} of {self._inputs()}, "
            f"{self.batch_size / self.chips:g} a chip",
        ]
        if self.multiply_adds is not None:
            lines[-1] += (
                f"; {self.multiply_adds / 1e9:.2f} G multiply-adds for each, forward"
            )
        if self.step_seconds is not None:
            utilization = ""
            if self.model_flops_utilization is not None:
                utilization = f", {self.model_flops_utilization:.1%} MFU"
            lines.append(
                f"compiler-estimated: {1e3 * self.step_seconds:,.1f} ms a step, "
                f"{self.examples_per_second_and_chip:,.0f} {self.unit}/s/chip"
                f"{utilization}; operations one after the other, collectives free"
            )
        elif self.fits:
            lines.append("no estimate of the time: the length of a loop can't be seen")
        lines += self._kernels()
        if self.fits:
            kinds = [
                f"{count} {kind} of {_gb(size)}"
                for kind, (count, size) in self.collectives.items()
            ]
            lines.append(f"collectives of a step: {', '.join(kinds) or 'none'}")
        lines.append(f"compiled in {self.compile_seconds:,.0f} s")
        return "\n".join(lines)

    def _kernels(self) -> list[str]:
        lines = []
        if self.kernel_calls:
            whose = "kernels" if self.step_seconds is None else "of which kernels"
            lines.append(
                f"{whose}: {self.kernel_calls:,} calls, "
                f"{1e3 * self.kernel_seconds:,.1f} ms by bundles times grid, or by what "
                "they move"
            )
        if self.open_loops:
            lines[-1] += f"; {self.open_loops} loops of unknown length in them count once"
        if self.uncounted_calls:
            lines.append(
                f"not counted: {self.uncounted_calls} calls of kernels, of which libtpu "
                "shows no schedule"
            )
        return lines

    def _inputs(self) -> str:
        """`images of 224 x 224 x 3`: the largest array of an example."""
        shape = max(self.input_shapes.values(), key=math.prod)
        return f"{self.unit} of {' x '.join(map(str, shape))}"


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
