"""Focal contextualisation and gated aggregation, the heart of FocalNets.

Paper: Yang et al., "Focal Modulation Networks", arXiv 2203.11926, section 3.2,
equations 4 and 5; reference code: microsoft/FocalNet, `FocalModulation.forward`.

The function below is everything between the projection into query, context and
gates and the projection of the aggregated context into the modulator: the seam
behind which another implementation, or another operator, may stand.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from focalnet_jax.ops.depthwise_conv import depthwise_conv


def aggregate_context(
    context: jax.Array,
    gates: jax.Array,
    kernels: Sequence[jax.Array],
    *,
    normalize: bool = False,
    implementation: str = "auto",
) -> jax.Array:
    """Gathers context level by level, each wider than the last, and adds it up gated.

    `context_l = GELU(depthwise_conv(context_{l-1}, kernel_l))` for each level, then a
    global level, the GELU of the last level's mean over space; the result is the
    sum of all levels, each weighted at every position by its gate.

    Args:
      context: `[batch, *spatial, channels]`, with one, two, three ... spatial axes.
      gates: `[batch, *spatial, levels + 1]`, used as they are; the last is the
        global level's.
      kernels: one `[*kernel_size, 1, channels]` a level, sizes odd.
      normalize: divides the sum by `levels + 1` (the code's `normalize_modulator`).
      implementation: how `depthwise_conv` is computed.

    Returns:
      The aggregated context, `[batch, *spatial, channels]`, in the dtype of `context`.
    """
    batch, *spatial, channels = context.shape
    levels = len(kernels)
    chex.assert_shape(gates, (batch, *spatial, levels + 1))
    chex.assert_type(gates, context.dtype)

    aggregated = jnp.zeros_like(context)
    for level, kernel in enumerate(kernels):
        context = gelu(depthwise_conv(context, kernel, implementation=implementation))
        aggregated += context * gates[..., level : level + 1]
    spatial_axes = tuple(range(1, context.ndim - 1))
    global_context = gelu(context.mean(spatial_axes, keepdims=True))
    aggregated += global_context * gates[..., levels:]
    if normalize:
        aggregated /= levels + 1
    chex.assert_shape(aggregated, (batch, *spatial, channels))
    return aggregated


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, as `torch.nn.GELU()`: by the error function, not by tanh."""
    return jax.nn.gelu(x, approximate=False)
