"""What a person sees of a run: a bar on a terminal, and plain lines elsewhere."""

import datetime
import sys
import time

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils

from focalnet_jax.chips import count_chips


class Progress:
    """Shows steps done, loss, speed and time left, on the first process.

    The speed and the time left are shown from the first call of `restart_clock` on: what
    comes before has the compilation in it.

    Args:
      first_step: where the run starts.
      total_steps: where it ends.
      batch_size: examples in a step.
      unit: what an example is called, in the plural.
    """

    def __init__(self, *, first_step: int, total_steps: int, batch_size: int, unit: str):
        self._unit = unit
        self._active = jax.process_index() == 0
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._last: tuple[int, float, float] | None = None
        self._bar = None
        if self._active and sys.stderr.isatty():
            self._bar = tqdm.tqdm(
                total=total_steps, initial=first_step, unit="step", dynamic_ncols=True
            )

    @classmethod
    def quiet(cls) -> "Progress":
        """One of no steps, that only says lines."""
        return cls(first_step=0, total_steps=0, batch_size=0, unit="examples")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.close()

    def say(self, text: str) -> None:
        """Prints a line."""
        if self._bar is not None:
            self._bar.write(text)
        elif self._active:
            print(text, flush=True)

    def restart_clock(self, step: int, waited: float) -> None:
        """Leaves what came before out of the speed: compilation or an evaluation."""
        self._last = (step, time.monotonic(), waited)

    def update(self, step: int, loss: float, waited: float) -> dict[str, float]:
        """Shows that `step` is done; for all processes to call.

        Args:
          step: the number of steps done.
          loss: of the last one.
          waited: seconds for which this process's devices had no input, of the whole run.

        Returns:
          since the last call, under `train/`: `images_per_second` (or another unit) of
          all chips, `images_per_second_per_chip` and `step_seconds`; and `input_wait`,
          the share of the time that was waited, on the process that waited longest: the
          others wait for it in the step. There are none of them before the clock runs.
        """
        if self._last is None:
            self._show(step, f"loss {loss:.3f}")
            return {}
        last_step, last_time, last_waited = self._last
        now = time.monotonic()
        self._last = (step, now, waited)
        seconds = max(now - last_time, 1e-9)
        seconds_per_step = seconds / max(step - last_step, 1)
        speed = self._batch_size / seconds_per_step
        share = np.float32(min((waited - last_waited) / seconds, 1.0))
        share = multihost_utils.process_allgather(share).max().item()
        left = seconds_per_step * (self._total_steps - step)
        self._show(
            step,
            f"loss {loss:.3f}",
            f"{speed:,.0f} {self._unit}/s",
            f"{share:.0%} input wait",
            left=f"{datetime.timedelta(seconds=round(left))} left",
        )
        return {
            f"train/{self._unit}_per_second": speed,
            f"train/{self._unit}_per_second_per_chip": speed / count_chips(jax.devices()),
            "train/step_seconds": seconds_per_step,
            "train/input_wait": share,
        }

    def _show(self, step: int, *facts: str, left: str = "") -> None:
        """Moves the bar, which has a clock of its own, or prints a line."""
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(facts), refresh=False)
            self._bar.update(step - self._bar.n)
        else:
            done = f"step {step:,}/{self._total_steps:,}"
            self.say("  ".join(filter(None, [done, *facts, left])))
