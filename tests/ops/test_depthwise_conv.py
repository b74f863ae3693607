"""The implementations of the depthwise convolution agree with its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focalnet_jax.ops.depthwise_conv import CONVOLUTIONS, depthwise_conv

# Sizes of a map and a kernel, with one to four spatial axes. One kernel is larger than
# its map, and some sizes differ from axis to axis.
SHAPES = [
    ((2, 9, 3), (5,)),
    ((2, 7, 6, 3), (3, 5)),
    ((1, 3, 4, 5), (7, 7)),
    ((2, 3, 5, 4, 2), (3, 3, 5)),
    ((1, 2, 3, 2, 3, 2), (3, 1, 3, 3)),
]


def make_inputs(shape, size, dtype=np.float64):
    rng = np.random.default_rng(0)
    kernel_shape = (*size, 1, shape[-1])
    return [jnp.array(rng.normal(size=s), dtype) for s in (shape, kernel_shape)]


def by_definition(x, kernel):
    x, kernel = np.asarray(x), np.asarray(kernel)
    size = kernel.shape[:-2]
    padded = np.pad(x, [(0, 0), *((k // 2, k // 2) for k in size), (0, 0)])
    result = np.zeros_like(x)
    for position in np.ndindex(*x.shape[1:-1]):
        for tap in np.ndindex(*size):
            source = tuple(p + t for p, t in zip(position, tap))
            result[:, *position] += padded[:, *source] * kernel[tap][0]
    return result


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("implementation", CONVOLUTIONS)
@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_computes_its_definition(shape, size, implementation):
    x, kernel = make_inputs(shape, size)
    result = depthwise_conv(x, kernel, implementation=implementation)
    # Sums of at most 49 products of order 1: a few units of 2e-16 each.
    np.testing.assert_allclose(result, by_definition(x, kernel), rtol=0, atol=1e-13)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("implementation", [n for n in CONVOLUTIONS if n != "lax"])
@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_gradients_agree_with_automatic_ones(shape, size, implementation):
    x, kernel = make_inputs(shape, size)
    weights = jnp.array(np.random.default_rng(1).normal(size=shape))

    def gradients(implementation):
        def loss(x, kernel):
            y = depthwise_conv(x, kernel, implementation=implementation)
            return (weights * y**2).sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(x, kernel)

    for given, expected in zip(gradients(implementation), gradients("lax")):
        # The sums over the whole map are rounded in another order.
        np.testing.assert_allclose(given, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("implementation", CONVOLUTIONS)
def test_bfloat16_is_rounded_once(implementation):
    x, kernel = make_inputs((2, 7, 6, 3), (3, 5), jnp.bfloat16)
    result = depthwise_conv(x, kernel, implementation=implementation)
    assert result.dtype == jnp.bfloat16
    exact = by_definition(x.astype(jnp.float64), kernel.astype(jnp.float64))
    # bfloat16 keeps 8 bits: half a unit is 2**-9 of the value. The float32 sums before
    # that add little.
    np.testing.assert_allclose(result.astype(jnp.float64), exact, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize(
    ("platform", "implementation", "has_convolution"),
    [
        ("tpu", "auto", True),
        ("cuda", "auto", True),
        ("cpu", "auto", False),
        ("cpu", "lax", True),
        ("tpu", "shifted", False),
    ],
)
def test_implementation_follows_the_platform_lowered_for(
    platform, implementation, has_convolution
):
    x, kernel = make_inputs((2, 7, 6, 3), (3, 5), np.float32)

    def loss(x, kernel):
        return depthwise_conv(x, kernel, implementation=implementation).sum()

    for function in (loss, jax.grad(loss, argnums=(0, 1))):
        traced = jax.jit(function).trace(x, kernel)
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" in program) == has_convolution


def test_refuses_even_kernels_and_unknown_implementations():
    x, kernel = make_inputs((2, 7, 6, 3), (3, 4), np.float32)
    with pytest.raises(ValueError, match=r"odd kernel sizes, got \(3, 4\)"):
        depthwise_conv(x, kernel)
    with pytest.raises(ValueError, match="'shited' is unknown; did you mean 'shifted'"):
        depthwise_conv(x, kernel[:, :3], implementation="shited")
