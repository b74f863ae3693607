"""Functions of single positions, by one kernel on TPUs.

A block is two things: focal aggregation, which gathers from other positions, and layers
that each position goes through by itself. Such layers are written here as one function,

    def mlp(layers, maps, images, weights):
        [x] = maps
        return [layers.dense(layers.gelu(layers.dense(x, *weights.fc1)), *weights.fc2)]

and `positionwise(mlp, ...)` computes it: by one kernel for it all in programs for TPUs,
and layer by layer in others. The kernel of the gradient is derived from the function.

A map that others need, too, should be a result as well: `return [x, ...]`. No kernel
writes it again. But that of the gradient then adds up all that comes back to it, which
would else take another pass over three maps.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad

from focalnet_jax.kernels import layers as kernel_layers
from focalnet_jax.kernels import positionwise as kernels
from focalnet_jax.ops.dense_product import dense, split_dense
from focalnet_jax.ops.fusion import written_once
from focalnet_jax.ops.gelu import gelu, gelu_and_derivative
from focalnet_jax.ops.kernel_operation import (
    OutOfReach,
    Target,
    chip_of_program,
    define,
    tpu_of_program,
    warn_once,
)
from focalnet_jax.ops.layer_norm import layer_norm
from focalnet_jax.ops.varying import vary_alike
from focalnet_jax.placement import NotSplitByBatch, run_on_shards

PyTree = Any


class Layers(NamedTuple):
    """What a function of positions is made of. Weights come as they are stored.

    Attributes:
      dense: from `x`, a kernel and a bias.
      split_dense: the same in parts; the keyword `parts` says how wide they are. Its
        kernel is given transposed, `[d, c]`. On a TPU, XLA stores a kernel of odd width
        like that, because it takes less memory. So no program has to transpose it.
      layer_norm: from `x`, scales and biases.
      gelu: of `x`.
      dropout: of `x`.
      keep: `x` itself; no backward pass by a kernel computes it again.
      add_branch: from `x` and a branch, `x + scale * keep * branch`; `scale`, of the
        channels, and `keep`, of the images, are keywords and may be None.
    """

    dense: Callable[..., jax.Array]
    split_dense: Callable[..., list[jax.Array]]
    layer_norm: Callable[..., jax.Array]
    gelu: Callable[[jax.Array], jax.Array]
    dropout: Callable[[jax.Array], jax.Array]
    keep: Callable[[jax.Array], jax.Array]
    add_branch: Callable[..., jax.Array]


# From layers, maps, factors of images, and weights to maps.
Function = Callable[[Layers, PyTree, PyTree, PyTree], Sequence[jax.Array]]


def positionwise(
    function: Function,
    maps: PyTree,
    weights: PyTree,
    *,
    images: PyTree = (),
    dtype: Any,
    implementation: str = "auto",
    dropout: Callable[[jax.Array], jax.Array] | None = None,
) -> list[jax.Array]:
    """Computes a function of single positions.

    Args:
      function: has a name, and is the same object each time, so that equal blocks share
        a kernel.
      maps: arrays of `[batch, *spatial, channels]` in a tree that the function knows.
      weights: kernels, `[c, d]` or for `split_dense` `[d, c]`, and vectors, `[c]`.
      images: a factor for each image, `[batch]`.
      dtype: of the results. Plain JAX computes in it between layers, and kernels in
        float32.
      implementation: as for `aggregate_context`. `"lax"` and `"shifted"` compute layer by
        layer, `"fused"` by a kernel, and `"interpreted"` by one that runs anywhere. All
        others compute by a kernel in programs that are traced for TPUs.
      dropout: for a function that calls `layers.dropout`; no kernel has it.

    Returns:
      The maps that the function returns. One that it was given is as it was given.
    """
    dtype = jnp.dtype(dtype)
    layers = _layers_of(dtype)
    interpret = implementation == "interpreted"
    is_wanted = interpret or implementation == "fused" or chip_of_program() is not None
    if implementation not in ("lax", "shifted") and is_wanted:
        try:
            if dropout is not None:
                raise OutOfReach("they have no dropout")
            return _by_kernel(function, maps, images, weights, dtype, interpret)
        except (OutOfReach, NotSplitByBatch) as reason:
            warn_once(f"kernels of positions do not reach this net: {reason}")
    if dropout is not None:
        layers = layers._replace(dropout=dropout)
    given = list(map(id, jax.tree.leaves(maps)))
    results = function(layers, maps, images, weights)
    return [x if id(x) in given else x.astype(dtype) for x in results]


@functools.cache
def _layers_of(dtype: jnp.dtype) -> Layers:
    """Layers in plain JAX, for maps of `[batch, *spatial, channels]`."""

    def add_branch(x, y, *, scale=None, keep=None):
        if scale is not None:
            y = y * scale.astype(dtype)
        if keep is not None:
            keep = keep.reshape(-1, *(1,) * (y.ndim - 1))
            kept = y * keep.astype(jnp.promote_types(dtype, jnp.float32))
            # What is dropped is 0 even where it isn't finite.
            y = jnp.where(keep == 0, 0, kept).astype(dtype)
        return written_once(x + y)

    return Layers(
        dense=lambda x, *weights: dense(x.astype(dtype), *weights),
        split_dense=lambda x, kernel, bias, parts: split_dense(
            x.astype(dtype), kernel.T, bias, parts=parts
        ),
        layer_norm=lambda x, *weights: layer_norm(x.astype(dtype), *weights),
        gelu=gelu,
        dropout=_identity,
        keep=_identity,
        add_branch=add_branch,
    )


# --- By kernels --------------------------------------------------------------
#
# Primitives take maps, factors of images and weights as one list of arrays; `tree` says
# how it is divided.


def _by_kernel(function, maps, images, weights, dtype, interpret) -> list[jax.Array]:
    """Raises `OutOfReach` or `NotSplitByBatch` for what kernels can't compute."""
    shapes = [array.shape for array in jax.tree.leaves(maps)]
    kinds = {str(array.dtype) for array in jax.tree.leaves(maps)}
    if dtype not in (jnp.bfloat16, jnp.float32):
        raise OutOfReach(f"they compute in bfloat16 or float32, not in {dtype}")
    if kinds != {str(dtype)}:
        kinds = " and ".join(sorted(kinds))
        raise OutOfReach(f"they compute in {dtype}, and their maps are {kinds}")
    if not all(isinstance(size, int) for shape in shapes for size in shape):
        raise OutOfReach("the sizes of their maps are not known yet")
    if 0 in shapes[0]:
        raise OutOfReach("their maps are empty")
    # JAX declares its options from 0.12 on.
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    if dtype == jnp.float32 and precision:
        raise OutOfReach("a precision of matrix products is asked for")
    target = tpu_of_program(interpret=interpret)

    def apply(maps, images, weights):
        leaves, tree = jax.tree.flatten((maps, images, weights))
        if _tiles(function, tree, leaves, target=target, backward=False) is None:
            raise OutOfReach(f"the weights don't fit into {target.vmem >> 20} MiB")
        options = dict(function=function, tree=tree, target=target)
        return _apply.bind(*vary_alike(*leaves), **options)

    return run_on_shards(apply, (maps, images), (weights,))


