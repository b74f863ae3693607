"""Orbax checkpoints: `WORKDIR/checkpoints/STEP/{params,optimizer}`.

They hold whole arrays, not parts: nothing ties them to a number of processes, workers or
devices. Parameters lie apart from the optimiser's state, so that evaluation and
fine-tuning read just those.
"""

from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh

from focalnet_jax.errors import SetupError
from focalnet_jax.train.sharding import state_shardings
from focalnet_jax.train.state import TrainState

PyTree = Any
_DIRECTORY = "checkpoints"


class Checkpoints:
    """The checkpoints of a run, saved in the background.

    Args:
      workdir: of the run.
      keep: how many of the newest to keep.
    """

    def __init__(self, workdir: epath.Path, *, keep: int):
        self._manager = ocp.CheckpointManager(
            workdir / _DIRECTORY,
            item_names=("params", "optimizer"),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._manager.close()

    @property
    def newest_step(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Starts to save; returns when the arrays may be donated."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        optimizer = {"step": state.step, "opt_state": state.opt_state}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                optimizer=ocp.args.StandardSave(optimizer),
            ),
        )

    def restore(self, abstract_state: TrainState) -> TrainState:
        """The newest checkpoint, on the devices that `abstract_state` names."""
        optimizer = {"step": abstract_state.step, "opt_state": abstract_state.opt_state}
        restored = self._manager.restore(
            self.newest_step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract_state.params),
                optimizer=ocp.args.StandardRestore(optimizer),
            ),
        )
        return TrainState(params=restored.params, **restored.optimizer)


def abstract_with_shardings(abstract: PyTree, mesh: Mesh) -> PyTree:
    """Shapes and dtypes with the place of each array, to restore into."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        abstract,
        state_shardings(abstract, mesh),
    )


def newest_params_path(path: epath.Path) -> epath.Path | None:
    """Where the newest parameters below `path` lie; None if there are none.

    Args:
      path: a workdir, its `checkpoints` directory, or a single checkpoint.
    """
    if (path / "params").exists():
        return path / "params"
    for directory in (path / _DIRECTORY, path):
        if directory.exists():
            steps = [int(p.name) for p in directory.iterdir() if p.name.isdigit()]
            for step in sorted(steps, reverse=True):
                if (directory / str(step) / "params").exists():
                    return directory / str(step) / "params"
    return None


def check_holds_params(path: epath.Path) -> epath.Path:
    """As `newest_params_path`, but raises SetupError where there are none."""
    found = newest_params_path(path)
    if found is None:
        raise SetupError(f"there is no checkpoint in {path}")
    return found


def load_params(path: epath.Path, abstract_params: PyTree) -> PyTree:
    """Reads parameters and checks that they fit.

    Args:
      path: from `newest_params_path` or `check_holds_params`.
      abstract_params: expected shapes and dtypes, with shardings.

    Raises:
      SetupError: a parameter too many, too few or of another shape.
    """
    stored = ocp.StandardCheckpointHandler().metadata(path)
    _check_fit(path, _shapes(stored), _shapes(abstract_params))
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, abstract_params)


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }


def _check_fit(path: epath.Path, stored: Mapping, expected: Mapping) -> None:
    problems = [
        f"{name} {shape} is not in the model"
        for name, shape in stored.items()
        if name not in expected
    ]
    for name, shape in expected.items():
        if name not in stored:
            problems.append(f"{name} {shape} is not stored")
        elif stored[name] != shape:
            problems.append(f"{name} is stored as {stored[name]}, the model has {shape}")
    if problems:
        lines = "\n  ".join(sorted(problems))
        raise SetupError(f"{path} does not fit the model:\n  {lines}")
