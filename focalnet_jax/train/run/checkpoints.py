"""Orbax checkpoints: `WORKDIR/checkpoints/STEP/{params,ema,optimizer,metrics ...}`.

They hold whole arrays, not parts: nothing ties them to a number of processes, workers or
devices. Parameters lie apart from the optimiser's state, so that evaluation and
fine-tuning read nothing else. Models with BatchNorm have `batch_stats`, and
`ema_batch_stats` beside `ema`. A checkpoint is written aside and renamed when it is
whole; in a bucket, where nothing can be renamed, a marker says that it is.

`WORKDIR/best.json` says which checkpoint is the best one, if that is kept.
"""

import contextlib
import math
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from focalnet_jax.errors import SetupError, first_line, shown
from focalnet_jax.paths import is_remote, read_json, write_json
from focalnet_jax.train.state import TrainState
from focalnet_jax.trees import named_leaves
from focalnet_jax.weights.params import BEST, CHECKPOINTS, stored_shapes

PyTree = Any

# How many seconds processes wait for another one to write its part of a checkpoint.
_SECONDS_TO_WRITE = 600
# How many seconds a process that ends by an error waits for what is being written.
_SECONDS_TO_CLOSE = 30

_ARRAYS = ("params", "batch_stats", "optimizer", "ema", "ema_batch_stats")


