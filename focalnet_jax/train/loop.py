"""The training loop, from a checked configuration to files in a workdir."""

import contextlib
import dataclasses
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from focalnet_jax.chips import (
    chip_of,
    count_chips,
    model_flops_utilization,
    peak_memory,
)
from focalnet_jax.data import Source, image_operations
from focalnet_jax.errors import SetupError
from focalnet_jax.models import FocalNet, count_multiply_adds, count_params
from focalnet_jax.paths import absolute_path
from focalnet_jax.tasks.classes import (
    check_labels_fit,
    check_same_classes,
    check_trainable,
)
from focalnet_jax.train.config import steps_of_epochs, total_steps
from focalnet_jax.train.evaluation import Evaluation
from focalnet_jax.train.loading import (
    bad_records_of,
    count_bad_records,
    open_split,
    train_feed,
)
from focalnet_jax.train.program import Program, make_program, mesh_of
from focalnet_jax.train.run import workdir as files
from focalnet_jax.train.run.checkpoints import Checkpoints
from focalnet_jax.train.run.divergence import NonFiniteSteps
from focalnet_jax.train.run.metrics import MetricsWriter
from focalnet_jax.train.run.preemption import Preempted, Preemption
from focalnet_jax.train.run.profile import Profile
from focalnet_jax.train.run.progress import Progress
from focalnet_jax.train.state import TrainState
from focalnet_jax.weights.description import check_same_model, model_differences
from focalnet_jax.weights.params import (
    check_holds_params,
    load_params,
    newest_params_path,
)


def train(config: ConfigDict, workdir: epath.Path) -> dict[str, float]:
    """Trains, or goes on with what lies in `workdir`; returns the last metrics.

    Args:
      config: from `check_config`.
      workdir: holds everything that the run writes.

    Raises:
      SetupError: anything that whoever started the run can mend.
    """
    train_source, test_source = _open_data(config)
    files.check_shared(workdir)
    mesh = mesh_of(config)
    profile = Profile(workdir, config.profile_steps)
    init_from = None
    if newest_params_path(workdir) is None and config.init_from:
        init_from = check_holds_params(absolute_path(config.init_from))
    steps = total_steps(config, len(train_source))
    program = make_program(config, mesh, num_examples=len(train_source))
    evaluation = Evaluation(config, program.model, test_source, mesh)

    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(
            Checkpoints(
                workdir,
                keep=config.checkpoint.keep,
                best_metric=config.checkpoint.best_metric,
            )
        )
        if checkpoints.newest_step is not None:
            check_same_model(workdir, program.model)
            check_same_classes(workdir, train_source)
        state, origin = _start(config, workdir, program, checkpoints, init_from)
        first_step = int(state.step)

        progress = stack.enter_context(
            Progress(
                first_step=first_step, total_steps=steps, batch_size=config.batch_size
            )
        )
        progress.say(
            f"{config.model.name}, {count_params(program.model):,} parameters; "
            f"{len(train_source):,} images, {steps:,} steps of {config.batch_size}; "
            f"{jax.device_count()} x {jax.devices()[0].device_kind}; {workdir}"
        )
        if first_step >= steps:
            progress.say(f"the run is finished: step {first_step:,} of {steps:,}")
            return evaluation.run(state.params, state.ema_params, progress)
        progress.say(origin)
        if config.model.num_classes > (train_source.num_classes or math.inf):
            progress.say(
                f"the model has {config.model.num_classes:,} classes, of which "
                f"{train_source.name} has {train_source.num_classes:,}"
            )
        warmup_steps = steps_of_epochs(config, config.warmup_epochs, len(train_source))
        if warmup_steps > steps:
            progress.say(f"the warmup of {warmup_steps:,} steps is longer than the run")

        files.describe_run(workdir, config, train_source)
        writer = stack.enter_context(
            MetricsWriter(
                workdir,
                first_step=first_step,
                wandb_project=config.wandb_project,
                config=config.to_dict(),
            )
        )
        stack.enter_context(profile)
        efficiency = _Efficiency(program.model, config.data.image_size)
        bad_records = bad_records_of(config, train_source)
        feed = stack.enter_context(
            train_feed(
                config,
                train_source,
                mesh,
                first_step=first_step,
                bad_records=bad_records,
            )
        )
        preemption = stack.enter_context(Preemption())
        nonfinite = NonFiniteSteps(
            config.max_nonfinite_steps,
            say=progress.say,
            describe_newest_checkpoint=checkpoints.describe_newest,
        )
        save_clock = _SaveClock(config.checkpoint.every_minutes)
        measured = metrics = {}
        for step in range(first_step + 1, steps + 1):
            profile.start_at(step, busy_with=measured)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                batch = feed.next(busy_with=measured)
                state, measured = program.train_step(state, batch)
            profile.end_at(step, busy_with=measured)
            nonfinite.add(step, measured)
            is_last = step == steps
            ends_early = preemption.reached()
            logs = is_last or step % config.log_every_steps == 0
            evaluates = is_last or step % config.evaluate_every_steps == 0

            # The order within a step is fixed: log, evaluate, write, save. So what
            # stands in a checkpoint has its metrics on disk.
            metrics = {}
            if logs:
                nonfinite.look_at_all()
                metrics = {f"train/{name}": v.item() for name, v in measured.items()}
                metrics["train/learning_rate"] = float(program.schedule(step - 1))
                metrics |= progress.update(step, metrics["train/loss"], feed.waited)
                metrics |= efficiency(metrics["train/images_per_second"])
                metrics |= count_bad_records("train", bad_records)
                if config.max_nonfinite_steps:
                    metrics["train/nonfinite_steps"] = nonfinite.count
            if evaluates and not ends_early:
                try:
                    metrics |= evaluation.run(
                        state.params,
                        state.ema_params,
                        progress,
                        before_batch=preemption.check,
                    )
                except Preempted:
                    ends_early = True
            if metrics:
                writer.write(step, metrics)
            if (
                is_last
                or ends_early
                or step % config.checkpoint.every_steps == 0
                or (logs and save_clock.is_due())
                or (evaluates and checkpoints.is_best(metrics))
            ):
                nonfinite.look_at_all()
                writer.flush()
                checkpoints.save(state, metrics)
                save_clock.restart()
            if ends_early:
                checkpoints.wait()
                progress.say(
                    f"told to end: saved step {step:,} of {steps:,}; the same command "
                    "goes on from there"
                )
            if evaluates or ends_early:
                writer.summarize(title=f"{config.model.name}: {workdir.name}")
                progress.restart_clock(step, feed.waited)
            if ends_early:
                break
            if step == first_step + 1:  # compilation is not part of the speed
                jax.block_until_ready(state)
                progress.restart_clock(step, feed.waited)
        else:
            checkpoints.wait()
            progress.say(f"finished: step {steps:,} of {steps:,}")
        return metrics


