"""The training loop, from a checked configuration to files in a workdir."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

import jax
from etils import epath
from ml_collections import ConfigDict

from focalnet_jax.data import BadRecords
from focalnet_jax.errors import arguments_spelt
from focalnet_jax.tasks.base import Split, Task
from focalnet_jax.train.batches import (
    bad_records_of,
    check_train_split,
    count_bad_records,
    train_feed,
)
from focalnet_jax.train.cadence import Cadence
from focalnet_jax.train.config import field_of, total_steps, warmup_steps
from focalnet_jax.train.efficiency import Efficiency
from focalnet_jax.train.evaluation import StateEvaluator
from focalnet_jax.train.feed import DeviceFeed
from focalnet_jax.train.memory import check_memory
from focalnet_jax.train.processes import failing_together
from focalnet_jax.train.program import Program, make_program, mesh_of
from focalnet_jax.train.run.checkpoints import Checkpoints
from focalnet_jax.train.run.data_record import (
    DataRecord,
    data_changes,
    record_data,
    write_data,
)
from focalnet_jax.train.run.divergence import NonFiniteSteps
from focalnet_jax.train.run.lock import WorkdirLock
from focalnet_jax.train.run.metrics import MetricsWriter
from focalnet_jax.train.run.preemption import Preempted, Preemption
from focalnet_jax.train.run.profile import Profile
from focalnet_jax.train.run.progress import Progress
from focalnet_jax.train.run.summary import pictures_of
from focalnet_jax.train.run.workdir import check_shared, describe_run, write_files
from focalnet_jax.train.start import find_start, start
from focalnet_jax.train.state import TrainState
from focalnet_jax.train.step import Metrics


@dataclasses.dataclass(frozen=True)
class _Setup:
    """What a run consists of before anything is compiled or written."""

    config: ConfigDict
    task: Task
    workdir: epath.Path
    train_split: Split
    data: DataRecord
    program: Program
    evaluator: StateEvaluator
    profile: Profile
    init_from: epath.Path | None
    total_steps: int
    remarks: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Run:
    """All that takes part in the steps of a run."""

    setup: _Setup
    lock: WorkdirLock
    checkpoints: Checkpoints
    progress: Progress
    writer: MetricsWriter
    bad_records: BadRecords
    feed: DeviceFeed
    preemption: Preemption
    nonfinite: NonFiniteSteps
    efficiency: Efficiency


def train(
    config: ConfigDict, task: Task, workdir: epath.Path, *, what_next: Sequence[str] = ()
) -> dict[str, float]:
    """Trains, or goes on with what lies in `workdir`; returns the last metrics.

    Args:
      config: from `check_config`.
      task: from `check_config`.
      workdir: holds everything that the run writes.
      what_next: lines to say when the run is finished, such as commands that use it.

    Raises:
      SetupError: anything that whoever started the run can mend.
    """
    with arguments_spelt(field_of(config)), contextlib.ExitStack() as stack:
        # Before anything that takes time: this also tries to write there.
        with failing_together():
            lock = WorkdirLock(workdir, say=Progress.quiet().say)
            stack.enter_context(lock)
        check_shared(workdir)
        with failing_together():
            setup = _set_up(config, task, workdir)
        checkpoints = stack.enter_context(_checkpoints(config, task, workdir))
        changes = []
        if checkpoints.newest_step is not None:
            with failing_together():
                changes = data_changes(workdir, setup.data, unit=task.unit)
        if (checkpoints.newest_step or 0) < setup.total_steps:
            with failing_together():
                checkpoints.check_room(setup.program.abstract_state)
        # First of all: where the compilation takes long, XLA gives an alarm.
        _introduce(setup, say=Progress.quiet().say)
        if checkpoints.newest_step is None:
            Progress.quiet().say("compiling the initial state")
        state, origin = start(
            config,
            task,
            workdir,
            setup.program,
            checkpoints,
            init_from=setup.init_from,
            source=setup.train_split.source,
        )
        progress = stack.enter_context(
            Progress(
                first_step=int(state.step),
                total_steps=setup.total_steps,
                batch_size=config.batch_size,
                unit=task.unit,
            )
        )
        changes = [f"  with {change}" for change in changes]
        for remark in (origin, *changes, *setup.remarks):
            progress.say(remark)
        if state.step >= setup.total_steps:
            progress.say(
                f"the run is finished: step {state.step:,} of {setup.total_steps:,}"
            )
            metrics = setup.evaluator.run(state, progress)
            for line in what_next:
                progress.say(line)
            return metrics
        for remark in _remarks(setup):
            progress.say(remark)
        run = _open_run(setup, lock, checkpoints, progress, int(state.step), stack)
        return _train_steps(run, state, what_next)


def _set_up(config: ConfigDict, task: Task, workdir: epath.Path) -> _Setup:
    """Looks for all that can be wrong with data, devices and what a run starts from."""
    splits = task.open(train=True)
    if splits.train is None:
        raise TypeError(f"the task {task.name!r} has opened no split to train on")
    check_train_split(config, task, splits.train)
    mesh = mesh_of(config)
    profile = Profile(workdir, config.profile_steps)
    init_from = find_start(config, workdir)
    num_examples = len(splits.train.source)
    program = make_program(config, task, mesh, num_examples=num_examples)
    check_memory(mesh, state=program.abstract_state, batch=program.abstract_batch)
    return _Setup(
        config=config,
        task=task,
        workdir=workdir,
        train_split=splits.train,
        data=record_data(splits),
        program=program,
        evaluator=StateEvaluator(config, task, splits.test, program.layout),
        profile=profile,
        init_from=init_from,
        total_steps=total_steps(config, num_examples),
        remarks=splits.remarks,
    )


def _open_run(
    setup: _Setup,
    lock: WorkdirLock,
    checkpoints: Checkpoints,
    progress: Progress,
    first_step: int,
    stack: contextlib.ExitStack,
) -> _Run:
    """Describes the run in its workdir, and begins to load data.

    Args:
      setup, lock, checkpoints, progress: of the run.
      first_step: the number of steps that are done already.
      stack: closes what is opened here.
    """
    config, task, train_split = setup.config, setup.task, setup.train_split
    with failing_together():
        describe_run(setup.workdir, config, task.description(train_split.source))
        write_data(setup.workdir, setup.data)
        writer = MetricsWriter(
            setup.workdir,
            first_step=first_step,
            wandb_project=config.wandb_project,
            config=config.to_dict(),
        )
        stack.enter_context(writer)
    for remark in writer.remarks:
        progress.say(remark)
    stack.enter_context(setup.profile)
    bad_records = bad_records_of(config, train_split.source)
    feed = train_feed(
        config,
        task,
        train_split,
        setup.program.layout.mesh,
        first_step=first_step,
        bad_records=bad_records,
    )
    return _Run(
        setup=setup,
        lock=lock,
        checkpoints=checkpoints,
        progress=progress,
        writer=writer,
        bad_records=bad_records,
        feed=stack.enter_context(feed),
        preemption=stack.enter_context(Preemption()),
        nonfinite=NonFiniteSteps(
            config.max_nonfinite_steps,
            say=progress.say,
            describe_newest_checkpoint=checkpoints.describe_newest,
        ),
        efficiency=Efficiency(task),
    )


def _train_steps(
    run: _Run, state: TrainState, what_next: Sequence[str]
) -> dict[str, float]:
    """From a state to the end of the run: the metrics of the last step.

    The order within a step is fixed: train, log, evaluate, write, save. So what stands
    in a checkpoint has its metrics on disk.
    """
    first, last = int(state.step) + 1, run.setup.total_steps
    cadence = Cadence(run.setup.config, total_steps=last)
    measured: Metrics = {}
    metrics: dict[str, float] = {}
    run.progress.say("compiling the step")
    for step in range(first, last + 1):
        state, measured = _train_step(run, step, state, busy_with=measured)
        ends_early = run.preemption.reached()
        due = cadence.at(step)
        metrics = _training_metrics(run, step, measured) if due.logs else {}
        if due.evaluates and not ends_early:
            try:
                metrics |= run.setup.evaluator.run(
                    state, run.progress, before_batch=run.preemption.check
                )
            except Preempted:
                ends_early = True
        run.lock.check()
        if metrics:
            run.writer.write(step, metrics)
        if due.evaluates:
            write_files(run.setup.workdir, run.setup.evaluator.files)
        is_best = due.evaluates and run.checkpoints.is_best(metrics)
        if due.saves or ends_early or is_best:
            run.nonfinite.look_at_all()
            run.writer.flush()
            run.checkpoints.save(state, metrics)
            cadence.restart_clock()
        if due.is_last or ends_early:
            run.checkpoints.wait()
        if due.evaluates or ends_early:
            _summarize(run)
        if step == first:  # Compilation is not part of the speed.
            jax.block_until_ready(state)
            run.setup.program.schedule(step)  # It has small programs of its own.
        if due.evaluates or ends_early or step == first:
            run.progress.restart_clock(step, run.feed.waited)
        if ends_early:
            run.progress.say(
                f"told to end: saved step {step:,} of {last:,}; the same command goes on "
                "from there"
            )
            return metrics
    for line in (f"finished: step {last:,} of {last:,}", *what_next):
        run.progress.say(line)
    return metrics


def _train_step(
    run: _Run, step: int, state: TrainState, *, busy_with: Metrics
) -> tuple[TrainState, Metrics]:
    """One step, which the devices may still be computing when it returns."""
    run.setup.profile.start_at(step, busy_with=busy_with)
    with jax.profiler.StepTraceAnnotation("train", step_num=step):
        batch = run.feed.next(busy_with=busy_with)
        state, measured = run.setup.program.train_step(state, batch)
    run.setup.profile.end_at(step, busy_with=measured)
    run.nonfinite.add(step, measured)
    return state, measured


def _training_metrics(run: _Run, step: int, measured: Metrics) -> dict[str, float]:
    """What is logged of a step; waits for it."""
    run.nonfinite.look_at_all()
    metrics = {f"train/{name}": value.item() for name, value in measured.items()}
    metrics["train/learning_rate"] = float(run.setup.program.schedule(step - 1))
    metrics |= run.progress.update(step, metrics["train/loss"], run.feed.waited)
    speed = metrics.get(f"train/{run.setup.task.unit}_per_second")
    metrics |= run.efficiency.metrics(speed)
    metrics |= count_bad_records("train", run.bad_records)
    if run.setup.config.max_nonfinite_steps:
        metrics["train/nonfinite_steps"] = run.nonfinite.count
    return metrics


def _summarize(run: _Run) -> None:
    run.writer.summarize(
        title=f"{run.setup.task.title}: {run.setup.workdir.name}",
        pictures=pictures_of(run.setup.task.metrics, unit=run.setup.task.unit),
    )


def _checkpoints(config: ConfigDict, task: Task, workdir: epath.Path) -> Checkpoints:
    best = config.checkpoint.best_metric
    metric = task.metrics[best.partition("/")[2]] if best else None
    return Checkpoints(
        workdir,
        keep=config.checkpoint.keep,
        best_metric=best,
        higher_is_better=metric is None or metric.higher_is_better,
    )


def _introduce(setup: _Setup, *, say: Callable[[str], None]) -> None:
    """Says what is trained, on what and where."""
    task, examples = setup.task, len(setup.train_split.source)
    params = setup.program.abstract_state.params
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    say(
        f"{task.title}, {count:,} parameters; {examples:,} {task.unit}, "
        f"{setup.total_steps:,} steps of {setup.config.batch_size}; "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}; {setup.workdir}"
    )


def _remarks(setup: _Setup) -> list[str]:
    """What may surprise in the configuration, a line each."""
    config, examples = setup.config, len(setup.train_split.source)
    steps = warmup_steps(config, examples)
    remarks = []
    if steps > setup.total_steps:
        remarks.append(f"the warmup of {steps:,} steps is longer than the run")
    if (config.profile_steps or (0,))[-1] > setup.total_steps:
        remarks.append(
            f"profile_steps={config.profile_steps} reaches beyond the run, whose last "
            f"step is {setup.total_steps:,}"
        )
    return remarks