def _identity(x: jax.Array) -> jax.Array:
    return x


def _cast(maps: Sequence[jax.Array], dtype: jnp.dtype) -> list[jax.Array]:
    return [x.astype(dtype) for x in maps]


def _apply_in_jax(*leaves, function, tree, keep=_identity) -> list[jax.Array]:
    maps, images, weights = jax.tree.unflatten(tree, leaves)
    [dtype] = {array.dtype for array in jax.tree.leaves(maps)}
    layers = _layers_of(dtype)._replace(keep=keep)
    return _cast(function(layers, maps, images, weights), dtype)


def _save_in_jax(*leaves, function, tree) -> list[jax.Array]:
    """The results, and what the function keeps."""
    kept = []

    def keep(x):
        kept.append(x)
        return x

    results = _apply_in_jax(*leaves, function=function, tree=tree, keep=keep)
    return results + _cast(kept, results[0].dtype)


def _tangent_in_jax(*leaves, function, tree, kept, varied) -> list[jax.Array]:
    """The tangents of the results, from those of the arguments with these numbers."""
    known, tangents = leaves[: tree.num_leaves], leaves[tree.num_leaves + kept :]
    apply = functools.partial(_apply_in_jax, function=function, tree=tree)
    return jax.jvp(_of_some(apply, known, varied), _chosen(known, varied), tangents)[1]


