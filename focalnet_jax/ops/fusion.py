"""Where XLA's compiler for CPUs is kept from fusing.

It fuses chains of residual sums into every consumer, so that their cost grows with the
depth of a net, and a depthwise convolution into each of its several consumers, so that it
is computed as often. And it runs reductions that swallow a GELU's derivative in scalar
loops. A value that is written to memory once ends such chains. Compilers for accelerators
fuse well, so programs for them hold nothing of this.
"""

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def written_once(x: jax.Array) -> jax.Array:
    """Has a CPU write `x` to memory before it is used, and its cotangent as well."""
    return _border.bind(x, forward=True, backward=True)


def cotangent_written_once(x: jax.Array) -> jax.Array:
    """Has a CPU write the cotangent of `x` to memory before it is used."""
    return _border.bind(x, forward=False, backward=True)


# The identity. It is linear, and its transpose is itself with both directions exchanged.
_border = Primitive("fusion_border")
_border.def_impl(lambda x, **_: x)
_border.def_abstract_eval(lambda x, **_: x)
ad.deflinear(
    _border,
    lambda cotangent, *, forward, backward: [
        _border.bind(cotangent, forward=backward, backward=forward)
    ],
)
batching.defvectorized(_border)


def _on_cpu(x, *, forward, backward):
    del backward
    return jax.lax.optimization_barrier(x) if forward else x


mlir.register_lowering(_border, lambda _, x, **options: [x])
mlir.register_lowering(
    _border, mlir.lower_fun(_on_cpu, multiple_results=False), platform="cpu"
)
