"""AdamW as in the recipe: clipped gradients, a schedule, and a weight-decay mask."""

from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from focalnet_jax.train.config import steps_of_epochs, total_steps
from focalnet_jax.train.schedule import warmup_cosine

PyTree = Any


def make_schedule(config: ConfigDict, num_examples: int) -> optax.Schedule:
    """The config's learning rate by step, for an epoch of `num_examples`."""
    reference = config.learning_rate_batch_size
    scale = config.batch_size / reference if reference else 1
    return warmup_cosine(
        peak=config.learning_rate * scale,
        start=config.warmup_learning_rate * scale,
        final=config.final_learning_rate * scale,
        warmup_steps=steps_of_epochs(config, config.warmup_epochs, num_examples),
        total_steps=total_steps(config, num_examples),
        warmup_prefix=config.warmup_prefix,
    )


def make_optimizer(
    config: ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """AdamW with decoupled weight decay scaled by the learning rate, as torch's."""
    masks = {"nominal": decay_matrices, "none": decay_nothing}
    clip = optax.clip_by_global_norm(config.clip_norm)
    return optax.chain(
        clip if config.clip_norm else optax.identity(),
        optax.adamw(
            schedule,
            b1=config.adam_b1,
            b2=config.adam_b2,
            eps=config.adam_eps,
            weight_decay=config.weight_decay,
            mask=masks[config.weight_decay_mask],
        ),
    )


def decay_matrices(params: PyTree) -> PyTree:
    """What the recipe states: weights decay; biases, norms and layer scales don't."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def decay_nothing(params: PyTree) -> PyTree:
    """What the official code does: its list of exceptions matches every parameter.

    `no_weight_decay_keywords()` returns `{''}` there, and `'' in name` is always true.
    """
    return jax.tree.map(lambda leaf: False, params)
