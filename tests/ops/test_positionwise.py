"""Functions of positions: derivatives of all kinds, meshes, and what isn't reached."""

import functools
import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from traced import mesh_of, program_of

from focalnet_jax.ops import kernel_operation
from focalnet_jax.ops.positionwise import positionwise
from focalnet_jax.placement import map_axes_over

# Sums of some tens of terms of order 1 in float32, taken in another order.
CLOSE = dict(rtol=1e-5, atol=1e-5)


def mlp_branch(layers, x, keep, weights):
    """All layers, and a result that is the map itself."""
    scale, norm, fc1, fc2 = weights
    y = layers.keep(layers.dense(layers.layer_norm(x, *norm), *fc1))
    y, rest = layers.split_dense(layers.gelu(y), *fc2, parts=(x.shape[-1], 2))
    return [x, layers.add_branch(x, y, scale=scale, keep=keep), rest]


def make_inputs(spatial=(4, 2), batch=2, channels=3, hidden=5, dtype=jnp.float32):
    rng = np.random.default_rng(0)

    def draw(*shape, dtype=jnp.float32):
        return jnp.asarray(rng.normal(size=shape), dtype)

    weights = (
        draw(channels),
        (draw(channels), draw(channels)),
        (draw(channels, hidden), draw(hidden)),
        (draw(channels + 2, hidden), draw(channels + 2)),
    )
    return draw(batch, *spatial, channels, dtype=dtype), draw(batch), weights


def compute(implementation, x, keep, weights):
    return positionwise(
        mlp_branch,
        x,
        weights,
        images=keep,
        dtype=x.dtype,
        implementation=implementation,
    )


def squares_of(name):
    def squares(*inputs):
        return sum(jnp.sum(jnp.square(y)) for y in compute(name, *inputs))

    return squares


def directional(f):
    """The derivative along the inputs themselves."""
    return lambda *inputs: jax.jvp(f, inputs, inputs)


TRANSFORMS = {
    "value": lambda name: functools.partial(compute, name),
    "reverse": lambda name: jax.grad(squares_of(name), (0, 2)),
    "factors of images, too": lambda name: jax.grad(squares_of(name), (0, 1, 2)),
    "weights alone": lambda name: jax.grad(squares_of(name), 2),
    "one result alone": lambda name: jax.grad(
        lambda *inputs: jnp.sum(compute(name, *inputs)[2] ** 3), (0, 2)
    ),
    "forward": lambda name: directional(functools.partial(compute, name)),
    "forward over reverse": lambda name: directional(jax.grad(squares_of(name), (0, 2))),
    "reverse over reverse": lambda name: jax.grad(
        lambda *inputs: sum(
            jnp.sum(jnp.square(leaf))
            for leaf in jax.tree.leaves(jax.grad(squares_of(name), (0, 2))(*inputs))
        ),
        (0, 2),
    ),
    "checkpoint": lambda name: jax.grad(jax.checkpoint(squares_of(name)), (0, 2)),
    "vmap": lambda name: (
        lambda x, keep, weights: jax.vmap(
            jax.grad(squares_of(name), (0, 2)), (0, 0, None)
        )(x[:, None], keep[:, None], weights)
    ),
}


@pytest.mark.parametrize("spatial", [(4, 2), (5,), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_all_derivatives_are_those_of_layers(transform, spatial):
    inputs = make_inputs(spatial)
    given, expected = (
        jax.jit(TRANSFORMS[transform](name))(*inputs) for name in ("interpreted", "lax")
    )
    chex.assert_trees_all_close(given, expected, **CLOSE)


@pytest.mark.parametrize("implementation", ["interpreted", "lax"])
def test_a_function_may_have_no_weights_and_compute_in_another_dtype(implementation):
    """The results, what is kept and the gradients are of the dtype of the maps."""
    x = jnp.linspace(-2, 2, 24, dtype=jnp.bfloat16).reshape(2, 4, 3)

    def squares(layers, x, images, weights):
        return [layers.keep(jnp.square(x.astype(jnp.float32)))]

    def compute(x):
        options = dict(dtype=x.dtype, implementation=implementation)
        [y] = positionwise(squares, x, (), **options)
        return y

    result, pull = jax.vjp(compute, x)
    chex.assert_trees_all_equal(result, jnp.square(x))
    chex.assert_trees_all_equal(pull(jnp.ones_like(x)), (2 * x,))


def test_jit_can_be_disabled():
    inputs = make_inputs()
    with jax.disable_jit():
        given = compute("interpreted", *inputs)
    chex.assert_trees_all_close(given, compute("lax", *inputs), **CLOSE)


def test_dropout_is_not_computed_by_kernels():
    inputs = make_inputs()

    def drop_all(layers, x, keep, weights):
        return [layers.dropout(y) for y in mlp_branch(layers, x, keep, weights)]

    options = dict(images=inputs[1], dtype=jnp.float32, implementation="interpreted")
    given = positionwise(
        drop_all, inputs[0], inputs[2], dropout=jnp.zeros_like, **options
    )
    chex.assert_trees_all_equal(given, list(map(jnp.zeros_like, given)))


# --- On several devices ------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "reaches"), [((8,), True), ((2, 4), False), ((1, 2), False)], ids=str
)
def test_each_device_computes_its_part_of_the_batch(shape, reaches, caplog):
    kernel_operation.warn_once.cache_clear()
    mesh = mesh_of(*shape)
    axes = {"batch": "data", "height": "spatial"} if len(shape) > 1 else {"batch": "data"}
    inputs = make_inputs(batch=8)
    split = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())

    @functools.partial(jax.jit, in_shardings=(split, split, whole))
    def gradients(*inputs):
        with map_axes_over(mesh, axes):
            return jax.value_and_grad(squares_of("interpreted"), (0, 2))(*inputs)

    expected = jax.value_and_grad(squares_of("lax"), (0, 2))(*inputs)
    chex.assert_trees_all_close(gradients(*inputs), expected, **CLOSE)
    assert ("devices share the maps of an image" in caplog.text) == (not reaches)


