"""The trainer: configuration, optimiser, sharding, checkpoints and the loop.

It trains any task behind the protocol of `focalnet_jax.tasks.base`.
"""

from focalnet_jax.train.config import check_config, check_field_name, default_config
from focalnet_jax.train.evaluation import evaluate
from focalnet_jax.train.loop import train
from focalnet_jax.train.recipes import load_recipe

__all__ = [
    "check_config",
    "check_field_name",
    "default_config",
    "evaluate",
    "load_recipe",
    "train",
]
