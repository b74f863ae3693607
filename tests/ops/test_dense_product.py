"""The product of a dense layer and its derivatives are those of `jnp.dot`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from focalnet_jax.ops.dense_product import dense_product


def make_inputs(leading=(4, 3, 2), channels=(5, 6), dtype=np.float64):
    rng = np.random.default_rng(0)
    shapes = [(*leading, channels[0]), channels, (*leading, channels[1])]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def total(product):
    """A function of both operands whose third derivatives are not zero."""
    return lambda x, kernel, weights: (jnp.sin(product(x, kernel)) * weights).sum()


def forward_over_reverse(function):
    gradient = jax.grad(function, argnums=(0, 1))

    def derivative(x, kernel, weights):
        tangents = [jnp.cos(x), jnp.cos(kernel), jnp.cos(weights)]
        return jax.jvp(gradient, (x, kernel, weights), tuple(tangents))

    return derivative


def reverse_over_reverse(function):
    gradient = jax.grad(function, argnums=(0, 1))

    def squares(*inputs):
        return sum((g**2).sum() for g in gradient(*inputs))

    return jax.grad(squares, argnums=(0, 1, 2))


DERIVATIVES = {
    "value": lambda f: f,
    "of both": lambda f: jax.grad(f, argnums=(0, 1)),
    "of the map": jax.grad,
    "of the kernel": lambda f: jax.grad(f, argnums=1),
    "forward": lambda f: jax.jacfwd(f, argnums=(0, 1)),
    "forward over reverse": forward_over_reverse,
    "reverse over reverse": reverse_over_reverse,
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("leading", [(), (7,), (4, 3, 2)], ids=str)
@pytest.mark.parametrize("derivative", DERIVATIVES.values(), ids=DERIVATIVES)
def test_has_derivatives_of_every_mode_and_order(derivative, leading):
    inputs = make_inputs(leading)
    given, expected = (
        jax.jit(derivative(total(product)))(*inputs)
        for product in (dense_product, jnp.dot)
    )
    # Sums of at most 24 terms around 1, in another order: some units of 1e-16.
    chex.assert_trees_all_close(given, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("axes", [(0, 0, 0), (0, None, 0), (None, 1, None)], ids=str)
def test_vmap_of_gradients(axes):
    inputs = [
        jnp.stack([array, 2 * array, 3 * array], axis) if axis is not None else array
        for array, axis in zip(make_inputs(), axes)
    ]
    given, expected = (
        jax.vmap(jax.grad(total(product), argnums=(0, 1)), axes)(*inputs)
        for product in (dense_product, jnp.dot)
    )
    chex.assert_trees_all_close(given, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels", [(5, 6), (6, 5)], ids=str)
def test_gradients_in_bfloat16(channels):
    x, kernel, weights = make_inputs(channels=channels, dtype=jnp.bfloat16)
    _, pull = jax.vjp(dense_product, x, kernel)
    given = pull(weights)
    wide = [array.astype(jnp.float32) for array in (x, kernel, weights)]
    expected = jax.vjp(jnp.dot, *wide[:2])[1](wide[2])
    assert [g.dtype for g in given] == [jnp.bfloat16] * 2
    # bfloat16 keeps 8 bits: half a unit is 2**-9 of the value, and the sums are in
    # float32.
    given = jax.tree.map(lambda g: g.astype(jnp.float32), given)
    chex.assert_trees_all_close(given, expected, rtol=2**-8, atol=1e-4)


@pytest.mark.usefixtures("float64")
def test_gradients_under_shard_map_are_those_of_all_devices():
    x, kernel, weights = make_inputs()
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = PartitionSpec("data"), PartitionSpec()

    def gradient(product):
        return jax.grad(total(product), argnums=(0, 1))

    run = jax.shard_map(
        gradient(dense_product),
        mesh=mesh,
        in_specs=(split, whole, split),
        out_specs=(split, whole),
    )
    given = jax.jit(run)(x, kernel, weights)
    expected = gradient(jnp.dot)(x, kernel, weights)
    chex.assert_trees_all_close(
        jax.device_get(given), jax.device_get(expected), rtol=1e-12, atol=1e-12
    )


@pytest.mark.usefixtures("float64")
def test_gradients_on_a_mesh_of_explicit_axes():
    """Where the types of arrays say how they are split."""
    inputs = make_inputs()

    def gradient(product):
        return jax.grad(total(product), argnums=(0, 1))

    expected = gradient(jnp.dot)(*inputs)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        specs = [PartitionSpec("data"), PartitionSpec(), PartitionSpec("data")]
        inputs = [jax.device_put(a, spec) for a, spec in zip(inputs, specs)]
        given = jax.jit(gradient(dense_product))(*inputs)
        assert jax.typeof(given[0]).sharding.spec[0] == "data"
        assert set(jax.typeof(given[1]).sharding.spec) == {None}
    chex.assert_trees_all_close(
        jax.device_get(given), jax.device_get(expected), rtol=1e-12, atol=1e-12
    )


def test_runs_without_jit():
    x, kernel, weights = make_inputs(dtype=np.float32)
    with jax.disable_jit():
        given = jax.grad(total(dense_product), argnums=1)(x, kernel, weights)
    expected = jax.grad(total(jnp.dot), argnums=1)(x, kernel, weights)
    # Sums of 24 terms around 1 in float32.
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)


def test_rematerialisation_knows_it():
    """The policy "dots" keeps the results of products, and finds two here."""
    x, kernel, _ = make_inputs(channels=(5, 5), dtype=np.float32)
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable

    @jax.jit
    def gradient(kernel):
        def chain(kernel):
            return jnp.sin(dense_product(jnp.sin(dense_product(x, kernel)), kernel)).sum()

        return jax.grad(jax.checkpoint(chain, policy=policy))(kernel)

    program = gradient.trace(kernel).lower(lowering_platforms=("tpu",)).as_text()
    # Forward two; backward one of the inner map, and two of the kernel.
    assert program.count("stablehlo.dot_general") == 5


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_programs_for_accelerators_are_those_of_jax(dtype):
    inputs = make_inputs(dtype=dtype)

    def program(product, platform):
        def gradients(x, kernel, weights):
            return jax.vjp(product, x, kernel)[1](weights)

        lowered = jax.jit(gradients).trace(*inputs).lower(lowering_platforms=(platform,))
        return lowered.as_text()

    def operations(text):
        return sorted(
            line.split("=")[1].split()[0]
            for line in text.splitlines()
            if " = stablehlo." in line
        )

    def plain(x, kernel):
        return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))

    for platform in ("tpu", "cuda"):
        given, expected = (program(p, platform) for p in (dense_product, plain))
        assert operations(given) == operations(expected)
    assert operations(program(dense_product, "cpu")) != operations(expected)


def test_refuses_other_contractions():
    x, kernel, _ = make_inputs(dtype=np.float32)
    with pytest.raises(ValueError, match="contract"):
        dense_product(x, kernel, (((0,), (0,)), ((), ())))
