"""The trainer: configuration, optimiser, sharding, checkpoints and the loop."""

from focalnet_jax.train.config import check_config, default_config
from focalnet_jax.train.loop import evaluate, train

__all__ = ["check_config", "default_config", "evaluate", "train"]
