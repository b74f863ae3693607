"""Functions of positions, their inputs, and what kernels and float64 make of them."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from focalnet_jax.kernels import layers, positionwise
from focalnet_jax.models.blocks import (
    BlockWeights,
    biased_norm,
    postnorm_branches,
    prenorm_branches,
)
from focalnet_jax.models.modulation import modulated, projection
from focalnet_jax.ops.gelu import gelu_and_derivative
from focalnet_jax.ops.positionwise import Layers, _apply_in_jax


def dense(inputs, outputs):
    return (inputs, outputs), (outputs,)


def split_dense(inputs, outputs):
    return (outputs, inputs), (outputs,)


def norm(channels):
    return (channels,), (channels,)


def branches(channels, *, is_post):
    weights = BlockWeights(
        norm1=norm(channels) if is_post else None,
        gamma_1=(channels,) if is_post else None,
        norm2=norm(channels),
        fc1=dense(channels, 2 * channels),
        fc2=dense(2 * channels, channels),
        gamma_2=(channels,) if is_post else None,
    )
    return 2, 2, weights


# The function, and from channels the number of its maps, that of its factors of images,
# and the shapes of its weights.
FUNCTIONS = {
    "projection": (
        projection,
        lambda c: (1, 0, [norm(c), split_dense(c, 2 * c + 3)]),
    ),
    "modulated": (
        modulated,
        lambda c: (2, 0, [dense(c, c), norm(c), dense(c, c)]),
    ),
    "biased_norm": (biased_norm, lambda c: (1, 0, ((c,), norm(c)))),
    "prenorm_branches": (prenorm_branches, lambda c: branches(c, is_post=False)),
    "postnorm_branches": (postnorm_branches, lambda c: branches(c, is_post=True)),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """Attributes: a name in `FUNCTIONS`, sizes of maps, and how they are cut."""

    function: str
    positions: int = 7
    images: int = 9
    channels: int = 12
    tile: tuple[int, int] = (4, 8)
    cores: int = 1
    dtype: str = "float32"

    @property
    def tiles(self) -> positionwise.Tiles:
        return positionwise.Tiles(*self.tile, (self.positions, self.images), self.cores)


def is_shape(value):
    return isinstance(value, tuple) and all(isinstance(size, int) for size in value)


def draw_inputs(case: Case) -> dict:
    """Arrays whose values the dtype of the case can hold."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        values = jnp.asarray(rng.normal(size=shape), case.dtype)
        return np.asarray(values, np.float64)

    function, describe = FUNCTIONS[case.function]
    maps, images, shapes = describe(case.channels)
    weights = jax.tree.map(lambda s: 0.5 * draw(*s), shapes, is_leaf=is_shape)
    shape = case.positions, case.images, case.channels
    maps = [draw(*shape) for _ in range(maps)]
    tree = (
        maps if len(maps) > 1 else maps[0],
        [draw(case.images) for _ in range(images)],
        weights,
    )
    results = jax.eval_shape(lambda tree: in_jax(function, tree), tree)
    return dict(tree=tree, cotangents=[draw(*result.shape) for result in results])


def in_jax(function: Callable, tree) -> list[jax.Array]:
    """By layers in plain JAX, for which images come first."""
    maps, images, weights = tree
    maps = jax.tree.map(lambda x: x.swapaxes(0, 1), maps)
    leaves, structure = jax.tree.flatten((maps, images, weights))
    results = _apply_in_jax(*leaves, function=function, tree=structure)
    return [result.swapaxes(0, 1) for result in results]


def in_float64(case: Case, inputs: dict) -> dict:
    """Results and cotangents; float64 has to be enabled."""
    function, _ = FUNCTIONS[case.function]
    tree = jax.tree.map(jnp.asarray, inputs["tree"])
    results, pull = jax.vjp(lambda tree: in_jax(function, tree), tree)
    [(of_maps, _, of_weights)] = pull(list(map(jnp.asarray, inputs["cotangents"])))
    of_weights = jax.tree.leaves(of_weights)
    return dict(results=results, of_maps=jax.tree.leaves(of_maps), of_weights=of_weights)


def by_kernels(case: Case, inputs: dict, kernels=positionwise, layers=layers) -> dict:
    """The same by the kernels of a module, made of the layers of another one."""
    function, _ = FUNCTIONS[case.function]
    dtype = jnp.dtype(case.dtype)
    structure = jax.tree.structure(inputs["tree"])
    maps, images, weights = map(jax.tree.leaves, inputs["tree"])
    arguments = kernels.Arguments(
        [jnp.asarray(x, dtype) for x in maps],
        [jnp.asarray(x, jnp.float32)[:, None] for x in images],
        [
            jnp.asarray(w, dtype) if w.ndim > 1 else jnp.asarray(w, jnp.float32)[None]
            for w in weights
        ],
    )
    own = Layers(
        dense=layers.dense,
        split_dense=layers.split_dense,
        layer_norm=layers.layer_norm,
        gelu=layers.activation(
            lambda x: gelu_and_derivative(x, exact=dtype == jnp.float32)
        ),
        dropout=lambda x: x,
        keep=None,
        add_branch=layers.add_branch,
    )

    def of_tiles(arguments, keep):
        leaves = [*arguments.maps, *arguments.images, *arguments.weights]
        return function(own._replace(keep=keep), *jax.tree.unflatten(structure, leaves))

    options = dict(function=of_tiles, tiles=case.tiles, vmem=1 << 24, interpret=True)
    both = kernels.forward(arguments, save=True, **options)
    cotangents = [jnp.asarray(c, dtype) for c in inputs["cotangents"]]
    results, kept = both[: len(cotangents)], both[len(cotangents) :]
    of_maps, of_weights = kernels.backward(arguments, kept, cotangents, **options)
    found = dict(results=results, of_maps=of_maps, of_weights=of_weights)
    return jax.tree.map(lambda x: np.asarray(x, np.float64), found)


def differences(given: dict, expected: dict) -> dict[str, float]:
    """By name, the largest difference over the largest value."""
    return {
        jax.tree_util.keystr(path): np.abs(a - b.reshape(a.shape)).max() / np.abs(b).max()
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(given),
            jax.tree.leaves(expected),
            strict=True,
        )
    }
