"""Operations of JAX that programs for TPUs or NVIDIA GPUs compute by a kernel.

A kernel can't be differentiated, batched or partitioned by itself. So it becomes the
lowering of a JAX primitive, beside a counterpart in plain JAX. That is what programs for
other platforms hold, and what derivatives and `jax.vmap` are made from.
"""

import functools
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from focalnet_jax.chips import Tpu, chip_of

_log = logging.getLogger("focalnet_jax")

# Interpreted kernels behave as those of a chip with that many bytes.
INTERPRETED_VMEM = 16 << 20


class OutOfReach(Exception):
    """A kernel can't compute something; the message says why."""


def chip_of_program() -> Tpu | None:
    """The kind of TPU that is traced for; None if it is none, or not known."""
    chip = chip_of(_device_of_program())
    return chip if isinstance(chip, Tpu) else None


def _device_of_program():
    """That of the mesh that is traced for, and the first device if there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return device or jax.devices()[0]


class Target(NamedTuple):
    """What kernels are made for.

    Attributes:
      platform: that programs are lowered for, `"tpu"` or `"cuda"`.
      vmem: bytes that kernels for TPUs may take.
      cores: of a TPU that share a kernel.
      interpret: kernels are interpreted, on any platform.
    """

    platform: str
    vmem: int = 0
    cores: int = 1
    interpret: bool = False


def tpu_of_program(*, interpret: bool) -> Target:
    """The target of kernels for TPUs in the program that is traced.

    Raises:
      OutOfReach: the program is for no TPU that is known.
    """
    if interpret:
        return Target("tpu", INTERPRETED_VMEM, interpret=True)
    if not (chip := chip_of_program()):
        raise OutOfReach("the program is not for a kind of TPU that is known")
    return Target("tpu", chip.vmem, chip.cores)


def gpu_of_program(*, interpret: bool) -> Target:
    """The target of kernels for NVIDIA GPUs in the program that is traced.

    Raises:
      OutOfReach: the program is for no NVIDIA GPU.
    """
    if not interpret and not _device_of_program().device_kind.startswith("NVIDIA"):
        raise OutOfReach("the program is not for an NVIDIA GPU")
    return Target("cuda", interpret=interpret)


@functools.cache
def warn_once(message: str) -> None:
    """Warns that kernels don't reach something; a net has many equal blocks."""
    _log.warning(message)


def define(
    primitive: Primitive,
    describe: Callable,
    in_jax: Callable,
    by_kernel: Mapping[str, Callable] | None = None,
) -> None:
    """Says what the results of a primitive are like, and how programs compute them.

    Args:
      primitive: is bound with the option `target`, a `Target`, and with others, which
        must be hashable.
      describe: from abstract arguments to abstract results.
      in_jax: computes the results in plain JAX.
      by_kernel: computes them by a kernel, for each platform that has one. It takes
        `target`, too.
    """
    primitive.multiple_results = True
    by_kernel = by_kernel or {}

    def plain(*arguments, target, **options):
        del target
        return in_jax(*arguments, **options)

    def lower(context, *values, platform=None, **options):
        target = options["target"]
        kernel = by_kernel.get(target.platform)
        is_for_it = platform == target.platform
        is_whole = not _is_partitioned_by_xla(context.module_context)
        fits = target.interpret or (is_for_it and is_whole)
        function = plain
        if kernel and is_for_it and not fits:
            warn_once(
                "kernels do not reach a program that XLA divides among devices: trace it "
                "inside focalnet_jax.placement.map_axes_over"
            )
        if kernel and fits:
            function = kernel
            # Over which devices an array differs matters no more; kernels can't tell.
            context = context.replace(
                avals_in=[_without_mesh(a) for a in context.avals_in],
                avals_out=[_without_mesh(a) for a in context.avals_out],
            )
        function = functools.partial(function, **options)
        return mlir.lower_fun(function, multiple_results=True)(context, *values)

    def differentiate(arguments, tangents, **options):
        tangents = map(ad.instantiate_zeros, tangents)
        function = functools.partial(plain, **options)
        return jax.jvp(function, tuple(arguments), tuple(tangents))

    def batch(arguments, axes, **options):
        warn_once("kernels do not reach what jax.vmap is applied to")
        function = functools.partial(plain, **options)
        results = jax.vmap(function, in_axes=tuple(axes))(*arguments)
        return results, [0] * len(results)

    def run(*arguments, **options):
        with jax.disable_jit(False):  # Else this would call itself.
            return _compiled(primitive, tuple(sorted(options.items())), *arguments)

    def describe_results(*arguments, target, **options):
        del target
        return [a.update(weak_type=False) for a in describe(*arguments, **options)]

    primitive.def_abstract_eval(describe_results)
    primitive.def_impl(run)
    mlir.register_lowering(primitive, lower)
    for platform in by_kernel:
        on_it = functools.partial(lower, platform=platform)
        mlir.register_lowering(primitive, on_it, platform=platform)
    ad.primitive_jvps[primitive] = differentiate
    batching.primitive_batchers[primitive] = batch


@functools.partial(jax.jit, static_argnames=("primitive", "options"))
def _compiled(primitive, options, *arguments):
    return primitive.bind(*arguments, **dict(options))


def _without_mesh(aval):
    return jax.core.ShapedArray(aval.shape, aval.dtype)


def _is_partitioned_by_xla(module_context) -> bool:
    """Whether a program runs on several devices, and XLA says which part goes where.

    It can't say so of a kernel. Inside `jax.shard_map` the program itself says it.
    """
    axes = module_context.axis_context
    if isinstance(axes, mlir.ShardingContext):
        return axes.num_devices != 1
    manual = axes.manual_axes | set(axes.mesh.manual_axes)
    return manual != frozenset(axes.mesh.axis_names)
