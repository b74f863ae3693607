"""Pure functions of arrays: what the modules of `focalnet_jax.models` compute."""

from focalnet_jax.ops.depthwise_conv import depthwise_conv
from focalnet_jax.ops.gelu import gelu
from focalnet_jax.ops.implementations import (
    IMPLEMENTATIONS,
    Implementation,
    aggregate_context,
)

__all__ = [
    "IMPLEMENTATIONS",
    "Implementation",
    "aggregate_context",
    "depthwise_conv",
    "gelu",
]
