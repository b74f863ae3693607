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


def gelu_and_derivative(x: jax.Array, *, exact: bool) -> tuple[jax.Array, jax.Array]:
    """The GELU of `x` and its derivative, in float32, for kernels."""
    if not exact:
        c = (1.59182038, 7.61038580e-02, -1.01097161e-03, 9.63211194e-06)
        t = jnp.minimum(x * x, 25.0)
        h = x * (0.5 * c[0] + t * (0.5 * c[1] + t * (0.5 * c[2] + t * (0.5 * c[3]))))
        dz = c[0] + t * (3 * c[1] + t * (5 * c[2] + t * (7 * c[3])))
        s = 0.5 * jnp.tanh(h) + 0.5
        g = x * s
        return g, s + g * (1 - s) * dz
    cdf = 0.5 * (1 + jax.lax.erf(x * np.float32(1 / np.sqrt(2))))
    return x * cdf, cdf + x * jnp.exp(-0.5 * x * x) * np.float32(1 / np.sqrt(2 * np.pi))
