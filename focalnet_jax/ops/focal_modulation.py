"""Focal contextualisation and gated aggregation, as the paper writes them.

Paper: Yang et al., "Focal Modulation Networks", arXiv 2203.11926, section 3.2,
equations 4 and 5; reference code: microsoft/FocalNet, `FocalModulation.forward`. The
causal form is that of FocalCodec-Stream, arXiv 2509.16195, `FocalModulation.forward`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from focalnet_jax.ops.depthwise_conv import depthwise_conv


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
) -> jax.Array:
    """Computes `aggregate_context` by one operation after the other.

    Args:
      context, gates, kernels, normalize, biases, causal, global_axes: as for
        `aggregate_context`.
      convolution: the implementation of `depthwise_conv`.

    Returns:
      The aggregated context, `[batch, *spatial, channels]`, in the dtype of `context`.
    """
    biases = biases or [None] * len(kernels)
    padding = "causal" if causal else "same"

    def convolve(context, kernel, bias):
        return depthwise_conv(
            context, kernel, bias, padding=padding, implementation=convolution
        )

    levels = gates.shape[-1] - 1
    aggregated = jnp.zeros_like(context)
    for level in range(levels):
        context = gelu(convolve(context, kernels[level], biases[level]))
        aggregated += context * gates[..., level : level + 1]

    spatial = range(context.ndim - 2)
    if causal:  # over time, a last kernel takes the place of the mean
        space = tuple(axis + 1 for axis in spatial if axis > 0)
        context = convolve(
            context.mean(space, keepdims=True), kernels[levels], biases[levels]
        )
    else:
        axes = tuple(axis + 1 for axis in global_axes or spatial)
        context = context.mean(axes, keepdims=True)
    aggregated += gelu(context) * gates[..., levels:]
    if normalize:
        aggregated /= levels + 1
    return aggregated


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, as `torch.nn.GELU()`: by the error function, not by tanh."""
    return x * _normal_cdf(x)


# As of jax 0.12, the gradient of `jax.lax.erf` fails under `jax.shard_map`.
@jax.custom_jvp
def _normal_cdf(x: jax.Array) -> jax.Array:
    """The share of a standard normal distribution below x."""
    return (jax.lax.erf(x / np.sqrt(2).astype(x.dtype)) + 1) / 2


@_normal_cdf.defjvp
def _normal_cdf_jvp(primals, tangents):
    [x], [tangent] = primals, tangents
    density = jnp.exp(-jnp.square(x) / 2) / np.sqrt(2 * np.pi).astype(x.dtype)
    return _normal_cdf(x), density * tangent
