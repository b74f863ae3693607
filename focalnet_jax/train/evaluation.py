"""Evaluation of parameters, and of their average beside them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from focalnet_jax.data import Source
from focalnet_jax.errors import SetupError
from focalnet_jax.evaluators import Classification
from focalnet_jax.models import FocalNet
from focalnet_jax.paths import absolute_path
from focalnet_jax.tasks.classes import check_labels_fit, check_same_classes
from focalnet_jax.train import sharding
from focalnet_jax.train.config import model_of
from focalnet_jax.train.loading import (
    bad_records_of,
    count_bad_records,
    evaluation_batches,
    open_split,
)
from focalnet_jax.train.program import mesh_of
from focalnet_jax.train.run.progress import Progress
from focalnet_jax.train.state import initial_state
from focalnet_jax.train.step import make_predict
from focalnet_jax.weights.description import check_same_model
from focalnet_jax.weights.params import (
    check_holds_params,
    load_params,
    newest_params_path,
)


def evaluate(config: ConfigDict, workdir: epath.Path) -> dict[str, float]:
    """Evaluates the newest checkpoint in `workdir`, or else `config.init_from`.

    And beside its parameters their average, where it has one.

    Args:
      config: from `check_config`.
      workdir: of a run; nothing is written to it.

    Raises:
      SetupError: anything that whoever started it can mend.
    """
    test_source = open_split(config, config.data.test_split)
    check_labels_fit(config, test_source)
    mesh = mesh_of(config)
    model = model_of(config)
    evaluation = Evaluation(config, model, test_source, mesh)

    path = newest_params_path(workdir)
    if path is None and config.init_from:
        path = check_holds_params(absolute_path(config.init_from))
    if path is None:
        raise SetupError(
            f"nothing to evaluate: {workdir} holds no checkpoint and init_from is not "
            "set; train first, or give --workdir or --config.init_from"
        )
    check_same_model(path.parent, model)
    check_same_classes(path.parent, test_source)
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
        return evaluation.run(params, ema_params, progress)


class Evaluation:
    """Evaluates parameters on a split, and their average.

    Args:
      config: from `check_config`.
      model: of the parameters.
      source: of the split.
      mesh: that they and the batches are on.
    """

    def __init__(self, config: ConfigDict, model: FocalNet, source: Source, mesh: Mesh):
        self._subset = source.subset
        # One for all evaluations: each record is told once.
        self._bad_records = bad_records_of(config, source)
        self._classification = Classification(
            make_predict(model, mean=config.data.mean, std=config.data.std, mesh=mesh),
            functools.partial(
                evaluation_batches, config, source, mesh, bad_records=self._bad_records
            ),
            subset=source.subset,
        )

    def run(
        self,
        params: Any,
        ema_params: Any,
        progress: Progress,
        *,
        before_batch: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """Shows the metrics and returns them: `test/top1`, `test_ema/top1` ...

        Args:
          params: to be evaluated.
          ema_params: their average; None: there is none.
          progress: shows them.
          before_batch: called before each batch; may raise to end the evaluation.
        """
        run = functools.partial(self._run, progress=progress, before_batch=before_batch)
        metrics = run(params, "test", "test")
        if ema_params is not None:
            metrics |= run(ema_params, "test_ema", "test of the average")
        return metrics

    def _run(
        self,
        params: Any,
        name: str,
        label: str,
        progress: Progress,
        before_batch: Callable[[], None],
    ) -> dict[str, float]:
        metrics = dict(
            self._classification.run(params, name=name, before_batch=before_batch)
        )
        metrics |= count_bad_records(name, self._bad_records)
        shown = {key.removeprefix(f"{name}/"): v for key, v in metrics.items()}
        among = f", among {len(self._subset):,} classes" if self._subset else ""
        progress.say(f"{label}: {_spelt_out(shown)}{among}")
        return metrics


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
