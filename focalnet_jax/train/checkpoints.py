"""Orbax checkpoints: `WORKDIR/checkpoints/STEP/{params,optimizer}`.

They hold whole arrays, not parts: nothing ties them to a number of processes, workers or
devices. Parameters lie apart from the optimiser's state, so that evaluation and
fine-tuning read just those.
"""

from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from focalnet_jax.saved_params import CHECKPOINTS
from focalnet_jax.train.state import TrainState

PyTree = Any


class Checkpoints:
    """The checkpoints of a run, saved in the background.

    Args:
      workdir: of the run.
      keep: how many of the newest to keep.
    """

    def __init__(self, workdir: epath.Path, *, keep: int):
        self._manager = ocp.CheckpointManager(
            workdir / CHECKPOINTS,
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
