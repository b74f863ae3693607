"""What a person sees of a run: a bar on a terminal, plain lines elsewhere."""

import datetime
import sys
import time

import jax
import tqdm


class Progress:
    """Shows steps done, loss, images a second and time left, on the first process.

    Args:
      first_step: where the run starts.
      total_steps: where it ends.
      batch_size: images in a step.
    """

    def __init__(self, *, first_step: int, total_steps: int, batch_size: int):
        self._active = jax.process_index() == 0
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._last = (first_step, time.monotonic())
        self._bar = None
        if self._active and sys.stderr.isatty():
            self._bar = tqdm.tqdm(
                total=total_steps, initial=first_step, unit="step", dynamic_ncols=True
            )

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

    def restart_clock(self, step: int) -> None:
        """Leaves what came before, such as an evaluation, out of the speed."""
        self._last = (step, time.monotonic())

    def update(self, step: int, loss: float) -> float:
        """Shows that `step` is done; returns images a second since the last call."""
        last_step, last_time = self._last
        now = time.monotonic()
        self._last = (step, now)
        seconds_per_step = (now - last_time) / max(step - last_step, 1)
        images_per_second = self._batch_size / seconds_per_step
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"loss {loss:.3f}, {images_per_second:,.0f} images/s", refresh=False
            )
            self._bar.update(step - self._bar.n)
        else:
            left = seconds_per_step * (self._total_steps - step)
            self.say(
                f"step {step:,}/{self._total_steps:,}  loss {loss:.3f}  "
                f"{images_per_second:,.0f} images/s  "
                f"{datetime.timedelta(seconds=round(left))} left"
            )
        return images_per_second
