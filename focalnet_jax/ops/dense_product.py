"""The matrix product of a dense layer, with a backward pass that suits the platform.

The gradient of the kernel sums over all positions of a map. JAX takes it as one product
that contracts all axes but the last. XLA's compiler for CPUs first moves those axes to
the end of the larger map, element by element. And in bfloat16 its fast product takes no
operand that is transposed. So on CPUs maps are turned into matrices here, whose rows are
positions, and transposes in bfloat16 are written to memory. Programs for accelerators
hold what JAX has by itself: a reshape could undo how a map is split.

The product can be differentiated in forward and in reverse mode, and any number of times.
"""

import functools
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec

from focalnet_jax.ops.fusion import cotangent_written_once
from focalnet_jax.ops.varying import vary_alike


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """A dense layer, `[..., c]` to `[..., d]`, in the dtype of `x`.

    Args:
      x: `[..., c]`.
      kernel, bias: `[c, d]` and `[d]`, which are cast.
    """
    product = dense_product(x, kernel.astype(x.dtype))
    return cotangent_written_once(product + bias.astype(x.dtype))


def split_dense(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, *, parts: Sequence[int]
) -> list[jax.Array]:
    """A dense layer whose result is wanted in parts, with so many channels each.

    Each part is a product of its own. So no part is cut out of a wider map, and none has
    a width that a matrix unit dislikes because of another part.
    """
    chex.assert_equal(sum(parts), kernel.shape[-1])
    ends = np.cumsum(parts)[:-1]
    # Cut before they are cast: so the parts of the gradient are joined uncast.
    kernels, biases = jnp.split(kernel, ends, axis=-1), jnp.split(bias, ends)
    return [dense(x, *part) for part in zip(kernels, biases)]


def dense_product(
    x: jax.Array, kernel: jax.Array, dimension_numbers=None, precision=None
) -> jax.Array:
    """Multiplies each position with a matrix: `[..., c]` and `[c, d]` to `[..., d]`.

    It is a `dot_general` for `flax.linen.Dense`.

    Args:
      x: `[..., c]`.
      kernel: `[c, d]`, of the same dtype.
      dimension_numbers: may say the same once more, as `nn.Dense` does.
      precision: of `jax.lax.dot_general`.

    Raises:
      ValueError: `dimension_numbers` that say something else.
    """
    if dimension_numbers not in (None, _of_positions(x)):
        raise ValueError(f"a dense layer doesn't contract {dimension_numbers}")
    return _product(precision, x, kernel)


def _of_positions(x):
    return (((x.ndim - 1,), (0,)), ((), ()))


# Its value stays JAX's own, which rematerialisation knows as a matrix product.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _product(precision, x, kernel):
    return jax.lax.dot_general(x, kernel, _of_positions(x), precision=precision)


