"""Focal contextualisation and gated aggregation, as the paper writes them.

Paper: Yang et al., "Focal Modulation Networks", arXiv 2203.11926, section 3.2,
equations 4 and 5; reference code: microsoft/FocalNet, `FocalModulation.forward`. The
causal form is that of FocalCodec-Stream, arXiv 2509.16195, `FocalModulation.forward`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from focalnet_jax.ops.canvas import mean_inside, zero_outside
from focalnet_jax.ops.depthwise_conv import depthwise_conv
from focalnet_jax.ops.fusion import written_once
from focalnet_jax.ops.gelu import gelu


def aggregate_level_by_level(
    context: jax.Array,
    gates: jax.Array,
    kernels: Sequence[jax.Array],
    *,
    normalize: bool,
    convolution: str,
    biases: Sequence[jax.Array] | None = None,
    causal: bool = False,
    global_axes: Sequence[int] = (),
    valid: jax.Array | None = None,
) -> jax.Array:
    """Computes `aggregate_context` by one operation after the other.

    Args:
      context, gates, kernels, normalize, biases, causal, global_axes, valid: as for
        `aggregate_context`.
      convolution: the implementation of `depthwise_conv`.

    Returns:
      The aggregated context, `[batch, *spatial, channels]`, in the dtype of `context`.
    """
    bias_of: Sequence[jax.Array | None] = biases or [None] * len(kernels)
    padding = "causal" if causal else "same"

    def convolve(context, kernel, bias):
        return depthwise_conv(
            context, kernel, bias, padding=padding, implementation=convolution
        )

    levels = gates.shape[-1] - 1
    aggregated = jnp.zeros_like(context)
    # Biases leave no zeros in the padding of a canvas: neither that of the layer before
    # nor those of the levels.
    context = zero_outside(context, valid)
    for level in range(levels):
        context = gelu(convolve(context, kernels[level], bias_of[level]))
        # Else a CPU computes the convolution anew for each use.
        context = written_once(zero_outside(context, valid))
        aggregated += context * gates[..., level : level + 1]

    spatial = range(context.ndim - 2)
    if causal:  # over time, a last kernel takes the place of the mean
        space = tuple(axis + 1 for axis in spatial if axis > 0)
        context = convolve(
            mean_inside(context, valid, space), kernels[levels], bias_of[levels]
        )
    else:
        axes = tuple(axis + 1 for axis in global_axes or spatial)
        context = mean_inside(context, valid, axes)
    aggregated += gelu(context) * gates[..., levels:]
    if normalize:
        aggregated /= levels + 1
    return aggregated
