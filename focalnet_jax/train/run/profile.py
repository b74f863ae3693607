"""A trace of some steps, for TensorBoard's profiler."""

from typing import Any

import jax
from etils import epath

from focalnet_jax.errors import SetupError
from focalnet_jax.paths import is_remote


class Profile:
    """Traces the steps from the first to the last of `steps`; none if it is empty.

    The trace lies in `WORKDIR/plugins/profile`, with a file for each process.

    Raises:
      SetupError: the workdir is a bucket, to which JAX writes no traces.
    """

    def __init__(self, workdir: epath.Path, steps: tuple[int, int] | tuple[()]):
        if steps and is_remote(workdir):
            raise SetupError(
                f"profile_steps={steps} needs a workdir on a disk: JAX writes no "
                f"traces to {workdir}"
            )
        self._workdir = workdir
        self._steps = steps
        self._is_on = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._is_on:
            jax.profiler.stop_trace()

    def start_at(self, step: int, *, busy_with: Any) -> None:
        """Starts before the first of the steps, when the devices have become idle."""
        if self._steps and step == self._steps[0]:
            jax.block_until_ready(busy_with)
            options = jax.profiler.ProfileOptions()
            # Calls of Python functions would fill the trace, slow down what is measured,
            # and hook into all of the run's many threads.
            options.python_tracer_level = 0
            jax.profiler.start_trace(str(self._workdir), profiler_options=options)
            self._is_on = True

    def end_at(self, step: int, *, busy_with: Any) -> None:
        """Ends after the last of the steps."""
        if self._steps and step == self._steps[1] and self._is_on:
            jax.block_until_ready(busy_with)
            jax.profiler.stop_trace()
            self._is_on = False
