"""The implementations of the depthwise convolution agree with its definition."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from focalnet_jax.ops.depthwise_conv import CONVOLUTIONS, PADDINGS, depthwise_conv

# Sizes of a map and a kernel, with one to four spatial axes. Some kernels are larger than
# their map, some sizes differ from axis to axis, and some are even. Two kernels have so
# many entries that they are taken in blocks.
SHAPES = [
    ((2, 9, 3), (5,)),
    ((2, 7, 6, 3), (3, 5)),
    ((1, 3, 4, 5), (7, 7)),
    ((2, 3, 5, 4, 2), (3, 3, 5)),
    ((1, 2, 3, 2, 3, 2), (3, 1, 3, 3)),
    ((2, 7, 6, 3), (4, 2)),
    ((2, 9, 2), (130,)),
    ((1, 70, 2), (130,)),
    ((1, 8, 5, 2), (13, 9)),
]


def make_inputs(shape, size, dtype=np.float64):
    rng = np.random.default_rng(0)
    kernel_shape = (*size, 1, shape[-1])
    return [jnp.array(rng.normal(size=s), dtype) for s in (shape, kernel_shape)]


def by_definition(x, kernel, padding="same"):
    x, kernel = np.asarray(x), np.asarray(kernel)
    size = kernel.shape[:-2]
    margins = [((k - 1) // 2, k // 2) for k in size]
    padded = x
    if padding == "causal":
        margins[0] = (0, 0)
        first = np.repeat(x[:, :1], size[0] - 1, axis=1)
        padded = np.concatenate([first, x], axis=1)
    padded = np.pad(padded, [(0, 0), *margins, (0, 0)])
    result = np.zeros_like(x)
    for position in np.ndindex(*x.shape[1:-1]):
        for tap in np.ndindex(*size):
            source = tuple(p + t for p, t in zip(position, tap))
            result[:, *position] += padded[:, *source] * kernel[tap][0]
    return result


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("implementation", CONVOLUTIONS)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_computes_its_definition(shape, size, padding, implementation):
    x, kernel = make_inputs(shape, size)
    bias = jnp.arange(shape[-1], dtype=x.dtype)
    result = depthwise_conv(
        x, kernel, bias, padding=padding, implementation=implementation
    )
    expected = by_definition(x, kernel, padding) + np.arange(shape[-1])
    # Sums of at most 130 products of order 1: some units of 2e-16 each.
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-13)


def test_what_is_causal_does_not_see_the_future():
    x, kernel = make_inputs((1, 9, 4, 2), (5, 3), np.float32)
    before = depthwise_conv(x, kernel, padding="causal")
    after = depthwise_conv(x.at[:, 6:].add(1), kernel, padding="causal")
    np.testing.assert_array_equal(after[:, :6], before[:, :6])
    assert jnp.all(after[:, 6:] != before[:, 6:])


def loss(x, kernel, implementation):
    y = depthwise_conv(x, kernel, implementation=implementation)
    weights = np.random.default_rng(1).normal(size=y.shape)
    return (weights * y**2).sum()


def gradient(implementation):
    return jax.grad(functools.partial(loss, implementation=implementation), (0, 1))


def tangent_of_loss(x, kernel, implementation):
    function = functools.partial(loss, implementation=implementation)
    return jax.jvp(function, (x, kernel), (x + 1, 2 * kernel))[1]


def hessian_vector_product(x, kernel, implementation):
    return jax.jvp(gradient(implementation), (x, kernel), (x + 1, 2 * kernel))[1]


def reverse_over_reverse(x, kernel, implementation):
    def norm(x, kernel):
        return sum((g**2).sum() for g in gradient(implementation)(x, kernel))

    return jax.grad(norm, (0, 1))(x, kernel)


def vmapped_over_both(x, kernel, implementation):
    pairs = jnp.stack([x, 2 * x], 1), jnp.stack([kernel, kernel + 1])
    return jax.vmap(gradient(implementation), (1, 0))(*pairs)


def vmapped_over_maps(x, kernel, implementation):
    maps = jnp.stack([x, 2 * x])
    return jax.vmap(gradient(implementation), (0, None))(maps, kernel)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("implementation", [n for n in CONVOLUTIONS if n != "lax"])
@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_gradients_agree_with_those_of_lax(shape, size, implementation):
    x, kernel = make_inputs(shape, size)
    given = jax.jit(gradient(implementation))(x, kernel)
    expected = jax.jit(gradient("lax"))(x, kernel)
    # The sums over the whole map are rounded in another order.
    chex.assert_trees_all_close(given, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("implementation", [n for n in CONVOLUTIONS if n != "lax"])
@pytest.mark.parametrize(
    "derivative",
    [
        tangent_of_loss,
        hessian_vector_product,
        reverse_over_reverse,
        vmapped_over_both,
        vmapped_over_maps,
    ],
)
def test_has_derivatives_of_every_mode_and_order(derivative, implementation):
    """And under `vmap`, where one kernel serves all maps or each has its own."""
    x, kernel = make_inputs((2, 7, 6, 3), (3, 4))
    given = jax.jit(derivative, static_argnums=2)(x, kernel, implementation)
    expected = jax.jit(derivative, static_argnums=2)(x, kernel, "lax")
    # Sums over the whole map, of the squares of sums, are rounded in another order.
    chex.assert_trees_all_close(given, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("implementation", CONVOLUTIONS)
def test_gradients_under_shard_map_are_those_of_all_devices(implementation):
    """Types say where values differ between devices, and kernels are the same on all."""
    x, kernel = make_inputs((4, 6, 5, 3), (3, 4))
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    split, same = PartitionSpec("data"), PartitionSpec()

    def on_devices(x, kernel):
        def mean_loss(x, kernel):
            y = depthwise_conv(x, kernel, implementation=implementation)
            return jax.lax.pmean((y**2).mean(), "data")

        gradients = jax.grad(mean_loss, (0, 1))(x, kernel)
        tangent = jax.jvp(mean_loss, (x, kernel), (x, kernel))[1]
        return *gradients, tangent

    run = jax.shard_map(
        on_devices, mesh=mesh, in_specs=(split, same), out_specs=(split, same, same)
    )

    def whole_loss(x, kernel):
        return (depthwise_conv(x, kernel, implementation="lax") ** 2).mean()

    expected = jax.grad(whole_loss, (0, 1))(x, kernel)
    tangent = jax.jvp(whole_loss, (x, kernel), (x, kernel))[1]
    # The sums over the whole map are rounded in another order.
    chex.assert_trees_all_close(
        jax.jit(run)(x, kernel), (*expected, tangent), rtol=1e-11, atol=1e-11
    )


def test_large_kernels_make_no_large_programs():
    x, _ = make_inputs((1, 600, 2), (1,), np.float32)

    def lines(taps):
        kernel = jnp.ones((taps, 1, 2))
        grad = jax.jit(gradient("auto"))
        return grad.lower(x, kernel).as_text().count("\n")

    assert lines(512) < 2 * lines(64)


@pytest.mark.parametrize("padding", PADDINGS)
def test_what_is_out_of_reach_takes_no_memory(padding):
    """Zeros and first positions around a map are as many as the map has positions."""
    x, kernel = make_inputs((2, 8, 8, 3), (4096, 1), np.float32)
    convolve = functools.partial(depthwise_conv, padding=padding)
    compiled = jax.jit(convolve).lower(x, kernel).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2**16


def test_runs_without_jit():
    """As for a look at the values inside with a debugger."""
    x, kernel = make_inputs((2, 7, 6, 3), (3, 4), np.float32)
    expected = gradient("auto")(x, kernel)
    with jax.disable_jit():
        given = gradient("auto")(x, kernel)
    # The products are summed in another order where they are not fused.
    chex.assert_trees_all_close(given, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("implementation", CONVOLUTIONS)
@pytest.mark.parametrize("axes", [(0, None), (0, 0), (None, 0)])
def test_vmap_over_nothing(axes, implementation):
    x, kernel = make_inputs((2, 7, 6, 3), (3, 4), np.float32)
    x, kernel = (
        a if axis is None else jnp.zeros((0, *a.shape), a.dtype)
        for a, axis in zip((x, kernel), axes)
    )
    convolve = functools.partial(depthwise_conv, implementation=implementation)
    assert jax.vmap(convolve, axes)(x, kernel).shape == (0, 2, 7, 6, 3)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("implementation", CONVOLUTIONS)
def test_gradients_on_a_mesh_of_explicit_axes(implementation):
    """Where the types of arrays say how they are split."""
    x, kernel = make_inputs((4, 6, 5, 3), (3, 4))
    expected = gradient("lax")(x, kernel)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(x, PartitionSpec("data"))
        kernel = jax.device_put(kernel, PartitionSpec())
        given = jax.jit(gradient(implementation))(x, kernel)
        assert jax.typeof(given[0]).sharding.spec[0] == "data"
        assert set(jax.typeof(given[1]).sharding.spec) == {None}
    # The sums over the whole map are rounded in another order.
    chex.assert_trees_all_close(
        jax.device_get(given), jax.device_get(expected), rtol=1e-11, atol=1e-11
    )


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
        ("rocm", "auto", True),
        ("cuda", "shifted", False),
        ("cpu", "auto", False),
        ("cpu", "lax", True),
        ("tpu", "shifted", False),
    ],
)
def test_implementation_follows_the_platform_lowered_for(
    platform, implementation, has_convolution
):
    x, kernel = make_inputs((2, 7, 6, 3), (3, 5), np.float32)

    def total(x, kernel):
        return depthwise_conv(x, kernel, implementation=implementation).sum()

    for function in (total, jax.grad(total, argnums=(0, 1))):
        traced = jax.jit(function).trace(x, kernel)
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" in program) == has_convolution


def test_refuses_what_it_does_not_know():
    x, kernel = make_inputs((2, 7, 6, 3), (3, 4), np.float32)
    with pytest.raises(ValueError, match="'shited' is unknown; did you mean 'shifted'"):
        depthwise_conv(x, kernel, implementation="shited")
    with pytest.raises(ValueError, match="padding='casual' .* did you mean 'causal'"):
        depthwise_conv(x, kernel, padding="casual")
    with pytest.raises(AssertionError):
        depthwise_conv(x, kernel, jnp.ones(4))
