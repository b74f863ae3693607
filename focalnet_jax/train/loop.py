"""The training loop, from a checked configuration to files in a workdir."""

import contextlib
import dataclasses

import jax
from etils import epath
from ml_collections import ConfigDict

from focalnet_jax.data import BadRecords
from focalnet_jax.errors import SetupError, argument, arguments_spelt
from focalnet_jax.tasks.base import Splits, Task
from focalnet_jax.train import sharding
from focalnet_jax.train.cadence import Cadence
from focalnet_jax.train.config import field_of, steps_of_epochs, total_steps
from focalnet_jax.train.efficiency import Efficiency
from focalnet_jax.train.evaluation import Evaluation
from focalnet_jax.train.feed import DeviceFeed
from focalnet_jax.train.loading import bad_records_of, count_bad_records, train_feed
from focalnet_jax.train.program import Program, make_program, mesh_of
from focalnet_jax.train.run.checkpoints import Checkpoints
from focalnet_jax.train.run.divergence import NonFiniteSteps
from focalnet_jax.train.run.metrics import MetricsWriter
from focalnet_jax.train.run.preemption import Preempted, Preemption
from focalnet_jax.train.run.profile import Profile
from focalnet_jax.train.run.progress import Progress
from focalnet_jax.train.run.summary import pictures_of
from focalnet_jax.train.run.workdir import check_shared, describe_run
from focalnet_jax.train.start import find_start, start
from focalnet_jax.train.state import TrainState
from focalnet_jax.train.step import Metrics


@dataclasses.dataclass(frozen=True)
class _Run:
    """All that takes part in a run."""

    config: ConfigDict
    task: Task
    workdir: epath.Path
    total_steps: int
    program: Program
    evaluation: Evaluation
    checkpoints: Checkpoints
    progress: Progress
    writer: MetricsWriter
    profile: Profile
    efficiency: Efficiency
    bad_records: BadRecords
    feed: DeviceFeed
    preemption: Preemption
    nonfinite: NonFiniteSteps


def train(config: ConfigDict, task: Task, workdir: epath.Path) -> dict[str, float]:
    """Trains, or goes on with what lies in `workdir`; returns the last metrics.

    Args:
      config, task: from `check_config`.
      workdir: holds everything that the run writes.

    Raises:
      SetupError: anything that whoever started the run can mend.
    """
    with arguments_spelt(field_of(config)), contextlib.ExitStack() as stack:
        # What can be wrong is looked for first, before anything is compiled or written.
        splits = _open(config, task)
        check_shared(workdir)
        mesh = mesh_of(config)
        profile = Profile(workdir, config.profile_steps)
        init_from = find_start(config, workdir)
        num_examples = len(splits.train.source)
        steps = total_steps(config, num_examples)
        program = make_program(config, task, mesh, num_examples=num_examples)
        layout = sharding.Layout(
            mesh, sharding.shardings_of(program.abstract_state.params)
        )
        evaluation = Evaluation(config, task, splits.test, layout)
        checkpoints = stack.enter_context(_checkpoints(config, task, workdir))
        state, origin = start(
            config,
            task,
            workdir,
            program,
            checkpoints,
            init_from=init_from,
            source=splits.train.source,
        )
        first_step = int(state.step)
        progress = stack.enter_context(
            Progress(
                first_step=first_step,
                total_steps=steps,
                batch_size=config.batch_size,
                unit=task.unit,
            )
        )
        _introduce(config, task, workdir, state, splits, steps, progress)
        if first_step >= steps:
            progress.say(f"the run is finished: step {first_step:,} of {steps:,}")
            return evaluation.run(state, progress)

        for remark in (origin, *splits.remarks, *_remarks(config, num_examples, steps)):
            progress.say(remark)
        describe_run(workdir, config, task.description(splits.train.source))
        writer = stack.enter_context(
            MetricsWriter(
                workdir,
                first_step=first_step,
                wandb_project=config.wandb_project,
                config=config.to_dict(),
            )
        )
        stack.enter_context(profile)
        bad_records = bad_records_of(config, splits.train.source)
        feed = train_feed(
            config,
            task,
            splits.train,
            mesh,
            first_step=first_step,
            bad_records=bad_records,
        )
        run = _Run(
            config=config,
            task=task,
            workdir=workdir,
            total_steps=steps,
            program=program,
            evaluation=evaluation,
            checkpoints=checkpoints,
            progress=progress,
            writer=writer,
            profile=profile,
            efficiency=Efficiency(task),
            bad_records=bad_records,
            feed=stack.enter_context(feed),
            preemption=stack.enter_context(Preemption()),
            nonfinite=NonFiniteSteps(
                config.max_nonfinite_steps,
                say=progress.say,
                describe_newest_checkpoint=checkpoints.describe_newest,
            ),
        )
        return _train_steps(run, state)