class Checkpoints:
    """The checkpoints of a run, saved in the background.

    Args:
      workdir: of the run.
      keep: how many of the newest to keep.
      best_metric: such as `test/top1`: the checkpoint that is best by it is kept, too.
      higher_is_better: whether the greatest or the least value of it is the best.
    """

    def __init__(
        self,
        workdir: epath.Path,
        *,
        keep: int,
        best_metric: str | None = None,
        higher_is_better: bool = True,
    ):
        self._has_failed = False
        self._best_metric = best_metric
        self._sign = 1 if higher_is_better else -1
        policies = [LatestN(keep)]
        if best_metric:
            _check_metrics(workdir / CHECKPOINTS)
            best = BestN(
                get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False
            )
            policies.append(best)
        self._manager = ocp.CheckpointManager(
            workdir / CHECKPOINTS,
            item_handlers={name: _array_trees() for name in _ARRAYS},
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(policies),
                # Without this, Orbax would not store the metrics.
                best_fn=self._score if best_metric else None,
                cleanup_tmp_directories=True,  # A killed run may have left some.
                async_options=ocp.AsyncOptions(timeout_secs=_SECONDS_TO_WRITE),
            ),
        )
        # The best score is kept in memory, because Orbax can't read a checkpoint while it
        # is being written.
        self._best_score = -math.inf
        self._best_file = workdir / BEST
        if jax.process_index() == 0:
            self._best_file.unlink(missing_ok=True)  # It may be by another metric.
        for step in sorted(self._manager.all_steps() if best_metric else []):
            self._note_score(step, self._manager.metrics(step))

    def __enter__(self):
        return self

    def __exit__(self, error_type, *_):
        if error_type is None:
            with self._failures_explained():
                self._manager.close()
            return
        # What is being written may still become whole, unless this takes other processes,
        # which this one's error has ended.
        closing = threading.Thread(target=self._close_after_error, daemon=True)
        closing.start()
        closing.join(_SECONDS_TO_CLOSE if jax.process_count() > 1 else None)

    def _close_after_error(self) -> None:
        try:
            self._manager.close()
        except Exception as error:
            if not self._has_failed:  # Otherwise that has been said.
                logging.warning("checkpoints: %s", _reason(error))

    @property
    def newest_step(self) -> int | None:
        """The step of the newest checkpoint, which may still be being written."""
        return self._manager.latest_step()

    def describe_newest(self) -> str:
        """Says which step the newest whole checkpoint is of, for messages of errors."""
        try:
            # With several processes, another one may never finish its part.
            if jax.process_count() == 1:
                with contextlib.suppress(Exception):
                    self._manager.wait_until_finished()
            self._manager.reload()
            steps = self._manager.all_steps()
        except Exception:
            return f"older checkpoints may be in {self._manager.directory}"
        if not steps:
            return "there is no checkpoint"
        return f"the newest checkpoint is of step {max(steps):,}"

    def is_best(self, metrics: Mapping[str, float]) -> bool:
        """Whether no checkpoint has a better value of `best_metric`.

        Of several that are as good, the newest is the best one, as for Orbax.
        """
        return -math.inf < self._score(metrics) >= self._best_score

    def save(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Starts to save; returns when the arrays may be donated.

        Args:
          state: after a step.
          metrics: of that step.

        Raises:
          SetupError: there is no room for it; this or the last one can't be written.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        items = {name: ocp.args.PyTreeSave(item) for name, item in _items(state).items()}
        self.wait()  # Orbax would wait, too; after it, the room that is left is known.
        self.check_room(state)
        with self._failures_explained():
            self._manager.save(
                step,
                args=ocp.args.Composite(**items),
                metrics=dict(metrics),
                force=True,  # The loop decides when to save, not Orbax.
            )
        self._note_score(step, metrics)

    def wait(self) -> None:
        """Returns when what was saved is whole.

        Raises:
          SetupError: it can't be written.
        """
        with self._failures_explained():
            self._manager.wait_until_finished()

    def restore(self, abstract_state: TrainState) -> TrainState:
        """The newest checkpoint, on the devices that `abstract_state` names.

        A run that has had no average of its parameters starts it from them.

        Raises:
          SetupError: it is damaged, or of another optimiser.
        """
        step = self.newest_step
        directory = self._manager.directory / str(step)
        wanted = _items(abstract_state)
        starts_average = "ema" in wanted and not (directory / "ema").exists()
        if starts_average:
            wanted = {k: v for k, v in wanted.items() if not k.startswith("ema")}
        try:
            missing = [name for name in wanted if not (directory / name).exists()]
            if missing:
                raise ValueError(f"it has no {' and no '.join(missing)}")
            _check_same_optimizer(directory / "optimizer", wanted["optimizer"])
            with ocp.StandardCheckpointer() as checkpointer:
                items = {
                    name: checkpointer.restore(directory / name, item)
                    for name, item in wanted.items()
                }
        except (SetupError, jax.errors.JaxRuntimeError):
            raise  # The latter is of other processes, or for want of memory.
        except Exception as error:
            older = [s for s in sorted(self._manager.all_steps()) if s < step]
            start = f"step {older[-1]:,}" if older else "the start"
            raise SetupError(
                f"the newest checkpoint is damaged, or of another program: {directory}: "
                f"{_reason(error)}\n"
                f"To go on from {start}, move that directory away"
            ) from error
        averages = abstract_state.ema_batch_stats  # They may be empty or None.
        state = TrainState(
            params=items["params"],
            batch_stats=items.get("batch_stats", {}),
            ema_params=items.get("ema"),
            ema_batch_stats=items.get("ema_batch_stats", averages),
            **items["optimizer"],
        )
        return state.starting_average() if starts_average else state

    def _score(self, metrics: Mapping[str, float] | None) -> float:
        value = (metrics or {}).get(self._best_metric or "")
        if value is None or not math.isfinite(value):
            return -math.inf
        return self._sign * value

    def _note_score(self, step: int, metrics: Mapping[str, float] | None) -> None:
        """Notes that a checkpoint is the best one so far, if it is."""
        score, best = self._score(metrics), self._best_metric
        if not (best and metrics and self.is_best(metrics)):
            return
        self._best_score = score
        if jax.process_index() == 0:
            record = {"step": step, "metric": best, "value": metrics[best]}
            write_json(self._best_file, record)

    def check_room(self, state: TrainState) -> None:
        """Raises SetupError if the disk has no room for such a state.

        A store that runs out of room says much, and leaves a part of a checkpoint.
        """
        if is_remote(self._manager.directory):
            return
        leaves = jax.tree.leaves(state)
        needed = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        disk = shutil.disk_usage(self._manager.directory)
        # Some mounts don't say how large they are.
        if disk.total and disk.free < needed:
            raise SetupError(
                f"there is no room for a checkpoint in {self._manager.directory}: it has "
                f"{needed / 1e6:,.1f} MB, and {disk.free / 1e6:,.1f} MB are free; "
                f"{self.describe_newest()}"
            )

    @contextlib.contextmanager
    def _failures_explained(self) -> Iterator[None]:
        try:
            yield
        except jax.errors.JaxRuntimeError:
            raise  # Another process has ended.
        except Exception as error:  # Orbax and its store raise errors of all kinds.
            self._has_failed = True
            raise SetupError(
                f"a checkpoint could not be written to {self._manager.directory}: "
                f"{_reason(error)}; {self.describe_newest()}"
            ) from error


def _array_trees() -> ocp.PyTreeCheckpointHandler:
    # Several processes share the work of writing what all of them hold. In a single
    # process its devices would share it, and each slice would be compiled first.
    arrays = ocp.type_handlers.ArrayHandler(use_replica_parallel=jax.process_count() > 1)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def _check_metrics(directory: epath.Path) -> None:
    """Raises SetupError for damaged metrics; Orbax wouldn't say of which checkpoint."""
    for path in directory.glob("*/metrics/metrics"):
        try:
            for name, value in read_json(path).items():
                if type(value) not in (int, float):
                    raise ValueError(f"{name!r} is {shown(value)}, and no number")
        except ValueError as error:
            raise SetupError(
                f"the metrics of a checkpoint are damaged: {path.parent.parent}: {error}"
                "\nTo go on without it, move that directory away"
            ) from error


def _items(state: TrainState) -> dict[str, PyTree]:
    """What is stored, by the names of directories; what is empty isn't stored."""
    items = {
        "params": state.params,
        "batch_stats": state.batch_stats,
        "optimizer": {"step": state.step, "opt_state": state.opt_state},
        "ema": state.ema_params,
        "ema_batch_stats": state.ema_batch_stats,
    }
    return {name: item for name, item in items.items() if item}


def _check_same_optimizer(directory: epath.Path, expected: PyTree) -> None:
    stored = stored_shapes(directory)
    wanted = {name: tuple(leaf.shape) for name, leaf in named_leaves(expected).items()}
    if stored != wanted:
        differing = sorted(
            name
            for name in stored.keys() | wanted.keys()
            if stored.get(name) != wanted.get(name)
        )
        raise SetupError(
            f"{directory} is the state of another optimiser; it differs in "
            f"{len(differing):,} arrays, such as {differing[0]}. Set frozen, clip_norm, "
            "layer_decay and learning_rate_factors as they were, or start a new run from "
            "its parameters: --config.init_from and another --workdir"
        )


def _reason(error: Exception) -> str:
    """What is wrong, in a line."""
    if found := re.search(r"([^:]+) \[os_error_code", str(error)):
        return found[1].strip()  # The store says it at the end of a line of long paths.
    return first_line(error)[:300]
