"""Whether a run has been told to end, as machines are before they are taken away."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Takes SIGTERM for a notice to save and end, not for the end.

    Slurm, Kubernetes and Cloud TPUs send it some time before they kill, 30 seconds where
    nothing else was asked for. Where a run has several processes, a notice to any of them
    is one to all, and JAX has them agree on when they end.
    """

    def __init__(self):
        self._told = False
        self._looks = 0
        self._previous = None

    def __enter__(self):
        # With several processes JAX listens. And only the main thread can.
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and not jax.distributed.is_initialized():
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_):
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, *_):
        self._told = True

    def reached(self) -> bool:
        """Whether to save and end. All processes have to ask equally often."""
        self._looks += 1
        if jax.distributed.is_initialized() and not self._told:
            # True once, of the look that the processes have agreed on.
            self._told = multihost_utils.reached_preemption_sync_point(self._looks)
        return self._told

    def check(self) -> None:
        """Raises Preempted where `reached` is True."""
        if self.reached():
            raise Preempted


class Preempted(Exception):
    """There may be no time for what has been begun."""
