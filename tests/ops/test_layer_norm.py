"""The layer normalisation agrees with Flax's in values and in derivatives."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from focalnet_jax.ops.layer_norm import layer_norm


def make_inputs(dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (2, 5, 3, 16))
    scale, bias = rng.normal(1, 0.5, (2, 16))
    return jnp.array(x, dtype), jnp.array(scale), jnp.array(bias)


def by_flax(x, scale, bias):
    module = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=x.dtype)
    return module.apply({"params": {"scale": scale, "bias": bias}}, x)


def loss(normalize, x, scale, bias):
    y = normalize(x, scale, bias).astype(jnp.promote_types(x.dtype, jnp.float32))
    return (jnp.sin(y) ** 2).sum()


def gradient(function, *arguments):
    return jax.grad(functools.partial(loss, function), (0, 1, 2))(*arguments)


def tangent(function, *arguments):
    return jax.jvp(functools.partial(loss, function), arguments, arguments)[1]


def hessian_vector_product(function, *arguments):
    return jax.jvp(functools.partial(gradient, function), arguments, arguments)[1]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("derivative", [gradient, tangent, hessian_vector_product])
def test_derivatives_are_flaxs(derivative):
    arguments = make_inputs(jnp.float64)
    given, expected = (
        jax.jit(functools.partial(derivative, function))(*arguments)
        for function in (layer_norm, by_flax)
    )
    # Sums over 30 positions and 16 channels, in another order.
    chex.assert_trees_all_close(given, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_are_flaxs(dtype):
    arguments = make_inputs(dtype)
    given, expected = (jax.jit(f)(*arguments) for f in (layer_norm, by_flax))
    assert given.dtype == dtype
    chex.assert_trees_all_equal(given, expected)


@pytest.mark.parametrize("mean", [0, 1, 8, 64])
def test_bfloat16_beside_a_large_mean(mean):
    """The one pass takes the difference of squares, of which float32 keeps 24 digits."""
    rng = np.random.default_rng(0)
    x = jnp.array(rng.normal(mean, 1, (200, 512)), jnp.bfloat16)
    given = layer_norm(x, jnp.ones(512), jnp.zeros(512))
    wide = np.array(x.astype(jnp.float32), np.float64)
    exact = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(
        wide.var(-1, keepdims=True) + 1e-5
    )
    # Half of a place of the result, and what the squares and the mean lose.
    np.testing.assert_allclose(
        given.astype(jnp.float32),
        exact,
        rtol=2**-8 + mean**2 * 2**-22,
        atol=mean * 2**-22,
    )


def test_gradients_of_bfloat16_are_rounded_once():
    """Against the same numbers in float32: half a unit of bfloat16 is 2**-9."""
    x, scale, bias = make_inputs(jnp.bfloat16)
    cotangent = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
    cotangent = cotangent.astype(jnp.bfloat16)

    def gradients(x, cotangent):
        return jax.vjp(layer_norm, x, scale, bias)[1](cotangent)

    given = gradients(x, cotangent)
    exact = gradients(x.astype(jnp.float32), cotangent.astype(jnp.float32))
    assert given[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(
        given[0].astype(jnp.float32), exact[0], rtol=2**-8, atol=1e-5
    )
    chex.assert_trees_all_close(given[1:], exact[1:], rtol=1e-5, atol=1e-5)


def test_keeps_no_normalised_map():
    """The backward pass has the input, and two numbers of each position."""
    x, scale, bias = make_inputs(jnp.bfloat16)
    _, pull_back = jax.vjp(layer_norm, x, scale, bias)
    kept = [a for a in jax.tree.leaves(pull_back) if a.size >= x.size]
    assert all(a.dtype == jnp.bfloat16 for a in kept)
