"""Training and evaluation, from a checked configuration to files in a workdir."""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from focalnet_jax.chips import (
    chip_of,
    count_chips,
    model_flops_utilization,
    peak_memory,
)
from focalnet_jax.data import (
    BadRecordError,
    BadRecords,
    Batch,
    EvalTransform,
    Source,
    check_label,
    eval_batches,
    image_operations,
    open_source,
    train_batches,
)
from focalnet_jax.errors import SetupError
from focalnet_jax.evaluators import Classification
from focalnet_jax.model_description import (
    check_same_model,
    find_description,
    model_differences,
)
from focalnet_jax.models import FocalNet, count_multiply_adds, count_params
from focalnet_jax.saved_params import (
    absolute_path,
    check_holds_params,
    load_params,
    newest_params_path,
)
from focalnet_jax.train import sharding
from focalnet_jax.train import workdir as files
from focalnet_jax.train.checkpoints import Checkpoints
from focalnet_jax.train.config import (
    model_of,
    steps_of_epochs,
    total_steps,
    train_transform_of,
)
from focalnet_jax.train.divergence import NonFiniteSteps
from focalnet_jax.train.feed import DeviceFeed
from focalnet_jax.train.metrics import MetricsWriter
from focalnet_jax.train.preemption import Preemption
from focalnet_jax.train.profile import Profile
from focalnet_jax.train.program import Program, make_program, mesh_of
from focalnet_jax.train.progress import Progress
from focalnet_jax.train.state import TrainState, initial_state
from focalnet_jax.train.step import make_predict


