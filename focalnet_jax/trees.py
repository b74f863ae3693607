"""Nested dicts of arrays, and the names of their leaves."""

from collections.abc import Callable
from typing import Any

import jax
from flax import traverse_util

PyTree = Any


def name_of(path: tuple[Any, ...]) -> str:
    """Makes a name such as `layers_0/blocks_0/norm1/scale` of a path in JAX's terms."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by name, in the order in which JAX walks the tree."""
    return {
        name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def map_named(function: Callable[..., Any], tree: PyTree, *others: PyTree) -> PyTree:
    """Works as `jax.tree.map`, but `function` takes the leaf's name before the leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(name_of(path), *leaves), tree, *others
    )


def nested(named: dict[str, Any]) -> dict[str, Any]:
    """Makes a nested dict of leaves by name; the inverse of `named_leaves` for dicts."""
    return traverse_util.unflatten_dict(named, sep="/")
