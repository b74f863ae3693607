"""Layers that compute what Flax's do, from the same parameters, in another way."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from focalnet_jax.models.layers import SplitDense

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


def test_a_split_dense_layer_is_a_dense_layer_and_a_split():
    x = jnp.array(np.random.default_rng(1).normal(size=(2, 4, 3)))
    types = dict(dtype=x.dtype, param_dtype=x.dtype)
    dense, split = nn.Dense(9, **types), SplitDense(9, parts=(3, 4, 2), **types)
    params = random_params(dense, x)
    parts = split.apply(params, x)
    assert [part.shape[-1] for part in parts] == [3, 4, 2]

    def joined(params, x):
        return jnp.concatenate(split.apply(params, x), axis=-1)

    given, expected = (
        value_and_gradients(apply, params, x) for apply in (joined, dense.apply)
    )
    chex.assert_trees_all_close(given, expected, **SAME)


def test_a_split_dense_layer_begins_as_one_layer():
    x = jnp.ones((1, 3))
    same = dict(kernel_init=nn.initializers.normal(), dtype=x.dtype, param_dtype=x.dtype)
    given, expected = (
        module.init(jax.random.key(0), x)
        for module in (SplitDense(9, parts=(3, 6), **same), nn.Dense(9, **same))
    )
    chex.assert_trees_all_equal(given, expected)