def train(config: ConfigDict, workdir: epath.Path) -> dict[str, float]:
    """Trains, or goes on with what lies in `workdir`; returns the last metrics.

    Args:
      config: from `check_config`.
      workdir: holds everything that the run writes.

    Raises:
      SetupError: anything that whoever started the run can mend.
    """
    image_operations(config.data.pixels)  # are its libraries there?
    train_source = _open_source(config, config.data.train_split)
    test_source = _open_source(config, config.data.test_split)
    _check_trainable(train_source, test_source)
    for source in (train_source, test_source):
        _check_labels_fit(config, source)
    expected = config.data.num_train_examples
    if expected is not None and expected != len(train_source):
        raise SetupError(
            f"data.num_train_examples={expected}, but {train_source.name} has "
            f"{len(train_source)}: if that is right, set it so"
        )
    mesh = mesh_of(config)
    init_from = None
    if newest_params_path(workdir) is None and config.init_from:
        init_from = check_holds_params(absolute_path(config.init_from))
    steps = total_steps(config, len(train_source))
    program = make_program(config, mesh, num_examples=len(train_source))
    evaluation = _make_evaluation(config, program.model, test_source, mesh)

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
            _check_same_classes(workdir, train_source)
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
            return evaluation(state.params, state.ema_params, progress)
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
        profile = stack.enter_context(Profile(workdir, config.profile_steps))
        efficiency = _Efficiency(program.model, config.data.image_size)
        bad_records = _bad_records(config, train_source)
        feed = stack.enter_context(
            _feed(
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
            newest_checkpoint=lambda: checkpoints.newest_step,
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
            ends_early = preemption.reached(step) and not is_last
            logs = is_last or step % config.log_every_steps == 0
            evaluates = is_last or step % config.evaluate_every_steps == 0

            # The order within a step is fixed: log, evaluate, write, save. So what
            # stands in a checkpoint has its metrics on disk. Only where time may run out
            # the checkpoint comes first.
            if ends_early:
                nonfinite.look_at_all()
                writer.flush()
                checkpoints.save(state, {})
                checkpoints.wait()
                progress.say(
                    f"told to end: saved step {step:,} of {steps:,}; the same command "
                    "goes on from there"
                )
            metrics = {}
            if logs:
                nonfinite.look_at_all()
                values = {name: value.item() for name, value in measured.items()}
                metrics = {
                    f"train/{name}": value
                    for name, value in values.items()
                    if math.isfinite(value)
                }
                metrics["train/learning_rate"] = float(program.schedule(step - 1))
                metrics |= progress.update(step, values["loss"], feed.waited)
                metrics |= efficiency(metrics["train/images_per_second"])
                metrics |= _count("train", bad_records)
                if config.max_nonfinite_steps:
                    metrics["train/nonfinite_steps"] = nonfinite.count
            if evaluates:
                metrics |= evaluation(state.params, state.ema_params, progress)
            if metrics:
                writer.write(step, metrics)
            if evaluates or ends_early:
                writer.summarize(title=f"{config.model.name}: {workdir.name}")
                progress.restart_clock(step, feed.waited)
            if ends_early:
                break
            if (
                is_last
                or step % config.checkpoint.every_steps == 0
                or (logs and save_clock.is_due())
                or (evaluates and checkpoints.is_best(metrics))
            ):
                nonfinite.look_at_all()
                writer.flush()
                checkpoints.save(state, metrics)
                save_clock.restart()
            if step == first_step + 1:  # compilation is not part of the speed
                jax.block_until_ready(state)
                progress.restart_clock(step, feed.waited)
        else:
            checkpoints.wait()
            progress.say(f"finished: step {steps:,} of {steps:,}")
        return metrics


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
        state = checkpoints.restore(program.abstract_state)
        origin = f"resuming after step {int(state.step):,}"
        changes = files.changed_fields(workdir, config)
        return state, origin + "".join(f"\n  with {change}" for change in changes)

    state = program.init()
    if init_from is None:
        return state, "starting anew"
    differences = model_differences(init_from.parent, program.model)
    try:
        params = load_params(init_from, program.abstract_state.params)
    except SetupError as error:
        if not differences:
            raise
        lines = "\n  ".join(["set these fields as there:", *differences])
        raise SetupError(f"{error}\n{lines}") from error
    ema_params = jax.tree.map(jnp.copy, params) if config.ema_decay else None
    state = dataclasses.replace(state, params=params, ema_params=ema_params)
    origin = f"starting from {init_from}"
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


def evaluate(config: ConfigDict, workdir: epath.Path) -> dict[str, float]:
    """Evaluates the newest checkpoint in `workdir`, or else `config.init_from`.

    And beside its parameters their average, where it has one.

    Args:
      config: from `check_config`.
      workdir: of a run; nothing is written to it.

    Raises:
      SetupError: anything that whoever started it can mend.
    """
    test_source = _open_source(config, config.data.test_split)
    _check_labels_fit(config, test_source)
    mesh = mesh_of(config)
    model = model_of(config)
    evaluation = _make_evaluation(config, model, test_source, mesh)

    path = newest_params_path(workdir)
    if path is None and config.init_from:
        path = check_holds_params(absolute_path(config.init_from))
    if path is None:
        raise SetupError(
            f"nothing to evaluate: {workdir} holds no checkpoint and init_from is not "
            "set; train first, or give --workdir or --config.init_from"
        )
    check_same_model(path.parent, model)
    _check_same_classes(path.parent, test_source)
    init = functools.partial(
        initial_state,
        model,
        optax.identity(),
        image_size=config.data.image_size,
        seed=config.seed,
    )
    abstract_params = sharding.abstract_with_shardings(jax.eval_shape(init), mesh).params
    params = load_params(path, abstract_params)
    ema_params = None
    if (path.parent / "ema").exists() and path.name == "params":
        ema_params = load_params(path.parent / "ema", abstract_params)
    with Progress(first_step=0, total_steps=0, batch_size=0) as progress:
        progress.say(f"evaluating {path.parent}")
        return evaluation(params, ema_params, progress)


def _open_source(config: ConfigDict, split: str) -> Source:
    return open_source(
        config.data.name,
        split=split,
        data_dir=config.data.data_dir,
        classes=config.data.classes,
    )


def _check_labels_fit(config: ConfigDict, source: Source) -> None:
    """Raises SetupError if the model has too few classes, as far as one can see."""
    if (source.num_classes or 0) > config.model.num_classes:
        raise SetupError(
            f"model.num_classes={config.model.num_classes} is too few for "
            f"{source.name}, which has {source.num_classes} classes"
        )
    # Some splits have no labels, and some data sets don't say how many classes they
    # have: one record tells most of them. All are checked as they are read.
    if not source.has_label_sets:
        with contextlib.suppress(BadRecordError):  # it has its turn later
            _, label = source.read(0)
            check_label(source, 0, label, num_classes=config.model.num_classes)


def _check_trainable(train_source: Source, test_source: Source) -> None:
    """Raises SetupError unless one can train on the one and test on the other."""
    if train_source.has_label_sets:
        raise SetupError(f"{train_source.name} has sets of labels: they are for testing")
    ours, theirs = train_source.class_names, test_source.class_names
    if ours and theirs and ours != theirs:
        raise SetupError(
            f"{train_source.name} and {test_source.name} have other classes: "
            f"{_difference(ours, theirs, ('the former', 'the latter'))}. So their labels "
            "don't mean the same. If they are folders, name a file with all classes, one "
            "in a line, in data.classes"
        )


def _difference(
    ours: Sequence[str], theirs: Sequence[str], owners: tuple[str, str]
) -> str:
    """What is in one of two lists of names and not in the other."""
    parts = []
    for owner, these, others in ((owners[0], ours, theirs), (owners[1], theirs, ours)):
        if only := sorted({*these} - {*others}):
            names = ", ".join([*only[:3], *(["..."] if len(only) > 3 else [])])
            parts.append(f"only {owner} has {names}")
    return " and ".join(parts) or "they are in another order"


def _check_same_classes(directory: epath.Path, source: Source) -> None:
    """Raises SetupError if the model in `directory` has learnt other classes."""
    description = find_description(directory)
    theirs = description and description.classes
    if theirs and source.class_names and tuple(theirs) != source.class_names:
        raise SetupError(
            f"the model in {directory} has learnt other classes than those of "
            f"{source.name}: "
            f"{_difference(theirs, source.class_names, ('the model', 'the data set'))}. "
            "So labels don't mean the same. Of a folder, data.classes says which classes "
            'its labels count; if they do mean the same, set "classes" to null in the '
            "model's model.json"
        )


def _feed(
    config: ConfigDict,
    source: Source,
    mesh: Mesh,
    *,
    first_step: int,
    bad_records: BadRecords,
) -> DeviceFeed:
    batches = train_batches(
        source,
        train_transform_of(config),
        batch_size=config.batch_size,
        seed=config.seed,
        first_step=first_step,
        bad_records=bad_records,
        **_loading(config, mesh),
    )
    return DeviceFeed(batches, _to_device(config, mesh))


def _make_evaluation(
    config: ConfigDict, model: FocalNet, source: Source, mesh: Mesh
) -> Callable[[Any, Any, Progress], dict[str, float]]:
    """Makes a function that evaluates parameters, shows the metrics and returns them.

    Their average comes second; None: there is none.
    """
    transform = EvalTransform(
        config.data.image_size,
        crop=config.data.eval_crop,
        interpolation=config.data.eval_interpolation,
    )
    bad_records = _bad_records(config, source)  # of all evaluations: each is told once

    def make_batches():
        batches = eval_batches(
            source,
            transform,
            batch_size=config.batch_size,
            bad_records=bad_records,
            **_loading(config, mesh),
        )
        return map(_to_device(config, mesh), batches)

    predict = make_predict(model, mean=config.data.mean, std=config.data.std, mesh=mesh)
    classification = Classification(predict, make_batches, subset=source.subset)

    def evaluate_params(
        params: Any, ema_params: Any, progress: Progress
    ) -> dict[str, float]:
        among = f", among {len(source.subset):,} classes" if source.subset else ""
        metrics = {}
        for name, label, values in (
            ("test", "test", params),
            ("test_ema", "test of the average", ema_params),
        ):
            if values is not None:
                found = dict(classification.run(values, name=name))
                found |= _count(name, bad_records)
                metrics |= found
                shown = {k.removeprefix(f"{name}/"): v for k, v in found.items()}
                progress.say(f"{label}: {_spelt_out(shown)}{among}")
        return metrics

    return evaluate_params


def _spelt_out(metrics: dict[str, float]) -> str:
    formats = {"top1": "top-1 {:.2%}", "top5": "top-5 {:.2%}", "loss": "loss {:.3f}"}
    shown = [
        text.format(metrics[name])
        for name, text in formats.items()
        if name in metrics  # sets of labels have top-1 alone
    ]
    count = f"{metrics['examples']:,} images"
    if unusable := metrics.get("bad_records"):
        count += f", {unusable:,} unusable"
    return f"{', '.join(shown) or 'nothing'} over {count}"


def _bad_records(config: ConfigDict, source: Source) -> BadRecords:
    return BadRecords(source.describe, allowed=config.data.max_bad_records)


def _loading(config: ConfigDict, mesh: Mesh) -> dict[str, Any]:
    return dict(
        rows=sharding.process_rows(mesh, config.batch_size),
        num_classes=config.model.num_classes,
        threads=config.data.threads,
        workers=config.data.workers,
    )


def _to_device(config: ConfigDict, mesh: Mesh) -> Callable[[Batch], Any]:
    return functools.partial(sharding.to_device, mesh=mesh, batch_size=config.batch_size)


def _count(name: str, bad_records: BadRecords) -> dict[str, int]:
    """The number of bad records that were met by any process, where some are allowed."""
    if not bad_records.allowed:
        return {}
    met = np.full(bad_records.allowed, -1, np.int32)
    indices = [*bad_records][: len(met)]  # the feed may be adding one too many
    met[: len(indices)] = indices
    all_met = np.unique(multihost_utils.process_allgather(met))
    return {f"{name}/bad_records": int((all_met >= 0).sum())}
