"""Whether a run has been told to end, as machines are before they are taken away."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Takes SIGTERM for a notice to save and end, not for the end.

    Slurm, Kubernetes and Cloud TPUs send it some time before they kill, 30 seconds where
    nothing else was asked for. Where a run has several processes, a notice to any of them
    is one to all, and JAX agrees on the step after which they end.
    """

    def __init__(self):
        self._told = False
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

    def reached(self, step: int) -> bool:
        """Whether to save after this step and end; for all processes, at every step."""
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._told
