"""What a run starts from."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath
from ml_collections import ConfigDict

from focalnet_jax.data import Records
from focalnet_jax.errors import SetupError
from focalnet_jax.tasks.base import Task
from focalnet_jax.train.config import all_fields
from focalnet_jax.train.processes import failing_together
from focalnet_jax.train.program import Program
from focalnet_jax.train.run.checkpoints import Checkpoints
from focalnet_jax.train.run.workdir import changed_fields
from focalnet_jax.train.state import TrainState
from focalnet_jax.trees import named_leaves, nested
from focalnet_jax.weights.params import (
    batch_stats_path,
    find_params,
    load_params,
    newest_params_path,
    stored_shapes,
)


class Start(NamedTuple):
    """The state that a run starts from, and what to say of it."""

    state: TrainState
    origin: str


def find_start(config: ConfigDict, workdir: epath.Path) -> epath.Path | None:
    """Where the parameters lie that a new run starts from, if it doesn't start anew.

    A run that has a checkpoint needs them no more.

    Raises:
      SetupError: there are none where `init_from` says.
    """
    if newest_params_path(workdir) is not None or not config.init_from:
        return None
    return find_params(config.init_from)


def start(
    config: ConfigDict,
    task: Task,
    workdir: epath.Path,
    program: Program,
    checkpoints: Checkpoints,
    *,
    init_from: epath.Path | None,
    source: Records,
) -> Start:
    """The first of these that there is:

    1. the newest checkpoint in the workdir,
    2. the parameters of `init_from`, with a new optimiser,
    3. new parameters.

    Args:
      config, task: from `check_config`.
      workdir: of the run.
      program: of the run.
      checkpoints: in the workdir.
      init_from: from `find_start`.
      source: that the run trains on.

    Raises:
      SetupError: what is there is of another model or run, or damaged.
    """
    if checkpoints.newest_step is not None:
        return _resume(config, task, workdir, program, checkpoints, source)
    if init_from is not None:
        return _start_from(config, task, program, init_from)
    return Start(program.init(), "starting anew")


def _resume(
    config: ConfigDict,
    task: Task,
    workdir: epath.Path,
    program: Program,
    checkpoints: Checkpoints,
    source: Records,
) -> Start:
    with failing_together():
        if lines := task.differences(workdir, source):
            listed = "\n  ".join(lines)
            raise SetupError(f"{workdir} is of another model:\n  {listed}")
        changes = changed_fields(workdir, config, all_fields(config.task))
    state = checkpoints.restore(program.abstract_state)
    origin = f"resuming after step {int(state.step):,}"
    return Start(state, origin + _listed("with", changes))


def _start_from(
    config: ConfigDict, task: Task, program: Program, init_from: epath.Path
) -> Start:
    differences = task.differences(init_from.parent, None)
    may_be_new = (*task.new, *getattr(task, "may_lack", ()))
    new = _starting_anew(task, init_from) if config.reset_head else ()
    state, abstract = program.init(), program.abstract_state
    try:
        params = load_params(
            init_from,
            abstract.params,
            new=new,
            may_be_new=may_be_new,
            resize_kernels=config.resize_kernels,
            causal=bool(config.get("model", {}).get("causal")),
        )
        batch_stats = state.batch_stats
        stored = batch_stats_path(init_from)
        if batch_stats and stored.exists():
            batch_stats = load_params(
                stored, abstract.batch_stats, new=new, may_be_new=may_be_new
            )
    except SetupError as error:
        if not differences:
            raise
        lines = "\n  ".join(["set these fields as there:", *differences])
        raise SetupError(f"{error.args[0]}\n{lines}") from error
    # What was left out above keeps its new values.
    params = nested(named_leaves(state.params) | named_leaves(params))
    batch_stats = nested(named_leaves(state.batch_stats) | named_leaves(batch_stats))
    state = dataclasses.replace(state, params=params, batch_stats=batch_stats)
    if config.ema_decay:
        state = state.starting_average()
    origin = f"starting from {init_from}" + (", with a new head" if new else "")
    if batch_stats and not stored.exists():
        origin += ", with new running averages"
    return Start(state, origin + _listed("but with", differences))


def _starting_anew(task: Task, init_from: epath.Path) -> tuple[str, ...]:
    """What names of parameters begin with that are not taken from `init_from`."""
    stored = [*stored_shapes(init_from)]
    lacking = [
        prefix
        for prefix in getattr(task, "may_lack", ())
        if not any(name.startswith(prefix) for name in stored)
    ]
    return (*task.new, *lacking)


def _listed(word: str, lines: Sequence[str]) -> str:
    return "".join(f"\n  {word} {line}" for line in lines)
