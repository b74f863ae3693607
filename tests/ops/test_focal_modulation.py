"""Every implementation of the aggregation agrees with its equations in PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focalnet_jax.ops import IMPLEMENTATIONS, Implementation, aggregate_context

LEVELS = 3
SIZES = [3, 5, 7]


def make_inputs(spatial, channels=4):
    rng = np.random.default_rng(0)
    context = rng.normal(size=(2, *spatial, channels))
    gates = rng.normal(size=(2, *spatial, LEVELS + 1))
    rank = len(spatial)
    kernels = [0.3 * rng.normal(size=(k,) * rank + (1, channels)) for k in SIZES]
    return context, gates, kernels


def in_torch(torch, context, gates, kernels, *, normalize):
    """The lines of the official code, which has channels first.

    Gradients flow to the arguments.
    """
    context, gates = context.permute(0, 3, 1, 2), gates.permute(0, 3, 1, 2)
    gelu = torch.nn.functional.gelu
    aggregated = 0
    for level, kernel in enumerate(kernels):
        size = kernel.shape[0]
        weight = kernel.permute(3, 2, 0, 1)
        context = torch.nn.functional.conv2d(
            context, weight, padding=size // 2, groups=weight.shape[0]
        )
        context = gelu(context)
        aggregated = aggregated + context * gates[:, level : level + 1]
    pooled = gelu(context.mean(2, keepdim=True).mean(3, keepdim=True))
    aggregated = aggregated + pooled * gates[:, LEVELS:]
    if normalize:
        aggregated = aggregated / (LEVELS + 1)
    return aggregated.permute(0, 2, 3, 1)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_equals_the_official_code(implementation, normalize):
    torch = pytest.importorskip("torch", reason="the reference is written in torch")
    inputs = make_inputs((6, 5))
    weights = np.random.default_rng(1).normal(size=inputs[0].shape)

    def loss(inputs):
        result = aggregate_context(
            *inputs, normalize=normalize, implementation=implementation
        )
        return (result * weights).sum(), result

    gradients, result = jax.grad(loss, has_aux=True)(jax.tree.map(jnp.array, inputs))

    variables = jax.tree.map(lambda a: torch.tensor(a, requires_grad=True), inputs)
    expected = in_torch(torch, *variables, normalize=normalize)
    (expected * torch.tensor(weights)).sum().backward()

    # These are sums of some hundred terms of order 1 in float64.
    np.testing.assert_allclose(result, expected.detach(), rtol=0, atol=1e-12)
    for given, variable in zip(jax.tree.leaves(gradients), jax.tree.leaves(variables)):
        np.testing.assert_allclose(given, variable.grad, rtol=0, atol=1e-11)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_images_on_canvases_get_what_they_get_alone(implementation):
    """Even if what is beside them is large."""
    context, gates, kernels = jax.tree.map(jnp.array, make_inputs((6, 5)))
    sizes = [(6, 3), (2, 5)]
    compute = functools.partial(aggregate_context, implementation=implementation)
    given = compute(context.at[1, 3:].mul(1e6), gates, kernels, valid=jnp.array(sizes))
    for image, (height, width) in enumerate(sizes):
        cut = slice(image, image + 1), slice(height), slice(width)
        expected = compute(context[cut], gates[cut], kernels)
        # As above.
        np.testing.assert_allclose(given[cut], expected, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_axes_of_length_one_change_nothing():
    """The same function on `[b, t, c]`, `[b, t, 1, c]` and `[b, 1, t, 1, c]`."""
    context, gates, kernels = make_inputs((9,))
    line = aggregate_context(jnp.array(context), gates, [jnp.array(k) for k in kernels])
    plane = aggregate_context(
        jnp.array(context[:, :, None]),
        gates[:, :, None],
        [jnp.array(k[:, None]) for k in kernels],
    )
    volume = aggregate_context(
        jnp.array(context[:, None, :, None]),
        gates[:, None, :, None],
        [jnp.array(k[None, :, None]) for k in kernels],
    )
    np.testing.assert_allclose(plane[:, :, 0], line, rtol=0, atol=1e-14)
    np.testing.assert_allclose(volume[:, 0, :, 0], line, rtol=0, atol=1e-14)


def test_an_implementation_replaces_the_whole_aggregation(monkeypatch):
    def gated_mean(context, gates, kernels, *, normalize):
        assert normalize
        return context * gates.mean(-1, keepdims=True)

    entry = Implementation(gated_mean, "Computes something else.")
    monkeypatch.setitem(IMPLEMENTATIONS, "mine", entry)
    inputs = jax.tree.map(jnp.array, make_inputs((6, 5)))
    given = aggregate_context(*inputs, normalize=True, implementation="mine")
    np.testing.assert_array_equal(given, gated_mean(*inputs, normalize=True))


def test_names_that_the_table_lacks_are_errors():
    with pytest.raises(ValueError, match="implementation='lex' .*did you mean 'lax'"):
        aggregate_context(*make_inputs((6, 5)), implementation="lex")


def test_refuses_gates_for_another_number_of_levels():
    context, gates, kernels = make_inputs((6, 5))
    with pytest.raises(AssertionError):
        aggregate_context(jnp.array(context), gates[..., :-1], kernels)
