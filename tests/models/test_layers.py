"""Layers that compute what Flax's do, from the same parameters, in another way."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from focalnet_jax.models.layers import Dense, LayerNorm
from focalnet_jax.ops.dense_product import split_dense

pytestmark = pytest.mark.usefixtures("float64")

# Products of some tens of numbers, added up in another order.
SAME = dict(rtol=1e-12, atol=1e-12)


def random_params(module, x):
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return tree.unflatten([jnp.array(rng.normal(size=leaf.shape)) for leaf in leaves])


def value_and_gradients(apply, params, x):
    def loss(params, x):
        y = apply(params, x)
        return (jnp.sin(y) ** 2).sum(), y

    gradients, y = jax.grad(loss, (0, 1), has_aux=True)(params, x)
    return y, gradients


@pytest.mark.parametrize(
    ("ours", "flax"),
    [(Dense(9), nn.Dense(9)), (LayerNorm(), nn.LayerNorm(epsilon=1e-5))],
    ids=["dense", "layer norm"],
)
def test_a_layer_is_that_of_flax(ours, flax):
    x = jnp.array(np.random.default_rng(1).normal(size=(2, 4, 3)))
    ours, flax = (m.clone(dtype=x.dtype, param_dtype=x.dtype) for m in (ours, flax))
    params = random_params(flax, x)
    given, expected = (
        value_and_gradients(module.apply, params, x) for module in (ours, flax)
    )
    chex.assert_trees_all_close(given, expected, **SAME)


def test_a_split_dense_layer_is_a_dense_layer_and_a_split():
    x = jnp.array(np.random.default_rng(1).normal(size=(2, 4, 3)))
    module = Dense(9, dtype=x.dtype, param_dtype=x.dtype)
    params = random_params(module, x)

    def joined(params, x):
        parts = split_dense(x, **params["params"], parts=(3, 4, 2))
        assert [part.shape[-1] for part in parts] == [3, 4, 2]
        return jnp.concatenate(parts, axis=-1)

    given, expected = (
        value_and_gradients(apply, params, x) for apply in (joined, module.apply)
    )
    chex.assert_trees_all_close(given, expected, **SAME)
