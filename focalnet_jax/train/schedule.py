"""The learning rate of each step."""

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

    def schedule(step: jax.Array) -> jax.Array:
        warmup = start + (peak - start) * step / max(warmup_steps, 1)
        offset = warmup_steps if warmup_prefix else 0
        progress = (step - offset) / max(total_steps - offset, 1)
        progress = jnp.clip(progress, 0, 1)
        cosine = final + (peak - final) * (1 + jnp.cos(jnp.pi * progress)) / 2
        return jnp.where(step < warmup_steps, warmup, cosine)

    return schedule
