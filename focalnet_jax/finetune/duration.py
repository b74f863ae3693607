"""How long a run may take, measured before it starts."""

import concurrent.futures
import contextlib
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from focalnet_jax.data import BadRecordError
from focalnet_jax.errors import counted
from focalnet_jax.tasks.base import Split, Splits, Task

# A step in place of a forward pass: the backward pass takes about twice as long, and the
# optimiser some more. Steps of nets from 3 to 28 million parameters took 2.7 to 4.6 times
# as long, on two cores of a CPU.
_STEP_OVER_FORWARD = 3.7
# So many images are made for the measurement, and the forward pass is repeated.
_EXAMPLES = 8
_REPEATS = 3


class Speed(NamedTuple):
    """Seconds for an image.

    Attributes:
      forward: for the net's forward pass.
      train_input: for reading, decoding and changing one, for training.
      eval_input: for reading and decoding one.
    """

    forward: float
    train_input: float
    eval_input: float


def measure_speed(config: ConfigDict, task: Task, splits: Splits) -> Speed:
    """Measures a forward pass of a batch, and the making of some images."""
    assert splits.train is not None  # It is what the run trains on.
    rng = np.random.default_rng(0)
    train = _seconds_for_input(config, splits.train, lambda record: (record, rng))
    test = _seconds_for_input(config, splits.test, lambda record: (record,))
    return Speed(_seconds_for_forward(config, task), train, test)


def seconds_of_run(
    config: ConfigDict, speed: Speed, splits: Splits, *, steps: int, all_steps: int
) -> float:
    """About how many seconds some steps take, with the evaluations between.

    Args:
      config: of the run.
      speed: from `measure_speed`.
      splits: of the run.
      steps: those that are to be done.
      all_steps: of the whole run.
    """
    step = _STEP_OVER_FORWARD * speed.forward
    trained = steps * config.batch_size
    times = -(-all_steps // config.evaluate_every_steps) * steps / max(all_steps, 1)
    tested = times * len(splits.test.source)
    # A CPU does both by itself; an accelerator computes while the CPU decodes.
    together = sum if jax.default_backend() == "cpu" else max
    return trained * together((step, speed.train_input)) + tested * together(
        (speed.forward, speed.eval_input)
    )


def length_spelt(steps: int, *, batch_size: int, images: int) -> str:
    """The length of a run to read: `2.5 epochs, 1,200 steps of 8 images`."""
    epochs = steps * batch_size / images
    text = f"{epochs:,.0f}" if epochs >= 10 else f"{epochs:.2g}"
    return (
        f"{text} {'epoch' if text == '1' else 'epochs'}, {counted(steps, 'step')} of "
        f"{counted(batch_size, 'image')}"
    )


def time_spelt(seconds: float) -> str:
    """A time to read: `40 seconds`, `12 minutes`, `3.5 hours`."""
    if seconds < 90:
        return f"{max(round(seconds, -1), 10):.0f} seconds"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"


def _seconds_for_forward(config: ConfigDict, task: Task) -> float:
    """For an image, if all devices share a batch."""
    rows = config.batch_size // jax.device_count()
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    batch = {
        name: jnp.zeros((rows, *array.shape), array.dtype)
        for name, array in task.batch.items()
    }
    predict = jax.jit(task.predict)
    jax.block_until_ready(predict(variables, batch))
    start = time.monotonic()
    for _ in range(_REPEATS):
        jax.block_until_ready(predict(variables, batch))
    return (time.monotonic() - start) / _REPEATS / rows / jax.device_count()


def _seconds_for_input(config: ConfigDict, split: Split, arguments) -> float:
    """For an image, if all threads make some."""
    count = min(_EXAMPLES, len(split.source))
    indices = np.linspace(0, len(split.source) - 1, count).astype(int)

    def make(index):
        with contextlib.suppress(BadRecordError):  # The run says of which image.
            split.example(*arguments(split.source.read(int(index))))

    with concurrent.futures.ThreadPoolExecutor(config.data.threads) as pool:
        list(pool.map(make, indices))  # The first ones load libraries.
        start = time.monotonic()
        list(pool.map(make, indices))
        return (time.monotonic() - start) / count