def _product_jvp(precision, primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    y = _product(precision, x, kernel)
    options = dict(transposed=False, precision=precision)
    terms = []
    if not isinstance(dx, SymbolicZero):
        terms.append(_times.bind(*vary_alike(dx, kernel), **options))
    if not isinstance(dkernel, SymbolicZero):
        terms.append(_times.bind(*vary_alike(x, dkernel), **options))
    return y, sum(terms) if terms else jnp.zeros_like(y)


_product.defjvp(_product_jvp, symbolic_zeros=True)


# --- Two operations for JAX --------------------------------------------------
#
# Both are linear in both operands, and have each other and themselves as cotangents.

_times = Primitive("dense_times")  # x, kernel or its transpose -> y
_outer = Primitive("dense_outer")  # x, y -> the sum over positions of their products


def _kernel_of_times(y, x, _, *, transposed, precision):
    pair = (y, x) if transposed else (x, y)
    return _outer.bind(*pair, precision=precision)


ad.defbilinear(
    _times,
    lambda y, _, kernel, *, transposed, precision: _times.bind(
        y, kernel, transposed=not transposed, precision=precision
    ),
    _kernel_of_times,
)
ad.defbilinear(
    _outer,
    lambda kernel, _, y, **options: _times.bind(y, kernel, transposed=True, **options),
    lambda kernel, x, _, **options: _times.bind(x, kernel, transposed=False, **options),
)


@_times.def_abstract_eval
def _(x, kernel, *, transposed, precision):
    del precision
    axis = 0 if transposed else 1
    spec = PartitionSpec(*x.sharding.spec[:-1], kernel.sharding.spec[axis])
    sharding = x.sharding.update(spec=spec)
    shape = (*x.shape[:-1], kernel.shape[axis])
    return x.update(shape=shape, weak_type=False, sharding=sharding)


@_outer.def_abstract_eval
def _(x, y, *, precision):
    del precision
    # Of what a mesh with explicit axes splits, the channels alone are left.
    spec = PartitionSpec(x.sharding.spec[-1], y.sharding.spec[-1])
    sharding = x.sharding.update(spec=spec)
    shape = (x.shape[-1], y.shape[-1])
    return x.update(shape=shape, weak_type=False, sharding=sharding)


def _times_anywhere(x, kernel, *, transposed, precision):
    dimensions = (((x.ndim - 1,), (int(transposed),)), ((), ()))
    return jax.lax.dot_general(x, kernel, dimensions, precision=precision)


def _times_on_cpu(x, kernel, *, transposed, precision):
    if transposed and x.dtype == jnp.bfloat16 and not _is_split(kernel):
        kernel, transposed = _transposed_in_memory(kernel), False
    return _times_anywhere(x, kernel, transposed=transposed, precision=precision)


def _outer_anywhere(x, y, *, precision):
    positions = tuple(range(x.ndim - 1))
    sharding = None
    if _is_split(x, y):
        spec = PartitionSpec(*[jax.typeof(a).sharding.spec[-1] for a in (y, x)])
        sharding = jax.typeof(x).sharding.update(spec=spec)
    # The order that JAX's own rule has.
    return jax.lax.dot_general(
        y,
        x,
        ((positions, positions), ((), ())),
        precision=precision,
        out_sharding=sharding,
    ).T


def _is_split(*arrays) -> bool:
    """Whether a mesh with explicit axes splits any of them."""
    return any(any(jax.typeof(array).sharding.spec) for array in arrays)


def _outer_on_cpu(x, y, *, precision):
    if _is_split(x, y):
        return _outer_anywhere(x, y, precision=precision)
    x, y = (a.reshape(-1, a.shape[-1]) for a in (x, y))
    if x.dtype != jnp.bfloat16:
        rows = (((0,), (0,)), ((), ()))
        return jax.lax.dot_general(x, y, rows, precision=precision)
    if x.shape[-1] <= y.shape[-1]:
        return jnp.dot(_transposed_in_memory(x), y, precision=precision)
    transposed = jnp.dot(_transposed_in_memory(y), x, precision=precision)
    return jax.lax.optimization_barrier(transposed).T


def _transposed_in_memory(x: jax.Array) -> jax.Array:
    """The transpose of a matrix. A border around it alone would leave it a view."""
    flat = jax.lax.optimization_barrier(x.T.reshape(-1))
    return flat.reshape(x.shape[::-1])


def _register(primitive, anywhere, on_cpu):
    for function, platform in ((anywhere, None), (on_cpu, "cpu")):
        lowering = mlir.lower_fun(function, multiple_results=False)
        mlir.register_lowering(primitive, lowering, platform=platform)

    @functools.partial(jax.jit, static_argnames=("transposed", "precision"))
    def compiled(a, b, **options):
        return primitive.bind(a, b, **options)

    def run(a, b, **options):
        with jax.disable_jit(False):  # Else this would call itself.
            return compiled(a, b, **options)

    def batch(arrays, axes, **options):
        """The rule for `jax.vmap`: JAX's own product has batch axes."""
        return jax.vmap(functools.partial(anywhere, **options), axes)(*arrays), 0

    primitive.def_impl(run)
    batching.primitive_batchers[primitive] = batch


_register(_times, _times_anywhere, _times_on_cpu)
_register(_outer, _outer_anywhere, _outer_on_cpu)
