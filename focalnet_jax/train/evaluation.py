"""Evaluation of a model's variables, and of their average beside them."""

import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import optax
from etils import epath
from ml_collections import ConfigDict

from focalnet_jax.errors import SetupError, arguments_spelt
from focalnet_jax.paths import read_json
from focalnet_jax.tasks.base import Split, Splits, Task, Variables
from focalnet_jax.train import sharding
from focalnet_jax.train.batches import (
    bad_records_of,
    count_bad_records,
    eval_batch_size,
    evaluation_batches,
)
from focalnet_jax.train.config import field_of
from focalnet_jax.train.memory import check_memory
from focalnet_jax.train.processes import failing_together
from focalnet_jax.train.program import mesh_of
from focalnet_jax.train.run.data_record import other_evaluation_set, record_data
from focalnet_jax.train.run.progress import Progress
from focalnet_jax.train.state import TrainState, initial_state
from focalnet_jax.train.step import make_predict
from focalnet_jax.weights.description import description_file
from focalnet_jax.weights.params import (
    CHECKPOINTS,
    find_params,
    load_params,
    newest_params_path,
)

# What `model.json` says of these is compared by `Task.differences`.
_OF_THE_MODEL = {"name", "overrides", "classes", "colors"}


def evaluate(config: ConfigDict, task: Task, workdir: epath.Path) -> dict[str, float]:
    """Evaluates the newest checkpoint in `workdir`, or else `config.init_from`.

    If the checkpoint holds an average of the parameters, that is evaluated, too.

    Args:
      config: from `check_config`.
      task: from `check_config`.
      workdir: of a run; nothing is written to it.

    Raises:
      SetupError: anything that whoever started it can mend.
    """
    with arguments_spelt(field_of(config)):
        with failing_together():
            splits = task.open(train=False)
            path = _params_path(config, workdir)
        split = splits.test
        mesh = mesh_of(config)
        if lines := task.differences(path.parent, split.source):
            listed = "\n  ".join(lines)
            raise SetupError(f"{path.parent} is of another model:\n  {listed}")
        init = functools.partial(
            initial_state, task, optax.identity(), seed=config.seed, ema=True
        )
        abstract_state = sharding.abstract_with_shardings(jax.eval_shape(init), mesh)
        layout = sharding.Layout(mesh, sharding.shardings_of(abstract_state.params))
        batch_size = eval_batch_size(config, len(split.source), mesh)
        batch = sharding.abstract_batch(task.batch, batch_size=batch_size, mesh=mesh)
        check_memory(mesh, state=abstract_state, batch=batch)
        evaluator = StateEvaluator(config, task, split, layout)
        state = _load(path, abstract_state)
        with Progress.quiet() as progress:
            progress.say(f"evaluating {path.parent}")
            described = task.description(split.source)
            for remark in (
                *_other_data(path, splits, task),
                *_other_description(path.parent, described),
                *splits.remarks,
            ):
                progress.say(remark)
            return evaluator.run(state, progress)


def _params_path(config: ConfigDict, workdir: epath.Path) -> epath.Path:
    path = newest_params_path(workdir)
    if path is None and config.init_from:
        path = find_params(config.init_from)
    if path is None:
        raise SetupError(
            f"nothing to evaluate: {workdir} holds no checkpoint and init_from is not "
            "set; train first, or give --workdir or --config.init_from"
        )
    return path


def _other_data(path: epath.Path, splits: Splits, task: Task) -> list[str]:
    """Says whether the run that parameters come from was evaluated on other data."""
    if path.parent.parent.name != CHECKPOINTS:
        return []  # They were converted, or moved out of their run.
    workdir = path.parent.parent.parent
    line = other_evaluation_set(workdir, record_data(splits), unit=task.unit)
    return [line] if line else []