def _cotangent_in_jax(*leaves, function, tree, kept, varied) -> list[jax.Array]:
    """The cotangents of the arguments with these numbers, from those of the results."""
    known, cotangents = leaves[: tree.num_leaves], leaves[tree.num_leaves + kept :]
    apply = functools.partial(_apply_in_jax, function=function, tree=tree)
    _, pull = jax.vjp(_of_some(apply, known, varied), *_chosen(known, varied))
    return list(pull(list(cotangents)))


def _chosen(leaves, numbers) -> tuple:
    return tuple(leaves[number] for number in numbers)


def _of_some(function, leaves, numbers):
    """The function of the leaves with these numbers; the others are as they are."""

    def of_some(*values):
        own = dict(zip(numbers, values, strict=True))
        return function(*[own.get(n, leaf) for n, leaf in enumerate(leaves)])

    return of_some


def _apply_by_kernel(
    *leaves, function, tree, target, save: bool = False
) -> list[jax.Array]:
    tiles = _tiles(function, tree, leaves, target=target, backward=False)
    arguments = _arguments(tree, leaves)
    sources = _sources(function, tree, leaves)
    computed = tuple(n for n, source in enumerate(sources) if source is None)
    results = kernels.forward(
        arguments,
        function=_of_tiles(function, tree, arguments.maps[0].dtype, computed),
        tiles=tiles,
        save=save,
        vmem=target.vmem,
        interpret=target.interpret,
    )
    results = iter([_as_images(result, leaves[0].shape) for result in results])
    own = [next(results) if source is None else leaves[source] for source in sources]
    return [*own, *results]


def _sources(function, tree, leaves) -> list[int | None]:
    """For each result, the number of the argument that it is; None if it is computed."""
    apply = functools.partial(_apply_in_jax, function=function, tree=tree)
    program = jax.make_jaxpr(apply)(*map(_described, leaves)).jaxpr
    numbers: dict[Any, int] = {v: number for number, v in enumerate(program.invars)}
    return [numbers.get(v) for v in program.outvars]


def _cotangent_by_kernel(
    *leaves, function, tree, kept, varied, target
) -> list[jax.Array]:
    known, rest = leaves[: tree.num_leaves], leaves[tree.num_leaves :]
    tiles = _tiles(function, tree, known, target=target, backward=True)
    arguments = _arguments(tree, known)
    count, others = len(arguments.maps), len(arguments.images)
    of_images = range(count, count + others)
    if tiles is None or set(of_images) & set(varied):
        if tiles is None:
            warn_once(
                f"the gradient of {function.__name__} is not computed by a kernel: its "
                f"weights and their gradients don't fit into {target.vmem >> 20} MiB"
            )
        options = dict(function=function, tree=tree, kept=kept, varied=varied)
        return _cotangent_in_jax(*leaves, **options)
    of_maps, of_weights = kernels.backward(
        arguments,
        list(map(_as_positions, rest[:kept])),
        list(map(_as_positions, rest[kept:])),
        function=_of_tiles(function, tree, arguments.maps[0].dtype),
        tiles=tiles,
        vmem=target.vmem,
        interpret=target.interpret,
    )
    of_maps = [_as_images(of_map, known[0].shape) for of_map in of_maps]
    results = [*of_maps, *[None] * others, *of_weights]
    return [
        result.reshape(leaf.shape).astype(leaf.dtype)
        for result, leaf in zip(_chosen(results, varied), _chosen(known, varied))
    ]


def _tiles(function, tree, leaves, *, target: Target, backward: bool):
    shapes = list(map(_described, leaves))
    arguments = jax.eval_shape(functools.partial(_arguments, tree), shapes)
    return kernels.choose_tiles(
        _of_tiles(function, tree, arguments.maps[0].dtype),
        arguments,
        vmem=target.vmem,
        cores=target.cores if backward else 1,
        backward=backward,
    )


def _arguments(tree, leaves) -> kernels.Arguments:
    """The arguments of a kernel. Matrices are cast here, once for all tiles."""
    maps, images, weights = map(jax.tree.leaves, jax.tree.unflatten(tree, leaves))
    return kernels.Arguments(
        [_as_positions(array) for array in maps],
        [factor.astype(jnp.float32)[:, None] for factor in images],
        [
            w.astype(maps[0].dtype) if w.ndim == 2 else w.astype(jnp.float32)[None]
            for w in weights
        ],
    )


