"""What keeps a CPU from fusing changes no number, and reaches no accelerator."""

import chex
import jax
import jax.numpy as jnp
import pytest

from focalnet_jax.ops import aggregate_context
from focalnet_jax.ops.fusion import cotangent_written_once, written_once


def with_borders(x):
    return (written_once(x * 2) * cotangent_written_once(jnp.sin(x))).sum()


def without(x):
    return (x * 2 * jnp.sin(x)).sum()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "derivative", [jax.grad, jax.hessian, jax.jacfwd, jax.vmap], ids=lambda d: d.__name__
)
def test_changes_no_number(derivative):
    x = jnp.linspace(-1, 1, 12).reshape(3, 4)
    given, expected = (jax.jit(derivative(f))(x) for f in (with_borders, without))
    # A factor of 2 and a sum of two terms: units of 1e-16.
    chex.assert_trees_all_close(given, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("platform", "count"), [("cpu", 3), ("tpu", 0), ("cuda", 0)])
def test_is_of_cpus_alone(platform, count):
    """On a CPU one border is in the forward pass, and two are in the backward pass."""
    traced = jax.jit(jax.value_and_grad(with_borders)).trace(jnp.ones((3, 4)))
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert program.count("optimization_barrier") == count


def flops_of_aggregation(levels, side=16, channels=4):
    """The operations of a compiled program, in those of its convolutions."""
    kernels = [jnp.ones((3 + 2 * k, 3 + 2 * k, 1, channels)) for k in range(levels)]
    context = jnp.ones((1, side, side, channels))
    gates = jnp.ones((1, side, side, levels + 1))
    compiled = jax.jit(aggregate_context).lower(context, gates, kernels).compile()
    taps = sum(kernel.shape[0] * kernel.shape[1] for kernel in kernels)
    return compiled.cost_analysis()["flops"] / (2 * taps * context.size)


@pytest.mark.skipif(
    jax.__version_info__ < (0, 12),
    reason="XLA removes borders before it fuses, up to jax 0.10 at least",
)
def test_cpus_compute_a_convolution_once():
    # Without borders it is 4.2, and grows with the levels. GELUs, gates and the mean add
    # a tenth to the 83 taps of three levels.
    assert 1 < flops_of_aggregation(3) < 1.2
