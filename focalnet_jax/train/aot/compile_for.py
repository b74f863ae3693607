"""Compiles the training step for a TPU slice that isn't here, by the real TPU compiler.

    python main.py --config=configs/base.py --compile_for=v5e:16x16

It runs on any x86-64 Linux machine with the `libtpu` package. Times are the compiler's
estimates, of operations one after the other; nothing is run.
"""

import collections
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
import numpy as np
from jax.experimental import topologies
from ml_collections import ConfigDict

from focalnet_jax.chips import TPUS, Chip, model_flops_utilization
from focalnet_jax.errors import SetupError, did_you_mean
from focalnet_jax.models import count_multiply_adds
from focalnet_jax.train.program import make_program, mesh_of

# Of libtpu, which would otherwise look for the machine that it is on.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

# As the chips run: the two cores of a v4 are one device.
_CHIP_CONFIGS = {"v4": {"chip_config_name": "megacore"}}

_DTYPE_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_DTYPE_BYTES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
)


@dataclasses.dataclass(frozen=True)
class Report:
    """What the compiler says of a training step.

    Attributes:
      slice_name: such as `v5e:16x16`.
      chips: in it.
      mesh: sizes by axis.
      batch_size: global, in images.
      image_size: side in pixels.
      fits: whether a chip's memory holds it.
      parameter_bytes, optimizer_bytes: of a device; the optimiser's with the average of
        the parameters, where one is kept.
      activation_bytes: of a device, all that the step needs beside its arguments; None
        if the compiler gave up.
      multiply_adds: of a forward pass of one image.
      step_seconds: estimated; None if it does not fit, or for a loop of unknown length.
      collectives: by kind, how many and the bytes that they give a device.
      compile_seconds: that compilation took here.
      problem: in the compiler's words, if it doesn't fit.
    """

    slice_name: str
    chips: int
    mesh: dict[str, int]
    batch_size: int
    image_size: int
    fits: bool
    parameter_bytes: int
    optimizer_bytes: int
    activation_bytes: int | None
    multiply_adds: int
    step_seconds: float | None
    collectives: dict[str, tuple[int, int]]
    compile_seconds: float
    problem: str | None = None

    @property
    def images_per_second_and_chip(self) -> float:
        return self.batch_size / self.step_seconds / self.chips

    @property
    def model_flops_utilization(self) -> float:
        return model_flops_utilization(
            self.multiply_adds,
            self.images_per_second_and_chip,
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
            f"batch {self.batch_size:,} of {self.image_size} pixels, "
            f"{self.batch_size / self.chips:g} a chip; "
            f"{self.multiply_adds / 1e9:.2f} G multiply-adds an image, forward",
        ]
        if self.step_seconds is not None:
            lines.append(
                f"compiler-estimated: {1e3 * self.step_seconds:,.1f} ms a step, "
                f"{self.images_per_second_and_chip:,.0f} images/s/chip, "
                f"{self.model_flops_utilization:.1%} MFU; operations one after the "
                "other, collectives free"
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


def compile_for(config: ConfigDict, slice_name: str) -> Report:
    """Compiles the step that a config describes, on every chip of a slice.

    Args:
      config: from `check_config`; `data.num_train_examples` is set.
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
        return _compile(config, slice_name, chip)


@contextlib.contextmanager
def _without_flags() -> Iterator[None]:
    """Without those of other compilers, which libtpu ends the program at, unsaid."""
    jax.devices("cpu")  # has read them
    flags = os.environ.pop("XLA_FLAGS", None)
    try:
        yield
    finally:
        if flags is not None:
            os.environ["XLA_FLAGS"] = flags


def _compile(config: ConfigDict, slice_name: str, chip: Chip) -> Report:
    devices = _devices(slice_name)
    mesh = mesh_of(config, devices=devices)
    program = make_program(config, mesh, num_examples=config.data.num_train_examples)
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
        batch_size=config.batch_size,
        image_size=config.data.image_size,
        fits=compiled is not None,
        parameter_bytes=_bytes_of_a_device(program.abstract_state.params),
        optimizer_bytes=_bytes_of_a_device(
            (program.abstract_state.opt_state, program.abstract_state.ema_params)
        ),
        activation_bytes=(
            compiled.memory_analysis().temp_size_in_bytes if compiled else None
        ),
        multiply_adds=count_multiply_adds(program.model, config.data.image_size),
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
        reason = str(error).splitlines()[0]
        if "lockfile" in reason:
            reason = (
                "another process of this machine has the TPU compiler. If there is none, "
                "rm /tmp/libtpu_lockfile"
            )
        raise SetupError(f"--compile_for={slice_name}: {reason}") from error


def _memory_problem(message: str) -> str:
    """The part with the sizes."""
    found = re.search(r"Ran out of memory [\w ]+[,.] ([^\n]*?)(?:\. |\n|$)", message)
    return found[1] if found else message.splitlines()[0]


def _bytes_of_a_device(abstract: Any) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract)
    )


def analyse(text: str) -> tuple[int | None, dict[str, tuple[int, int]]]:
    """Reads the program of a device, as the TPU compiler prints it.

    A loop whose length is not to be seen, such as one that draws until a number is
    accepted, counts once.

    Returns:
      estimated cycles of a run, None if 1 % of them or more are in such loops; and
      collectives by kind: how many a run has, and the bytes of their results.
    """
    bodies = collections.defaultdict(list)
    entry = current = None
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = header[2]
            entry = current if header[1] else entry
        elif current:
            bodies[current].append(line)

    cycles = unknown_cycles = 0
    collectives = collections.defaultdict(lambda: [0, 0])
    pattern = rf"= (.*?) ({'|'.join(_COLLECTIVES)})(-start)?\("

    def visit(name: str, times: int) -> None:
        nonlocal cycles, unknown_cycles
        for line in bodies[name]:
            if found := re.search(r'"estimated_cycles":"(\d+)"', line):
                cycles += times * int(found[1])
            elif loop := re.search(
                r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line
            ):
                count = _trip_count(bodies[loop[1]])
                before = cycles
                visit(loop[2], times * (count or 1))
                unknown_cycles += 0 if count else cycles - before
            elif called := re.search(r" async-start\(.*calls=%?([\w.\-]+)", line):
                visit(called[1], times)
            if found := re.search(pattern, line):
                result, kind, is_start = found.groups()
                shapes = re.findall(r"(\w+)\[([\d,]*)\]", result)
                sizes = [*map(_shape_bytes, shapes)]
                # A start's result holds what goes in, too.
                size = sizes[1] if is_start and len(sizes) > 1 else sum(sizes)
                collectives[kind][0] += times
                collectives[kind][1] += times * size

    if entry:
        visit(entry, 1)
    totals = {kind: tuple(total) for kind, total in sorted(collectives.items())}
    return cycles if unknown_cycles < cycles / 100 else None, totals


def _trip_count(condition: list[str]) -> int | None:
    """Of a loop that counts from 0, as those of `scan`, the constant it counts to."""
    text = "\n".join(condition)
    root = re.search(r"ROOT .* compare\(%\S+, %(\S+)\), direction=LT", text)
    bound = root and re.search(
        rf"%{re.escape(root[1])} = s32\[\]\S* constant\((\d+)\)", text
    )
    return int(bound[1]) if bound else None


def _shape_bytes(shape: tuple[str, str]) -> int:
    dtype, sizes = shape
    return _DTYPE_BYTES.get(dtype, 0) * int(
        np.prod([int(s) for s in sizes.split(",") if s])
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
