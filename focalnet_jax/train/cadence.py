"""When a run logs, evaluates and saves."""

import time
from typing import NamedTuple

import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict


class Due(NamedTuple):
    """What is due after a step.

    Attributes:
      is_last: the run has done all of its steps.
      logs: metrics of training are written.
      evaluates: the model is evaluated.
      saves: a checkpoint is written, whatever the evaluation says.
    """

    is_last: bool
    logs: bool
    evaluates: bool
    saves: bool


class Cadence:
    """Says what is due after each step.

    Args:
      config: from `check_config`.
      total_steps: of the run.
    """

    def __init__(self, config: ConfigDict, *, total_steps: int):
        self._config = config
        self._total_steps = total_steps
        self.restart_clock()

    def at(self, step: int) -> Due:
        """What is due after step number `step`, counted from 1; all processes ask."""
        is_last = step == self._total_steps
        logs = is_last or step % self._config.log_every_steps == 0
        return Due(
            is_last=is_last,
            logs=logs,
            evaluates=is_last or step % self._config.evaluate_every_steps == 0,
            saves=is_last
            or step % self._config.checkpoint.every_steps == 0
            or (logs and self._minutes_have_passed()),
        )

    def restart_clock(self) -> None:
        """Measures `every_minutes` from now on; it is called after each checkpoint."""
        self._start = time.monotonic()

    def _minutes_have_passed(self) -> bool:
        """By the clock of the first process, so that all agree."""
        minutes = self._config.checkpoint.every_minutes
        if minutes is None:
            return False
        have_passed = time.monotonic() - self._start >= 60 * minutes
        return bool(multihost_utils.broadcast_one_to_all(np.bool_(have_passed)))
