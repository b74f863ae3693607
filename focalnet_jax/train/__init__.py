"""The trainer: configuration, optimiser, sharding, checkpoints and the loop."""

from focalnet_jax.train.config import check_config, check_field_name, default_config
from focalnet_jax.train.loop import evaluate, train
from focalnet_jax.train.workdir import absolute_path

__all__ = [
    "absolute_path",
    "check_config",
    "check_field_name",
    "default_config",
    "evaluate",
    "train",
]
