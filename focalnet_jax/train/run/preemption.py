"""Notices to end, which machines get before they are taken away."""

import os
import signal
import threading

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Takes SIGTERM and SIGHUP as notices to save and end, and not as the end.

    Slurm, Kubernetes and Cloud TPUs send SIGTERM some time before they kill: 30 seconds,
    if nothing else was asked for. A terminal that is closed sends SIGHUP. Where a run has
    several processes, a notice to any of them is one to all, and JAX has them agree on
    when they end.
    """

    def __init__(self):
        self._is_notified = False
        self._looks = 0
        self._previous = {}

    def __enter__(self):
        # Only the main thread may set a handler.
        if threading.current_thread() is not threading.main_thread():
            return self
        # JAX listens to SIGTERM where there are several processes.
        if not jax.distributed.is_initialized():
            self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._note)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as `nohup` has it
            self._previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._note)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            if handler is not None:
                signal.signal(number, handler)

    def _note(self, *_):
        if jax.distributed.is_initialized():
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._is_notified = True

    def reached(self) -> bool:
        """Whether to save and end now. All processes have to ask equally often."""
        self._looks += 1
        if jax.distributed.is_initialized() and not self._is_notified:
            # JAX answers True once: at the look that the processes have agreed on.
            self._is_notified = multihost_utils.reached_preemption_sync_point(self._looks)
        return self._is_notified

    def check(self) -> None:
        """Raises Preempted if it is time to save and end."""
        if self.reached():
            raise Preempted


class Preempted(Exception):
    """The run has been told to end, and has no time to finish what it does."""
