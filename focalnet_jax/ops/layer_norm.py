"""Layer normalisation with a derivative of its own.

Ba et al., arXiv 1607.06450. JAX's derivative of the mean and the variance makes several
passes over the map. The one here needs two sums over the channels, in both modes, and
keeps the input and two numbers of each position for the backward pass.
"""

import functools

import jax
import jax.numpy as jnp


def layer_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, epsilon: float = 1e-5
) -> jax.Array:
    """Normalises each position over its channels, in float32 or wider.

    Args:
      x: `[..., channels]`.
      scale, bias: `[channels]`, which multiply the result and are added to it.
      epsilon: is added to the variance; the default is torch's.

    Returns:
      `[..., channels]` in the dtype of `x`.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return _layer_norm(epsilon, x, scale.astype(wide), bias.astype(wide))


def _statistics(x: jax.Array, wide, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """The mean over the channels, and 1 over the standard deviation, in dtype `wide`."""
    is_narrow, x = x.dtype == jnp.bfloat16, x.astype(wide)
    mean = x.mean(-1, keepdims=True)
    if is_narrow:
        # One pass over the map. The squares of bfloat16 numbers are exact in float32, and
        # what their sum loses beside a large mean is less than what the numbers lost when
        # they were rounded to bfloat16.
        square = jnp.square(x).mean(-1, keepdims=True)
        variance = jnp.maximum(square - jnp.square(mean), 0)
    else:
        variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return mean, jax.lax.rsqrt(variance + epsilon)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _layer_norm(epsilon, x, scale, bias):
    wide = x.astype(scale.dtype)
    mean, factor = _statistics(x, scale.dtype, epsilon)
    return ((wide - mean) * (factor * scale) + bias).astype(x.dtype)


@_layer_norm.defjvp
def _layer_norm_jvp(epsilon, primals, tangents):
    x, scale, bias = primals
    wide = x.astype(scale.dtype)
    mean, factor = _statistics(x, scale.dtype, epsilon)
    y = ((wide - mean) * (factor * scale) + bias).astype(x.dtype)

    # What is linear in the tangents is computed again from `x` in the backward pass, so
    # that no normalised map in float32 is kept.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def linear(x, mean, factor, dx, dscale, dbias):
        dx = dx.astype(scale.dtype)
        normalized = (x.astype(scale.dtype) - mean) * factor
        along = (dx * normalized).mean(-1, keepdims=True)
        dx = factor * (dx - dx.mean(-1, keepdims=True) - normalized * along)
        return (dx * scale + normalized * dscale + dbias).astype(x.dtype)

    return y, linear(x, mean, factor, *tangents)
