"""The Gaussian error linear unit: Hendrycks and Gimpel, arXiv 1606.08415.

It is the exact one, as `torch.nn.GELU()`: `x` times the share of a standard normal
distribution below `x`. In float32 and wider the error function gives the share. For
bfloat16 the exponential of a polynomial is as good, and takes fewer operations.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# The logarithm of the share below -a, as a polynomial of -a, the highest power first. It
# is the minimax fit over all bfloat16 numbers for which the share is a normal float32.
# Its greatest error is 0.83 of half a unit in the last place of the bfloat16 GELU.
_LOG_OF_TAIL = (
    2.4876812858565245e-06,
    0.00011807743430836126,
    0.00230067758820951,
    0.024266185238957405,
    -0.34137293696403503,
    0.7818071842193604,
    -0.6947665810585022,
)

# The share below -a is the density at a times a polynomial of 1 / (1 + _SCALE * a), by
# 26.2.17 of Abramowitz and Stegun, "Handbook of Mathematical Functions". These are its
# coefficients, the highest power first. The error of the share is below 7.5e-8, which is
# about that of rounding to float32.
_SCALE = 0.2316419
_OF_TAIL = (1.330274429, -1.821255978, 1.781477937, -0.356563782, 0.319381530, 0.0)

# The share below this is 0 in float32. Far beyond it the polynomial would grow again.
_LEAST = -14.5


def gelu(x: jax.Array) -> jax.Array:
    """Computes the exact GELU of each element of a float array, in its dtype.

    Where that is bfloat16, the error before rounding is below half a unit in the last
    place. All derivatives are computed from `x` alone, so a backward pass needs no other
    array.
    """
    return _gelu(x)


def gelu_and_derivative(x: jax.Array, *, exact: bool) -> tuple[jax.Array, jax.Array]:
    """Computes the GELU and its derivative, by functions that kernels may call.

    Args:
      x: float32 or wider, of any shape.
      exact: takes the error function; else what bfloat16 needs, see `gelu`.

    Returns:
      The GELU and its derivative, both as `x`.
    """
    share = _share_below(x, exact=exact)
    return x * share, share + x * _density(x)


def gelu_and_derivative_without_erf(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As `gelu_and_derivative`, for kernels whose compiler lacks the error function.

    In float32 the GELU is exact but for 1e-7 times `x`, and for rounding.
    """
    density = _density(x)
    fraction = 1 / (1 + _SCALE * jnp.abs(x))
    tail = density * _polynomial(_OF_TAIL, fraction)
    share = jnp.where(x > 0, 1 - tail, tail)
    return x * share, share + x * density


@jax.custom_jvp
def _gelu(x: jax.Array) -> jax.Array:
    wide = _widen(x)
    return (wide * _share_below(wide, exact=_is_exact(x))).astype(x.dtype)


@_gelu.defjvp
def _gelu_jvp(primals, tangents):
    [x], [tangent] = primals, tangents

    # The derivative is computed again in the backward pass, so that it is not kept.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def linear(x, tangent):
        return (_derivative(x) * tangent).astype(x.dtype)

    return _gelu(x), linear(x, tangent)


@jax.custom_jvp
def _derivative(x: jax.Array) -> jax.Array:
    """In float32 or wider."""
    return gelu_and_derivative(_widen(x), exact=_is_exact(x))[1]


@_derivative.defjvp
def _derivative_jvp(primals, tangents):
    [x], [tangent] = primals, tangents
    wide = _widen(x)
    second = _density(wide) * (2 - jnp.square(wide))
    return _derivative(x), second * tangent.astype(wide.dtype)


def _share_below(x: jax.Array, *, exact: bool) -> jax.Array:
    """The share of a standard normal distribution below x."""
    if exact:
        return (jax.lax.erf(x / np.sqrt(2).astype(x.dtype)) + 1) / 2
    size = jnp.maximum(-jnp.abs(x), _LEAST)
    tail = jnp.exp(_polynomial(_LOG_OF_TAIL, size))
    return jnp.where(x > 0, 1 - tail, tail)


def _polynomial(coefficients: Sequence[float], x: jax.Array) -> jax.Array:
    """With the coefficient of the highest power first."""
    value = coefficients[0] * x + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * x + coefficient
    return value


def _density(x: jax.Array) -> jax.Array:
    """The density of a standard normal distribution at x."""
    return jnp.exp(-jnp.square(x) / 2) / np.sqrt(2 * np.pi).astype(x.dtype)


def _is_exact(x: jax.Array) -> bool:
    return x.dtype != jnp.bfloat16


def _widen(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
