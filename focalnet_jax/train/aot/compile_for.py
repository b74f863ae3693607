"""Compiles the training step for a TPU slice that isn't here, by the real TPU compiler.

    python main.py --config=configs/base.py --compile_for=v5e:16x16

It runs on any x86-64 Linux machine with the `libtpu` package. Times are the compiler's
estimates, of operations one after the other; nothing is run.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict

from focalnet_jax.chips import TPUS, Chip, model_flops_utilization
from focalnet_jax.errors import SetupError, did_you_mean, first_line
from focalnet_jax.tasks.base import Task
from focalnet_jax.train.aot.hlo import analyse
from focalnet_jax.train.program import make_program, mesh_of

# Without these variables libtpu would look for the machine that it is on.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

# The two cores of a v4 are one device, as they run.
_CHIP_CONFIGS = {"v4": {"chip_config_name": "megacore"}}


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
    collectives: dict[str, tuple[int, int]]
    compile_seconds: float
    problem: str | None = None

    @property
    def examples_per_second_and_chip(self) -> float:
        return self.batch_size / self.step_seconds / self.chips

    @property
    def model_flops_utilization(self) -> float | None:
        if self.multiply_adds is None:
            return None
        return model_flops_utilization(
            self.multiply_adds,
            self.examples_per_second_and_chip,
            chips=1,
            peak=_chip(self.slice_name).peak,
        )

    def __str__(self) -> str:
        chip = _chip(self.slice_name)
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
            lines.append("no estimate of the time: a loop's length is not to be seen")
        if self.fits:
            kinds = [
                f"{count} {kind} of {_gb(size)}"
                for kind, (count, size) in self.collectives.items()
            ]
            lines.append(f"collectives of a step: {', '.join(kinds) or 'none'}")
        lines.append(f"compiled in {self.compile_seconds:,.0f} s")
        return "\n".join(lines)

    def _inputs(self) -> str:
        """`images of 224 x 224 x 3`: the largest array of an example."""
        shape = max(self.input_shapes.values(), key=math.prod)
        return f"{self.unit} of {' x '.join(map(str, shape))}"


def compile_for(config: ConfigDict, task: Task, slice_name: str) -> Report:
    """Compiles the step that a config describes, on every chip of a slice.

    Args:
      config, task: from `check_config`; `data.num_train_examples` is set.
      slice_name: generation and chips, such as `v5e:16x16` or `v4:8x8x8`.

    Raises:
      SetupError: an unknown slice, no `libtpu`, or what `mesh_of` raises.
    """
    if config.data.num_train_examples is None:
        raise SetupError(
            "to compile without data, data.num_train_examples has to be set: it goes "
            "into the schedule"
        )
    chip = _chip(slice_name)
    with _without_flags():
        return _compile(config, task, slice_name, chip)


@contextlib.contextmanager
def _without_flags() -> Iterator[None]:
    """Hides flags of other compilers: libtpu would end the program at them silently."""
    jax.devices("cpu")  # The compiler for CPUs has read its flags after this.
    flags = os.environ.pop("XLA_FLAGS", None)
    try:
        yield
    finally:
        if flags is not None:
            os.environ["XLA_FLAGS"] = flags


def _compile(config: ConfigDict, task: Task, slice_name: str, chip: Chip) -> Report:
    devices = _devices(slice_name)
    mesh = mesh_of(config, devices=devices)
    program = make_program(
        config, task, mesh, num_examples=config.data.num_train_examples
    )
    step = program.train_step.lower(program.abstract_state, program.abstract_batch)
    start = time.monotonic()
    problem = compiled = None
    try:
        compiled = step.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        problem = _memory_problem(str(error))
    seconds = time.monotonic() - start

    text = compiled.as_text() if compiled else ""
    cycles, collectives = analyse(text)
    return Report(
        slice_name=slice_name,
        chips=len(devices),
        mesh=dict(mesh.shape),
        model=task.title,
        batch_size=config.batch_size,
        unit=task.unit,
        input_shapes={name: array.shape for name, array in task.batch.items()},
        fits=compiled is not None,
        parameter_bytes=_bytes_of_a_device(program.abstract_state.params),
        optimizer_bytes=_bytes_of_a_device(
            dataclasses.replace(program.abstract_state, step=None, params=None)
        ),
        activation_bytes=(
            compiled.memory_analysis().temp_size_in_bytes if compiled else None
        ),
        multiply_adds=task.multiply_adds,
        step_seconds=cycles / chip.clock if cycles else None,
        collectives=collectives,
        compile_seconds=seconds,
        problem=problem,
    )


def _chip(slice_name: str) -> Chip:
    generation = slice_name.partition(":")[0]
    if generation not in TPUS or not re.fullmatch(r"\w+:\d+(x\d+){1,2}", slice_name):
        hint = did_you_mean(generation, TPUS) if generation not in TPUS else ""
        raise SetupError(
            f"--compile_for={slice_name} is no slice such as v5e:16x16 or v4:4x4x4{hint}"
        )
    return TPUS[generation]


def _devices(slice_name: str) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise SetupError(
            "--compile_for needs the TPU compiler, which is not there:\n"
            "  pip install libtpu"
        )
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
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


def _memory_problem(message: str) -> str:
    """The part with the sizes."""
    found = re.search(r"Ran out of memory [\w ]+[,.] ([^\n]*?)(?:\. |\n|$)", message)
    return found[1] if found else message.partition("\n")[0]


def _bytes_of_a_device(abstract: Any) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract)
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
