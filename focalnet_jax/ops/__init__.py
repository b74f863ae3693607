"""Pure functions of arrays: what the modules of `focalnet_jax.models` compute."""

from focalnet_jax.ops.depthwise_conv import IMPLEMENTATIONS, depthwise_conv
from focalnet_jax.ops.focal_modulation import aggregate_context, gelu

__all__ = ["IMPLEMENTATIONS", "aggregate_context", "depthwise_conv", "gelu"]