def _described(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


@functools.cache  # Equal blocks then share a kernel.
def _of_tiles(function, tree, dtype, numbers=None) -> kernels.Function:
    """The function of a kernel, with the results that have these numbers, or all."""
    layers = _layers_of_kernels(dtype)

    @functools.wraps(function)
    def of_tiles(arguments: kernels.Arguments, keep):
        leaves = [*arguments.maps, *arguments.images, *arguments.weights]
        own = layers._replace(keep=keep)
        results = function(own, *jax.tree.unflatten(tree, leaves))
        return results if numbers is None else _chosen(results, numbers)

    return of_tiles


@functools.cache
def _layers_of_kernels(dtype) -> Layers:
    both = functools.partial(gelu_and_derivative, exact=dtype != jnp.bfloat16)
    return Layers(
        dense=kernel_layers.dense,
        split_dense=kernel_layers.split_dense,
        layer_norm=kernel_layers.layer_norm,
        gelu=kernel_layers.activation(both),
        dropout=_identity,
        keep=_identity,
        add_branch=kernel_layers.add_branch,
    )


def _as_positions(x: jax.Array) -> jax.Array:
    """`[batch, *spatial, c]` to `[positions, batch, c]`; free for XLA on a TPU."""
    x = jnp.moveaxis(x, 0, -2)
    return x.reshape(-1, *x.shape[-2:])


def _as_images(x: jax.Array, shape: Sequence[int]) -> jax.Array:
    """The way back; `shape` is that of any map."""
    x = x.reshape(*shape[1:-1], shape[0], x.shape[-1])
    return jnp.moveaxis(x, -2, 0)


# --- Four operations for JAX ------------------------------------------------
#
# As those of the fused operator: the derivative in forward mode is linear in the
# tangents, and its transpose is the kernel of the gradient.

_apply = Primitive("positionwise")  # arrays -> results
_save = Primitive("positionwise_saving")  # arrays -> results, kept
_tangent = Primitive("positionwise_tangent")  # arrays, kept, tangents -> tangents
_cotangent = Primitive("positionwise_cotangent")  # arrays, kept, cotangents -> cotangents


def _differentiate(arrays, tangents, **options):
    count = len(_sources(options["function"], options["tree"], arrays))
    results = _save.bind(*arrays, **options)
    results, kept = results[:count], results[count:]
    varied = tuple(n for n, t in enumerate(tangents) if type(t) is not ad.Zero)
    options |= {"kept": len(kept), "varied": varied}
    tangents = _chosen(tangents, varied)
    return results, _tangent.bind(*arrays, *kept, *tangents, **options)


def _transpose(cotangents, *leaves, varied, **options):
    count = len(leaves) - len(varied)
    known, linear = leaves[:count], leaves[count:]
    if all(type(cotangent) is ad.Zero for cotangent in cotangents):
        return [None] * len(leaves)
    cotangents = map(ad.instantiate_zeros, cotangents)
    results = _cotangent.bind(*known, *cotangents, varied=varied, **options)
    wanted = [
        result if ad.is_undefined_primal(argument) else None
        for result, argument in zip(results, linear, strict=True)
    ]
    return [None] * len(known) + wanted


def _describe(compute, *leaves, function, tree, **_):
    """Describes what a function in plain JAX returns."""
    arrays = leaves[: tree.num_leaves]
    results = jax.eval_shape(
        functools.partial(compute, function=function, tree=tree),
        *map(_described, arrays),
    )
    return [arrays[0].update(shape=r.shape, dtype=r.dtype) for r in results]


def _describe_cotangent(*leaves, varied, **_):
    return list(_chosen(leaves, varied))


_describe_results = functools.partial(_describe, _apply_in_jax)
define(_apply, _describe_results, _apply_in_jax, {"tpu": _apply_by_kernel})
define(
    _save,
    functools.partial(_describe, _save_in_jax),
    _save_in_jax,
    {"tpu": functools.partial(_apply_by_kernel, save=True)},
)
define(_tangent, _describe_results, _tangent_in_jax)
define(_cotangent, _describe_cotangent, _cotangent_in_jax, {"tpu": _cotangent_by_kernel})
ad.primitive_jvps[_apply] = _differentiate
ad.primitive_transposes[_tangent] = _transpose
