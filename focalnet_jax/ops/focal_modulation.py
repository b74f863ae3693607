"""Focal contextualisation and gated aggregation, as the paper writes them.

Paper: Yang et al., "Focal Modulation Networks", arXiv 2203.11926, section 3.2,
equations 4 and 5; reference code: microsoft/FocalNet, `FocalModulation.forward`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from focalnet_jax.ops.depthwise_conv import depthwise_conv


def aggregate_level_by_level(
    context: jax.Array,
    gates: jax.Array,
    kernels: Sequence[jax.Array],
    *,
    normalize: bool,
    convolution: str,
) -> jax.Array:
    """Computes `aggregate_context` by one operation after the other.

    Args:
      context, gates, kernels, normalize: as for `aggregate_context`.
      convolution: the implementation of `depthwise_conv`.

    Returns:
      The aggregated context, `[batch, *spatial, channels]`, in the dtype of `context`.
    """
    levels = len(kernels)
    aggregated = jnp.zeros_like(context)
    for level, kernel in enumerate(kernels):
        context = gelu(depthwise_conv(context, kernel, implementation=convolution))
        aggregated += context * gates[..., level : level + 1]
    spatial_axes = tuple(range(1, context.ndim - 1))
    global_context = gelu(context.mean(spatial_axes, keepdims=True))
    aggregated += global_context * gates[..., levels:]
    if normalize:
        aggregated /= levels + 1
    return aggregated


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, as `torch.nn.GELU()`: by the error function, not by tanh."""
    return jax.nn.gelu(x, approximate=False)
