"""Compiles the training step for a TPU slice that isn't here, by the real TPU compiler.

    python main.py --config=configs/base.py --compile_for=v5e:16x16

It runs on any x86-64 Linux machine with the `libtpu` package. Times are the compiler's
estimates, of operations one after the other, and for Pallas kernels the bundles that it
has scheduled, or what it takes to move their operands and results, if that is more.
Nothing is run.
"""

import re
import time

import jax
from ml_collections import ConfigDict

from focalnet_jax.chips import Tpu
from focalnet_jax.errors import SetupError
from focalnet_jax.tasks.base import Task
from focalnet_jax.train.aot.bundles import collected
from focalnet_jax.train.aot.hlo import estimate
from focalnet_jax.train.aot.report import Report
from focalnet_jax.train.aot.slices import (
    chip_of_slice,
    devices_of_slice,
    without_flags,
)
from focalnet_jax.train.memory import bytes_of_a_device
from focalnet_jax.train.program import make_program, mesh_of


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
    chip = chip_of_slice(slice_name)
    with without_flags():
        return _compile(config, task, slice_name, chip)


def _compile(config: ConfigDict, task: Task, slice_name: str, chip: Tpu) -> Report:
    devices = devices_of_slice(slice_name)
    mesh = mesh_of(config, devices=devices)
    program = make_program(
        config, task, mesh, num_examples=config.data.num_train_examples
    )
    step = program.train_step.lower(program.abstract_state, program.abstract_batch)
    problem = compiled = None
    with collected() as schedule_of:
        start = time.monotonic()
        try:
            compiled = step.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            problem = _memory_problem(str(error))
        seconds = time.monotonic() - start
        text = compiled.as_text() if compiled else None
        found = estimate(
            text or "",
            schedule_of,
            bytes_per_cycle=chip.bandwidth / chip.clock,
        )
    state = program.abstract_state
    averages = state.batch_stats, state.ema_params, state.ema_batch_stats
    memory = compiled.memory_analysis() if compiled else None
    return Report(
        slice_name=slice_name,
        chips=len(devices),
        mesh=dict(mesh.shape),
        model=task.title,
        batch_size=config.batch_size,
        unit=task.unit,
        input_shapes={name: array.shape for name, array in task.batch.items()},
        fits=compiled is not None,
        parameter_bytes=bytes_of_a_device(state.params),
        optimizer_bytes=bytes_of_a_device((state.opt_state, averages)),
        activation_bytes=memory.temp_size_in_bytes if memory else None,
        multiply_adds=task.multiply_adds,
        step_seconds=found.cycles / chip.clock if found.cycles else None,
        kernel_calls=found.kernel_calls,
        kernel_seconds=found.kernel_cycles / chip.clock,
        open_loops=found.open_loops,
        uncounted_calls=found.uncounted_calls,
        collectives=found.collectives,
        compile_seconds=seconds,
        problem=problem,
    )


def _memory_problem(message: str) -> str:
    """The part of the compiler's message that has the sizes."""
    found = re.search(r"Ran out of memory [\w ]+[,.] ([^\n]*?)(?:\. |\n|$)", message)
    return found[1] if found else message.partition("\n")[0]
