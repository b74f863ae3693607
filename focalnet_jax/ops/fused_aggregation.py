"""Focal contextualisation and gated aggregation by kernels, for TPUs and NVIDIA GPUs.

Those for TPUs are in `kernels/focal_aggregation.py`: one computes the operator, and one
its gradient. Those for GPUs are in `kernels/triton_aggregation.py`. Each of both has its
counterpart in plain JAX here. That is what programs for other platforms hold, and what
derivatives beyond the first, and `jax.vmap`, are made from.

The kernels do not reach every net and every chip. What they do not reach is aggregated
level by level, and a warning says why.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad

from focalnet_jax.kernels import focal_aggregation, triton_aggregation
from focalnet_jax.kernels.bands import backward_bands, forward_bands
from focalnet_jax.ops.depthwise_conv import depthwise_conv
from focalnet_jax.ops.focal_modulation import aggregate_level_by_level
from focalnet_jax.ops.gelu import (
    gelu,
    gelu_and_derivative,
    gelu_and_derivative_without_erf,
)
from focalnet_jax.ops.kernel_operation import (
    OutOfReach,
    Target,
    chip_of_program,
    define,
    gpu_of_program,
    tpu_of_program,
    warn_once,
)
from focalnet_jax.ops.varying import vary_alike
from focalnet_jax.placement import NotSplitByBatch, run_on_shards


def aggregate_where_it_suits(
    context: jax.Array, gates: jax.Array, kernels: Sequence[jax.Array], **options
) -> jax.Array:
    """Aggregates by the kernel in programs for TPUs, and level by level in others.

    It decides by the mesh that the program is traced for, and by the first device if
    there is none.
    """
    if chip_of_program():
        return fused_aggregation(context, gates, kernels, **options)
    return aggregate_level_by_level(
        context, gates, kernels, convolution="auto", **options
    )


def fused_aggregation(
    context: jax.Array,
    gates: jax.Array,
    kernels: Sequence[jax.Array],
    *,
    normalize: bool,
    biases: Sequence[jax.Array] | None = None,
    causal: bool = False,
    global_axes: Sequence[int] = (),
    valid: jax.Array | None = None,
    platform: str = "tpu",
    interpret: bool = False,
) -> jax.Array:
    """Computes `aggregate_context` by kernels.

    On a mesh each device computes its part of the batch.

    Args:
      context, gates, kernels, normalize, biases, causal, global_axes, valid: as for
        `aggregate_context`.
      platform: whose kernels they are, `"tpu"`, or `"cuda"` for NVIDIA GPUs.
      interpret: interprets the kernels. That is slow, and possible on every platform.

    Returns:
      The aggregated context, `[batch, *spatial, channels]`, in the dtype of `context`.
    """
    target_of_program = {"tpu": tpu_of_program, "cuda": gpu_of_program}[platform]
    try:
        target = target_of_program(interpret=interpret)
        if biases or causal or global_axes:
            raise OutOfReach("it has no biases, no causal form and no axes of the mean")
        if valid is not None:
            raise OutOfReach("it tells no image from the padding of its canvas")
        _check_reach(context, kernels, target)
        levels = functools.partial(_aggregate_map, target=target)
        aggregated = run_on_shards(levels, (context, gates), tuple(kernels))
    except (OutOfReach, NotSplitByBatch) as reason:
        warn_once(f"the fused operator does not reach this net: {reason}")
        return aggregate_level_by_level(
            context,
            gates,
            kernels,
            normalize=normalize,
            convolution="auto",
            biases=biases,
            causal=causal,
            global_axes=global_axes,
            valid=valid,
        )
    return aggregated / gates.shape[-1] if normalize else aggregated


def _check_reach(
    context: jax.Array, kernels: Sequence[jax.Array], target: Target
) -> None:
    """Raises `OutOfReach` for what the kernels can't compute."""
    spatial, sizes = context.shape[1:-1], [kernel.shape[:-2] for kernel in kernels]
    dtypes = (jnp.bfloat16, jnp.float32)
    if target == Target("cuda", interpret=True):
        dtypes += (jnp.float64,)  # for tests of the kernels
    if not 1 <= len(spatial) <= 2:
        raise OutOfReach(f"it takes 1 or 2 spatial axes, and maps have {len(spatial)}")
    if context.dtype not in dtypes:
        raise OutOfReach(f"it computes in bfloat16 and float32, not in {context.dtype}")
    if not all(isinstance(size, int) for size in context.shape):
        raise OutOfReach("the sizes of its maps are not known yet")
    if 0 in context.shape:
        raise OutOfReach("its maps are empty")
    if target.platform == "cuda":
        _check_reach_on_gpu(sizes)
        return
    if any(length % 2 == 0 for size in sizes for length in size):
        raise OutOfReach(f"it takes kernels of odd sizes, and these are {sizes}")
    if _bands(forward_bands, context, kernels, target.vmem) is None:
        raise OutOfReach(
            f"maps of {' x '.join(map(str, spatial))} with kernels of {sizes} take more "
            f"than the {target.vmem >> 20} MiB beside a vector unit"
        )


