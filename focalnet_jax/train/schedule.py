"""The learning rate of each step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax


def warmup_cosine(
    *,
    peak: float,
    start: float,
    final: float,
    warmup_steps: int,
    total_steps: int,
    warmup_prefix: bool = False,
) -> optax.Schedule:
    """Linear warmup, then a cosine.

    The official recipe uses timm's `CosineLRScheduler` per step without
    `warmup_prefix`: the cosine is counted from step 0, so it is already part of the way
    down when the warmup ends, and the rate drops a little there. With `warmup_prefix`
    it begins at the end of the warmup and spans the steps that are left.

    Args:
      peak: the rate at the end of the warmup.
      start: the rate at step 0.
      final: the rate at `total_steps` and after.
      warmup_steps: steps of the warmup.
      total_steps: steps of the run, warmup included.
      warmup_prefix: see above.

    Returns:
      A function of the step, counted from 0.
    """

    progress_at = _progress(warmup_steps, total_steps, warmup_prefix)

    def schedule(step: jax.Array) -> jax.Array:
        warmup = start + (peak - start) * step / max(warmup_steps, 1)
        progress = progress_at(step)
        cosine = final + (peak - final) * (1 + jnp.cos(jnp.pi * progress)) / 2
        return jnp.where(step < warmup_steps, warmup, cosine)

    return schedule


def warmup_poly(
    *,
    peak: float,
    start: float,
    final: float,
    power: float,
    warmup_steps: int,
    total_steps: int,
    warmup_prefix: bool = False,
) -> optax.Schedule:
    """A power of the share of the run that is left, which a linear warmup multiplies.

    These are `PolyLrUpdaterHook` and its linear warmup of mmcv 1.x, which
    mmsegmentation's recipes use with a `warmup_ratio` of `start / peak`: in the warmup
    the rate is (1 - (1 - step / warmup_steps) (1 - start / peak)) times that of the step
    without a warmup.

    Args:
      peak: the rate at step 0 if there were no warmup.
      start: the rate at step 0 with one.
      final: the rate at `total_steps` and after.
      power: of the share that is left; 1 makes a straight line.
      warmup_steps, total_steps, warmup_prefix: as for `warmup_cosine`.

    Returns:
      A function of the step, counted from 0.
    """
    progress_at = _progress(warmup_steps, total_steps, warmup_prefix)
    ratio = start / peak if peak else 1.0

    def schedule(step: jax.Array) -> jax.Array:
        rate = final + (peak - final) * (1 - progress_at(step)) ** power
        left = jnp.clip(1 - step / max(warmup_steps, 1), 0, 1) if warmup_steps else 0
        return rate * (1 - left * (1 - ratio))

    return schedule


def _progress(
    warmup_steps: int, total_steps: int, warmup_prefix: bool
) -> Callable[[jax.Array], jax.Array]:
    """The share of the run that is done at a step, with or without the warmup."""
    offset = warmup_steps if warmup_prefix else 0

    def progress_at(step: jax.Array) -> jax.Array:
        progress = (step - offset) / max(total_steps - offset, 1)
        return jnp.clip(progress, 0, 1)

    return progress_at
