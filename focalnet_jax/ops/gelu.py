"""The Gaussian error linear unit: Hendrycks and Gimpel, arXiv 1606.08415."""

import jax
import jax.numpy as jnp
import numpy as np


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