def _check_reach_on_gpu(sizes: Sequence[tuple[int, ...]]) -> None:
    most = triton_aggregation.MOST_ROWS_OF_KERNEL
    if not triton_aggregation.IS_THERE:
        raise OutOfReach("this version of jax has no Pallas for Triton")
    if any(len(size) == 2 and size[0] > most for size in sizes):
        raise OutOfReach(f"it takes kernels of up to {most} rows, and these are {sizes}")


# --- The operator in parts, and its derivative in plain JAX ------------------
#
# `arrays` are context, gates and kernels. What the forward pass saves for the derivative
# are the mean of the last level over space and the maps before each GELU.


def _aggregate_map(context, gates, *kernels, target: Target) -> jax.Array:
    """Aggregates on one device."""
    arrays = vary_alike(
        *map(_as_plane, (context, gates)), *map(_kernel_as_plane, kernels)
    )
    [aggregated] = _aggregate.bind(*arrays, target=target)
    return aggregated.reshape(context.shape)


def _as_plane(x: jax.Array) -> jax.Array:
    """Makes a row, `[batch, time, channels]`, a plane of height 1."""
    return x if x.ndim == 4 else x[:, None]


def _kernel_as_plane(kernel: jax.Array) -> jax.Array:
    """Does so with a kernel, `[size, 1, channels]`."""
    return kernel if kernel.ndim == 4 else kernel[None]


def _levels_in_jax(context, gates, *kernels) -> list[jax.Array]:
    """The aggregated context, and what the derivative needs."""
    aggregated, saved = jnp.zeros_like(context), []
    for level, kernel in enumerate(kernels):
        saved.append(depthwise_conv(context, kernel))
        context = gelu(saved[-1])
        aggregated += context * _gate(gates, level)
    mean = context.astype(_wide(context)).mean((1, 2), keepdims=True)
    aggregated += gelu(mean).astype(aggregated.dtype) * _gate(gates, -1)
    return [aggregated, mean, *saved]


def _gate(gates: jax.Array, level: int) -> jax.Array:
    return gates[..., level, None]


def _wide(x) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _tangent_in_jax(context, gates, *rest) -> list[jax.Array]:
    """The tangent of the result; it is linear in those of `arrays`, which come last."""
    levels = gates.shape[-1] - 1
    kernels, (mean, *saved) = rest[:levels], rest[levels : 2 * levels + 1]
    d_context, d_gates, *d_kernels = rest[2 * levels + 1 :]
    d_aggregated = jnp.zeros_like(context)
    for level in range(levels):
        before = depthwise_conv(d_context, kernels[level])
        before += depthwise_conv(context, d_kernels[level])
        context, d_context = jax.jvp(gelu, [saved[level]], [before])
        d_aggregated += d_context * _gate(gates, level)
        d_aggregated += context * _gate(d_gates, level)
    d_mean = d_context.astype(_wide(context)).mean((1, 2), keepdims=True)
    value, d_value = jax.jvp(gelu, [mean], [d_mean])
    d_aggregated += d_value.astype(context.dtype) * _gate(gates, -1)
    d_aggregated += value.astype(context.dtype) * _gate(d_gates, -1)
    return [d_aggregated]


def _cotangent_in_jax(*arguments) -> list[jax.Array]:
    """The cotangents of `arrays`. The last argument is that of the result."""
    *known, cotangent = arguments
    arrays = known[: known[1].shape[-1] + 1]
    return list(
        jax.linear_transpose(
            lambda *tangents: _tangent_in_jax(*known, *tangents), *arrays
        )([cotangent])
    )


# --- The same by the kernels for TPUs ----------------------------------------

_EXACT = functools.partial(gelu_and_derivative, exact=True)
_FOR_BFLOAT16 = functools.partial(gelu_and_derivative, exact=False)


def _activation(dtype, target: Target) -> triton_aggregation.Activation:
    if dtype == jnp.bfloat16:
        return _FOR_BFLOAT16
    is_triton = target.platform == "cuda" and dtype == jnp.float32
    return gelu_and_derivative_without_erf if is_triton else _EXACT


def _levels_on_tpu(
    context, gates, *kernels, save: bool, target: Target
) -> list[jax.Array]:
    aggregated, mean, saved = focal_aggregation.forward(
        *map(_images_third, (context, gates)),
        kernels,
        activate=_activation(context.dtype, target),
        bands=_bands(forward_bands, context, kernels, target.vmem),
        save=save,
        vmem=target.vmem,
        interpret=target.interpret,
    )
    results = aggregated, mean, *saved
    return list(map(_images_first, results if save else results[:1]))


