"""A small model to convert, and weights for it."""

import functools

import jax
import numpy as np
from tiny import tiny_model

from focalnet_jax.convert.dialects import DIALECTS
from focalnet_jax.models import abstract_params
from focalnet_jax.trees import named_leaves

small = functools.partial(tiny_model, focal_windows=(3, 5))


def assert_same_trees(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def shapes_of(model):
    leaves = named_leaves(abstract_params(model))
    return {path: leaf.shape for path, leaf in leaves.items()}


def zeros(model, dialect="microsoft", shapes=None):
    """A state dict of the model's shapes that takes no memory."""
    table, use_postln = DIALECTS[dialect], model.encoder.use_postln
    shapes = shapes or shapes_of(model)
    return {
        table.key_of(path, use_postln=use_postln): np.broadcast_to(
            np.float32(0), table.to_torch(path, np.broadcast_to(0, shape)).shape
        )
        for path, shape in shapes.items()
    }