def _other_description(directory: epath.Path, now: dict[str, Any]) -> list[str]:
    """Says what the parameters' `model.json` has otherwise, as the size of images.

    That the model fits has been checked.
    """
    file = description_file(directory)
    if file is None:
        return []
    before = read_json(file)
    differences = [
        f"{name}={before[name]}, here {now[name]}"
        for name in sorted(before.keys() & now.keys() - _OF_THE_MODEL)
        if before[name] != json.loads(json.dumps(now[name]))
    ]
    return [f"{file} has {', '.join(differences)}"] if differences else []


def _load(path: epath.Path, abstract: TrainState) -> TrainState:
    """The variables beside `path`, and their average if it has one; no optimiser."""

    def load(name, like):
        if not like:  # There is nothing to load, as in models without BatchNorm.
            return like
        if not (path.parent / name).exists():
            raise SetupError(f"{path.parent} has no {name}, which the model needs")
        return load_params(path.parent / name, like)

    is_average = path.name == "ema"
    prefix = "ema_" if is_average else ""
    average = None, None
    if (path.parent / "ema").exists() and not is_average:
        average = (
            load("ema", abstract.ema_params),
            load("ema_batch_stats", abstract.ema_batch_stats),
        )
    return TrainState(
        step=abstract.step,
        params=load(path.name, abstract.params),
        opt_state=None,
        batch_stats=load(f"{prefix}batch_stats", abstract.batch_stats),
        ema_params=average[0],
        ema_batch_stats=average[1],
    )


class StateEvaluator:
    """Evaluates the variables of states on a split, and their average.

    Args:
      config, task: from `check_config`.
      split: to evaluate on.
      layout: where variables and batches are.

    Attributes:
      files: what evaluators leave for the workdir, by name; on the first process alone.
    """

    def __init__(
        self, config: ConfigDict, task: Task, split: Split, layout: sharding.Layout
    ):
        self.files: dict[str, bytes] = {}
        self._task = task
        self._note = split.source.note
        # It serves all evaluations, so that each record is told of once.
        self._bad_records = bad_records_of(config, split.source)
        self._evaluator = task.evaluator(
            make_predict(task, layout=layout),
            functools.partial(
                evaluation_batches,
                config,
                task,
                split,
                layout.mesh,
                bad_records=self._bad_records,
            ),
            split.source,
        )

    def run(
        self,
        state: TrainState,
        progress: Progress,
        *,
        before_batch: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """Shows the metrics and returns them: `test/top1`, `test_ema/top1` ...

        Args:
          state: whose variables are evaluated, and their average if it holds one.
          progress: shows the metrics.
          before_batch: called before each batch; may raise to end the evaluation.
        """
        run = functools.partial(self._run, progress=progress, before_batch=before_batch)
        metrics = run(state.variables, "test", "test")
        if state.ema_variables is not None:
            metrics |= run(state.ema_variables, "test_ema", "test of the average")
        return metrics

    def _run(
        self,
        variables: Variables,
        name: str,
        label: str,
        progress: Progress,
        before_batch: Callable[[], None],
    ) -> dict[str, float]:
        metrics = dict(
            self._evaluator.run(variables, name=name, before_batch=before_batch)
        )
        metrics |= count_bad_records(name, self._bad_records)
        shown = {key.removeprefix(f"{name}/"): v for key, v in metrics.items()}
        progress.say(f"{label}: {self._spelt_out(shown)}{self._note}")
        details_of = getattr(self._evaluator, "details", lambda: None)
        if jax.process_index() == 0 and (details := details_of()):
            progress.say(details.text)
            self.files |= details.files
        return metrics

    def _spelt_out(self, metrics: dict[str, float]) -> str:
        shown = [
            f"{metric.label} {metric.format.format(metrics[name])}"
            for name, metric in self._task.metrics.items()
            if name in metrics  # Sometimes a metric has no meaning.
        ]
        count = f"{metrics['examples']:,} {self._task.unit}"
        if unusable := metrics.get("bad_records"):
            count += f", {unusable:,} unusable"
        return f"{', '.join(shown) or 'nothing'} over {count}"
