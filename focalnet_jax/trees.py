"""Nested dicts of arrays, and their leaves by name."""

from collections.abc import Callable
from typing import Any

import jax

PyTree = Any


def name_of(path: tuple[Any, ...]) -> str:
    """The name of a leaf by its path in JAX's terms: `layers_0/blocks_0/norm1/scale`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by name, in the order in which JAX walks it."""
    return {
        name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def map_named(function: Callable[..., Any], tree: PyTree, *others: PyTree) -> PyTree:
    """As `jax.tree.map`, of a function that takes a leaf's name first."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(name_of(path), *leaves), tree, *others
    )


def nested(named: dict[str, Any]) -> dict[str, Any]:
    """The nested dict whose leaves have these names: undoes `named_leaves` of one."""
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = leaf
    return tree
