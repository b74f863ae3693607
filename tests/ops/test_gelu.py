"""The GELU is exact: nearly so in bfloat16, for every one of its numbers."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.sharding import AxisType, PartitionSpec

from focalnet_jax.ops.gelu import (
    gelu,
    gelu_and_derivative,
    gelu_and_derivative_without_erf,
)

HALF_A_PLACE = 2.0**-8  # of a bfloat16 from 1 to 2


def every_bfloat16():
    """All finite ones, `[65280]`."""
    bits = jnp.arange(2**16, dtype=jnp.uint32).astype(jnp.uint16)
    x = jax.lax.bitcast_convert_type(bits, jnp.bfloat16)
    return x[jnp.isfinite(x)]


def in_float64(x):
    return np.array(x.astype(jnp.float32), np.float64)


def exact_share(x):
    return scipy.special.ndtr(x)


def exact_density(x):
    with np.errstate(over="ignore"):
        return np.exp(-np.square(x) / 2) / np.sqrt(2 * np.pi)


def half_a_place(y):
    """Half of the distance between bfloat16 numbers of the size of y."""
    return HALF_A_PLACE * 2 ** np.floor(np.log2(np.abs(y)))


def test_every_bfloat16_is_within_half_a_place():
    x = every_bfloat16()
    wide = in_float64(x)
    exact = wide * exact_share(wide)
    # Where the share is denormal in float32, processors may take it for 0. So they may
    # what is denormal in bfloat16.
    tiny = float(jnp.finfo(jnp.float32).tiny)
    normal = (exact_share(wide) > tiny) & (np.abs(exact) > tiny)
    assert normal.sum() > 48_000

    before, _ = jax.jit(functools.partial(gelu_and_derivative, exact=False))(
        x.astype(jnp.float32)
    )
    error = np.abs(before - exact)
    assert (error[normal] < half_a_place(exact[normal])).all()
    assert (error[~normal] < 16 * tiny).all()

    after = jax.jit(gelu)(x)
    assert after.dtype == jnp.bfloat16
    correct = in_float64(jnp.array(exact, jnp.float32).astype(jnp.bfloat16))
    places = np.abs(in_float64(after) - correct)[normal] / (
        2 * half_a_place(correct[normal])
    )
    assert places.max() <= 1


def test_derivative_of_every_bfloat16():
    """The error is half of a place from 0.25 to 0.5, and the derivative is up to 1.13."""
    x = every_bfloat16()
    wide = in_float64(x)
    exact = exact_share(wide) + wide * exact_density(wide)
    derivative = functools.partial(gelu_and_derivative, exact=False)
    _, given = jax.jit(derivative)(x.astype(jnp.float32))
    assert np.abs(given - exact).max() < 2**-10

    _, tangent = jax.jit(lambda x: jax.jvp(gelu, [x], [jnp.ones_like(x)]))(x)
    assert tangent.dtype == jnp.bfloat16
    rounding = 2.0**-8  # half of a place from 1 to 2
    assert np.abs(in_float64(tangent) - exact).max() < 2**-10 + rounding


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_what_is_not_finite(dtype):
    """As in PyTorch, minus infinity times 0 is no number."""
    y = gelu(jnp.array([np.inf, -np.inf, np.nan, 0.0], dtype))
    np.testing.assert_array_equal(
        y.astype(jnp.float32), np.array([np.inf, np.nan, np.nan, 0.0], np.float32)
    )


def test_float32_is_exact():
    x = np.linspace(-20, 20, 4001, dtype=np.float32)
    wide = x.astype(np.float64)
    value, derivative = gelu_and_derivative(jnp.array(x), exact=True)
    # The error of the error function in float32, whose results are about 1.
    for given in (value, jax.jit(gelu)(x)):
        np.testing.assert_allclose(given, wide * exact_share(wide), rtol=1e-6, atol=1e-6)
    exact = exact_share(wide) + wide * exact_density(wide)
    np.testing.assert_allclose(derivative, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("float64")
def test_without_the_error_function():
    """What its source says of the error of the share; in float32 four roundings more."""
    numbers = jnp.linspace(-15, 15, 60_001, dtype=jnp.float32)
    numbers = jnp.concatenate([every_bfloat16().astype(jnp.float32), numbers])
    x = np.array(numbers, np.float64)
    exact = x * exact_share(x)
    slope = exact_share(x) + x * exact_density(x)
    # What is denormal, processors may take for 0.
    tiny = float(jnp.finfo(jnp.float32).tiny)
    for dtype, error in ((jnp.float64, 7.5e-8), (jnp.float32, 7.5e-8 + 4 * 2**-24)):
        value, derivative = jax.jit(gelu_and_derivative_without_erf)(
            numbers.astype(dtype)
        )
        assert value.dtype == derivative.dtype == dtype
        assert (np.abs(value - exact) <= error * np.abs(x) + tiny).all()
        assert np.abs(derivative - slope).max() <= error


def loss(function, x):
    return (jnp.sin(function(x)) ** 2).sum()


def tangent(function, x):
    return jax.jvp(functools.partial(loss, function), [x], [jnp.cos(x)])[1]


def gradient(function, x):
    return jax.grad(functools.partial(loss, function))(x)


def hessian_vector_product(function, x):
    return jax.jvp(functools.partial(gradient, function), [x], [jnp.cos(x)])[1]


def gradient_of_gradient(function, x):
    return jax.grad(lambda x: (gradient(function, x) ** 2).sum())(x)


MODES = [tangent, gradient, hessian_vector_product, gradient_of_gradient]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("mode", MODES)
def test_derivatives_of_float64(mode):
    x = jnp.linspace(-9, 9, 301)
    assert x.dtype == jnp.float64
    given = jax.jit(functools.partial(mode, gelu))(x)
    expected = jax.jit(
        functools.partial(mode, functools.partial(jax.nn.gelu, approximate=False))
    )(x)
    np.testing.assert_allclose(given, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_derivatives_of_bfloat16(mode):
    """Rounding between the steps of the chain rule, four times at most."""
    x = jnp.linspace(-4, 4, 41).astype(jnp.bfloat16)

    def in_bfloat16(x):
        return gelu(x.astype(jnp.bfloat16)).astype(jnp.float32)

    wide = x.astype(jnp.float32)
    given, expected = mode(in_bfloat16, wide), mode(gelu, wide)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(given / scale, expected / scale, atol=4 * 2**-8)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_keeps_its_input_alone(dtype):
    x = jnp.linspace(-4, 4, 41).astype(dtype)
    _, pull_back = jax.vjp(gelu, x)
    kept = [a for a in jax.tree.leaves(pull_back) if a.size >= x.size]
    assert [a.dtype for a in kept] == [dtype]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_gradients_under_shard_map_and_vmap(dtype):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = jnp.linspace(-4, 4, 48).reshape(16, 3).astype(dtype)
    expected = jax.grad(lambda x: gelu(x).astype(jnp.float32).sum())(x)
    spec = PartitionSpec("data")

    def of_shard(x):
        return jax.grad(lambda x: gelu(x).astype(jnp.float32).sum())(x)

    shards = jax.shard_map(of_shard, mesh=mesh, in_specs=spec, out_specs=spec)
    chex.assert_trees_all_equal(jax.jit(shards)(x), expected)
    chex.assert_trees_all_equal(jax.vmap(of_shard)(x), expected)
