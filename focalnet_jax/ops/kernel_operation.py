"""Operations of JAX that programs for TPUs compute by a kernel.

A kernel can't be differentiated, batched or partitioned by itself. So it becomes the
lowering of a JAX primitive, beside a counterpart in plain JAX. That is what programs for
other platforms hold, and what derivatives and `jax.vmap` are made from.
"""

import functools
import logging
from collections.abc import Callable
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
    """The kind of TPU that is traced for; None if it is none, or not known.

    It is that of the mesh that the program is traced for, and that of the first device if
    there is none.
    """
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    chip = chip_of(device or jax.devices()[0])
    return chip if isinstance(chip, Tpu) else None


class Target(NamedTuple):
    """What kernels are made for.

    Attributes:
      vmem: bytes that a kernel may take.
      cores: that share a kernel.
      interpret: kernels are interpreted, on any platform.
    """

    vmem: int
    cores: int = 1
    interpret: bool = False


def target_of_program(*, interpret: bool) -> Target:
    """The target of kernels in the program that is traced.

    Raises:
      OutOfReach: the program is for no TPU that is known.
    """
    if interpret:
        return Target(INTERPRETED_VMEM, interpret=True)
    if not (chip := chip_of_program()):
        raise OutOfReach("the program is not for a kind of TPU that is known")
    return Target(chip.vmem, chip.cores)


@functools.cache
def warn_once(message: str) -> None:
    """Warns that kernels don't reach something; a net has many equal blocks."""
    _log.warning(message)


def define(
    primitive: Primitive,
    describe: Callable,
    in_jax: Callable,
    by_kernel: Callable | None = None,
) -> None:
    """Says what the results of a primitive are like, and how programs compute them.

    Args:
      primitive: is bound with the option `target`, a `Target`, and with others, which
        must be hashable.
      describe: from abstract arguments to abstract results.
      in_jax: computes the results in plain JAX.
      by_kernel: computes them by a kernel. It takes `target`, too.
    """
    primitive.multiple_results = True

    def plain(*arguments, target, **options):
        del target
        return in_jax(*arguments, **options)

    def lower(context, *values, on_tpu=False, **options):
        is_whole = not _is_partitioned_by_xla(context.module_context)
        fits = options["target"].interpret or (on_tpu and is_whole)
        function = plain
        if by_kernel and on_tpu and not fits:
            warn_once(
                "kernels do not reach a program that XLA divides among devices: trace it "
                "inside focalnet_jax.placement.map_axes_over"
            )
        if by_kernel and fits:
            function = by_kernel
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
    on_tpu = functools.partial(lower, on_tpu=True)
    mlir.register_lowering(primitive, on_tpu, platform="tpu")
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