def test_inside_shard_map_gradients_of_weights_are_summed():
    inputs = make_inputs(batch=4)
    part, whole = PartitionSpec("data"), PartitionSpec()

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=mesh_of(4),
        in_specs=(part, part, whole),
        out_specs=(part, whole),
    )
    def gradients(*inputs):
        return jax.grad(squares_of("interpreted"), (0, 2))(*inputs)

    expected = jax.grad(squares_of("lax"), (0, 2))(*inputs)
    chex.assert_trees_all_close(gradients(*inputs), expected, **CLOSE)


# --- Which program holds the kernels -----------------------------------------


def text_for(platform, implementation="auto", chip=None, **kwargs):
    """The program of a gradient."""
    gradient = jax.grad(squares_of(implementation), (0, 2))
    inputs = make_inputs(dtype=jnp.bfloat16, **kwargs)
    return program_of(gradient, *inputs, platform=platform, chip=chip)


def test_auto_takes_the_kernels_in_programs_for_tpus():
    assert text_for("tpu", chip="TPU v5 lite").count("tpu_custom_call") == 2
    assert "tpu_custom_call" not in text_for("tpu", "lax", chip="TPU v5 lite")
    assert "tpu_custom_call" not in text_for("cpu", chip="TPU v5 lite")
    assert "tpu_custom_call" not in text_for("cpu")


@pytest.mark.parametrize(
    ("hidden", "calls", "said"),
    [
        (2048, 2, ""),
        (4096, 1, "the gradient of mlp_branch is not computed by a kernel"),
        (16384, 0, "the weights don't fit into 16 MiB"),
    ],
)
def test_weights_that_do_not_fit_are_said(hidden, calls, said, caplog):
    kernel_operation.warn_once.cache_clear()
    text = text_for("tpu", "fused", "TPU v4", channels=256, hidden=hidden)
    assert text.count("tpu_custom_call") == calls
    assert said in caplog.text
    assert bool(caplog.text) == bool(said)


def test_dtypes_that_are_not_reached_are_said(caplog):
    kernel_operation.warn_once.cache_clear()
    inputs = make_inputs(dtype=jnp.float16)
    with caplog.at_level(logging.WARNING):
        given = compute("interpreted", *inputs)
    assert "bfloat16 or float32, not in float16" in caplog.text
    chex.assert_trees_all_equal(given, compute("lax", *inputs))


@pytest.mark.parametrize("implementation", ["interpreted", "lax"])
def test_a_branch_that_is_dropped_may_be_infinite(implementation):
    def add(layers, maps, keep, weights):
        return [layers.add_branch(*maps, keep=keep)]

    x = jnp.ones((2, 3, 4))
    y = x.at[0].set(jnp.inf)
    [given] = positionwise(
        add,
        (x, y),
        (),
        images=jnp.array([0.0, 2.0]),
        dtype=x.dtype,
        implementation=implementation,
    )
    np.testing.assert_array_equal(given, x.at[1].set(3))


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (jnp.ones((0, 3, 4)), "their maps are empty"),
        (jnp.ones((2, 3, 4), jnp.bfloat16), "they compute in float32"),
    ],
)
def test_maps_that_are_not_reached_are_said(x, said, caplog):
    kernel_operation.warn_once.cache_clear()
    [given] = positionwise(
        lambda layers, x, images, weights: [layers.gelu(x)],
        x,
        (),
        dtype=jnp.float32,
        implementation="interpreted",
    )
    assert given.shape == x.shape
    assert said in caplog.text


def test_a_precision_that_is_asked_for_is_kept(caplog):
    kernel_operation.warn_once.cache_clear()
    with jax.default_matmul_precision("highest"):
        compute("interpreted", *make_inputs())
    assert "a precision of matrix products is asked for" in caplog.text