def _train_steps(run: _Run, state: TrainState) -> dict[str, float]:
    """From a state to the end of the run: the metrics of the last step.

    The order within a step is fixed: train, log, evaluate, write, save. So what stands
    in a checkpoint has its metrics on disk.
    """
    cadence = Cadence(run.config, total_steps=run.total_steps)
    first = int(state.step) + 1
    measured = metrics = {}
    for step in range(first, run.total_steps + 1):
        state, measured = _train_step(run, step, state, busy_with=measured)
        ends_early = run.preemption.reached()
        due = cadence.at(step)
        metrics = _training_metrics(run, step, measured) if due.logs else {}
        if due.evaluates and not ends_early:
            try:
                metrics |= run.evaluation.run(
                    state, run.progress, before_batch=run.preemption.check
                )
            except Preempted:
                ends_early = True
        if metrics:
            run.writer.write(step, metrics)
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
        if due.evaluates or ends_early or step == first:
            run.progress.restart_clock(step, run.feed.waited)
        if ends_early:
            run.progress.say(
                f"told to end: saved step {step:,} of {run.total_steps:,}; the same "
                "command goes on from there"
            )
            return metrics
    run.progress.say(f"finished: step {run.total_steps:,} of {run.total_steps:,}")
    return metrics


def _train_step(
    run: _Run, step: int, state: TrainState, *, busy_with: Metrics
) -> tuple[TrainState, Metrics]:
    """One step, which the devices may still be computing when it returns."""
    run.profile.start_at(step, busy_with=busy_with)
    with jax.profiler.StepTraceAnnotation("train", step_num=step):
        batch = run.feed.next(busy_with=busy_with)
        state, measured = run.program.train_step(state, batch)
    run.profile.end_at(step, busy_with=measured)
    run.nonfinite.add(step, measured)
    return state, measured


def _training_metrics(run: _Run, step: int, measured: Metrics) -> dict[str, float]:
    """What is logged of a step; waits for it."""
    run.nonfinite.look_at_all()
    metrics = {f"train/{name}": value.item() for name, value in measured.items()}
    metrics["train/learning_rate"] = float(run.program.schedule(step - 1))
    metrics |= run.progress.update(step, metrics["train/loss"], run.feed.waited)
    speed = metrics[f"train/{run.task.unit}_per_second"]
    metrics |= run.efficiency.metrics(speed)
    metrics |= count_bad_records("train", run.bad_records)
    if run.config.max_nonfinite_steps:
        metrics["train/nonfinite_steps"] = run.nonfinite.count
    return metrics


def _summarize(run: _Run) -> None:
    run.writer.summarize(
        title=f"{run.task.title}: {run.workdir.name}",
        pictures=pictures_of(run.task.metrics, unit=run.task.unit),
    )


def _open(config: ConfigDict, task: Task) -> Splits:
    splits = task.open(train=True)
    expected = config.data.num_train_examples
    if expected is not None and expected != len(splits.train.source):
        raise SetupError(
            f"{argument('num_train_examples')}={expected}, but "
            f"{splits.train.source.name} has {len(splits.train.source)}: if that is "
            "right, set it so"
        )
    return splits


def _checkpoints(config: ConfigDict, task: Task, workdir: epath.Path) -> Checkpoints:
    best = config.checkpoint.best_metric
    metric = task.metrics[best.partition("/")[2]] if best else None
    return Checkpoints(
        workdir,
        keep=config.checkpoint.keep,
        best_metric=best,
        higher_is_better=metric is None or metric.higher_is_better,
    )


def _introduce(
    config: ConfigDict,
    task: Task,
    workdir: epath.Path,
    state: TrainState,
    splits: Splits,
    steps: int,
    progress: Progress,
) -> None:
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    progress.say(
        f"{task.title}, {count:,} parameters; {len(splits.train.source):,} {task.unit}, "
        f"{steps:,} steps of {config.batch_size}; "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}; {workdir}"
    )


def _remarks(config: ConfigDict, num_examples: int, steps: int) -> list[str]:
    warmup_steps = steps_of_epochs(config, config.warmup_epochs, num_examples)
    if warmup_steps <= steps:
        return []
    return [f"the warmup of {warmup_steps:,} steps is longer than the run"]