def _cotangent_on_tpu(context, gates, *rest, target: Target) -> list[jax.Array]:
    levels = gates.shape[-1] - 1
    kernels, (mean, *saved, cotangent) = rest[:levels], rest[levels:]
    bands = _bands(backward_bands, context, kernels, target.vmem)
    if bands is None:
        warn_once(
            f"the gradient of the fused operator does not reach maps of "
            f"{context.shape[1]} x {context.shape[2]}: it takes more than the "
            f"{target.vmem >> 20} MiB beside a vector unit, so it is computed level by "
            "level"
        )
        return _cotangent_in_jax(context, gates, *rest)
    of_context, of_gates, of_kernels = focal_aggregation.backward(
        *map(_images_third, (context, gates)),
        kernels,
        list(map(_images_third, saved)),
        *map(_images_third, (mean, cotangent)),
        activate=_activation(context.dtype, target),
        bands=bands,
        vmem=target.vmem,
        interpret=target.interpret,
    )
    return [*map(_images_first, (of_context, of_gates)), *of_kernels]


def _bands(choose: Callable, context: jax.Array, kernels, vmem: int):
    height, width = _as_plane(context).shape[1:3]
    sizes = tuple(_kernel_as_plane(kernel).shape[:2] for kernel in kernels)
    return choose(height, width, sizes, itemsize=context.dtype.itemsize, vmem=vmem)


def _images_third(x: jax.Array) -> jax.Array:
    """For XLA on a TPU, this only renames the axes of a map."""
    return x.transpose(1, 2, 0, 3)


def _images_first(x: jax.Array) -> jax.Array:
    return x.transpose(2, 0, 1, 3)


# --- And by those for GPUs ---------------------------------------------------


def _levels_on_gpu(
    context, gates, *kernels, save: bool, target: Target
) -> list[jax.Array]:
    aggregated, mean, saved = triton_aggregation.forward(
        context,
        gates,
        kernels,
        activate=_activation(context.dtype, target),
        save=save,
        interpret=target.interpret,
    )
    return [aggregated, mean, *saved] if save else [aggregated]


def _cotangent_on_gpu(context, gates, *rest, target: Target) -> list[jax.Array]:
    levels = gates.shape[-1] - 1
    kernels, (mean, *saved, cotangent) = rest[:levels], rest[levels:]
    of_context, of_gates, of_kernels = triton_aggregation.backward(
        context,
        gates,
        kernels,
        saved,
        mean,
        cotangent,
        activate=_activation(context.dtype, target),
        interpret=target.interpret,
    )
    return [of_context, of_gates, *of_kernels]


# --- Four operations for JAX -------------------------------------------------
#
# The derivative of the operator in forward mode is an operation of its own, which is
# linear in the tangents. Its transpose is the kernel of the gradient. For the derivatives
# of these, JAX is given their counterparts in plain JAX. So all modes and orders exist.

_aggregate = Primitive("focal_aggregation")  # arrays -> result
_save = Primitive("focal_aggregation_saving")  # arrays -> result, *saved
_tangent = Primitive("focal_aggregation_tangent")  # arrays, saved, tangents -> tangent
_cotangent = Primitive("focal_aggregation_cotangent")  # arrays, saved, ct -> cotangents


def _differentiate(arrays, tangents, **options):
    result, *saved = _save.bind(*arrays, **options)
    tangents = map(ad.instantiate_zeros, tangents)
    return [result], _tangent.bind(*arrays, *saved, *tangents, **options)


def _transpose(cotangents, *arguments, **options):
    [cotangent] = cotangents
    levels = arguments[1].shape[-1] - 1
    known, linear = arguments[: 3 + 2 * levels], arguments[3 + 2 * levels :]
    if type(cotangent) is ad.Zero:
        return [None] * len(arguments)
    results = _cotangent.bind(*known, cotangent, **options)
    wanted = [
        result if ad.is_undefined_primal(argument) else None
        for result, argument in zip(results, linear)
    ]
    return [None] * len(known) + wanted


def _describe_saving(context, gates, *kernels):
    mean = (context.shape[0], 1, 1, context.shape[-1])
    saved = [context] * len(kernels)
    return [context, context.update(shape=mean, dtype=_wide(context)), *saved]


def _describe_cotangent(*arguments):
    return list(arguments[: arguments[1].shape[-1] + 1])


_LEVELS = {"tpu": _levels_on_tpu, "cuda": _levels_on_gpu}
_COTANGENTS = {"tpu": _cotangent_on_tpu, "cuda": _cotangent_on_gpu}


def _saving(save: bool) -> dict[str, Callable]:
    return {name: functools.partial(f, save=save) for name, f in _LEVELS.items()}


define(
    _aggregate,
    lambda context, *_: [context],
    lambda *arrays: _levels_in_jax(*arrays)[:1],
    _saving(False),
)
define(_save, _describe_saving, _levels_in_jax, _saving(True))
define(_tangent, lambda context, *_: [context], _tangent_in_jax)
define(_cotangent, _describe_cotangent, _cotangent_in_jax, _COTANGENTS)
ad.primitive_jvps[_aggregate] = _differentiate
ad.primitive_transposes[_tangent] = _transpose
