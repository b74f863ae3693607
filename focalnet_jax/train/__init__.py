"""The trainer: configuration, optimiser, sharding, checkpoints and the loop."""

from focalnet_jax.train.config import check_config, check_field_name, default_config
from focalnet_jax.train.evaluation import evaluate
from focalnet_jax.train.loop import train

__all__ = [
    "check_config",
    "check_field_name",
    "default_config",
    "evaluate",
    "train",
]