def _open_data(config: ConfigDict) -> tuple[Source, Source]:
    """To train and to test on: there, and such that one can."""
    image_operations(config.data.pixels)  # are its libraries there?
    train_source = open_split(config, config.data.train_split)
    test_source = open_split(config, config.data.test_split)
    check_trainable(train_source, test_source)
    for source in (train_source, test_source):
        check_labels_fit(config, source)
    expected = config.data.num_train_examples
    if expected is not None and expected != len(train_source):
        raise SetupError(
            f"data.num_train_examples={expected}, but {train_source.name} has "
            f"{len(train_source)}: if that is right, set it so"
        )
    return train_source, test_source


def _start(
    config: ConfigDict,
    workdir: epath.Path,
    program: Program,
    checkpoints: Checkpoints,
    init_from: epath.Path | None,
) -> tuple[TrainState, str]:
    """What a run starts from, and what to say of it. In this order:

    1. the newest checkpoint in its workdir,
    2. the parameters that `init_from` names, with a new optimiser,
    3. new parameters.
    """
    if checkpoints.newest_step is not None:
        changes = files.changed_fields(workdir, config)
        state = checkpoints.restore(program.abstract_state)
        origin = f"resuming after step {int(state.step):,}"
        return state, origin + "".join(f"\n  with {change}" for change in changes)

    state = program.init()
    if init_from is None:
        return state, "starting anew"
    differences = [
        difference
        for difference in model_differences(init_from.parent, program.model)
        if not difference.startswith("model.num_classes")  # the head's shapes tell
    ]
    try:
        params = load_params(
            init_from,
            program.abstract_state.params,
            new=("head/",) if config.reset_head else (),
        )
    except SetupError as error:
        if not differences:
            raise
        lines = "\n  ".join(["set these fields as there:", *differences])
        raise SetupError(f"{error}\n{lines}") from error
    params = state.params | params
    ema_params = jax.tree.map(jnp.copy, params) if config.ema_decay else None
    state = dataclasses.replace(state, params=params, ema_params=ema_params)
    origin = f"starting from {init_from}"
    if config.reset_head:
        origin += ", with a new head"
    return state, origin + "".join(f"\n  but with {change}" for change in differences)


class _Efficiency:
    """How much of the chips a run uses, as far as they are known."""

    def __init__(self, model: FocalNet, image_size: int):
        self._chip = chip_of(jax.devices()[0])
        self._multiply_adds = self._chip and count_multiply_adds(model, image_size)

    def __call__(self, images_per_second: float) -> dict[str, float]:
        """`train/mfu`, of the bfloat16 peak, and `train/device_memory` in bytes."""
        metrics = {f"train/{name}": value for name, value in peak_memory().items()}
        if self._chip:
            metrics["train/mfu"] = model_flops_utilization(
                self._multiply_adds,
                images_per_second,
                chips=count_chips(jax.devices()),
                peak=self._chip.peak,
            )
        return metrics


class _SaveClock:
    """Whether minutes have passed since it was started, on the first process's clock."""

    def __init__(self, minutes: float | None):
        self._minutes = minutes
        self.restart()

    def restart(self) -> None:
        self._start = time.monotonic()

    def is_due(self) -> bool:
        if self._minutes is None:
            return False
        is_due = time.monotonic() - self._start >= 60 * self._minutes
        return bool(multihost_utils.broadcast_one_to_all(np.bool_(is_due)))
