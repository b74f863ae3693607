"""Another operator in the place of focal modulation, in each way that there is."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny import random_images, random_params, tiny_backbone, tiny_model

from focalnet_jax import count_multiply_adds, count_params
from focalnet_jax.models import MODULATIONS, FocalModulation, abstract_params
from focalnet_jax.ops import aggregate_context


class Pool(nn.Module):
    """A module of its own: it has few options, and returns no outputs."""

    focal_window: int
    scale: float = 1.0

    @nn.compact
    def __call__(self, x, *, train):
        window = (self.focal_window,) * (x.ndim - 2)
        y = nn.avg_pool(x, window, padding="SAME")
        return nn.Dense(x.shape[-1], name="out")(self.scale * y), {}


class WithoutGlobalLevel(FocalModulation):
    """Focal modulation in which one step is changed."""

    def aggregate(self, context, gates, kernels):
        gates = gates.at[..., -1].set(0)
        return aggregate_context(context, gates, kernels)


def outputs_of(model, params=None):
    params = random_params(model, "float32") if params is None else params
    return jax.jit(model.apply)({"params": params}, random_images())


@pytest.mark.parametrize("options", [{}, {"remat": "full"}, {"scan": True}])
def test_a_module_of_its_own_is_an_operator(options):
    model = tiny_model(modulation=Pool, **options)
    params = random_params(model, "float32")
    assert params["layers_0"]["blocks_0"]["modulation"].keys() == {"out"}
    logits, outputs = outputs_of(model, params)
    expected, _ = outputs_of(tiny_model(modulation=Pool), params)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)  # float32
    assert "stage1/block1" in outputs
    assert not any(name.endswith(("gates", "modulator")) for name in outputs)
    gradients = jax.grad(lambda params: outputs_of(model, params)[0].sum())(params)
    assert jnp.any(gradients["layers_0"]["blocks_0"]["modulation"]["out"]["kernel"])


def test_what_a_partial_sets_stays():
    operator = functools.partial(FocalModulation, focal_window=7, param_dtype="float16")
    params = abstract_params(tiny_model(modulation=operator))
    kernel = params["layers_1"]["blocks_0"]["modulation"]["focal_layers_0"]["kernel"]
    assert (kernel.shape, kernel.dtype) == ((7, 7, 1, 16), jnp.float16)


def test_a_factory_that_takes_everything_gets_everything():
    """And each option has the value of the stage."""
    given = []

    def make(name, **options):
        given.append(options)
        return FocalModulation(name=name, **options)

    model = tiny_model(modulation=make, focal_windows=(3, 5), dtype="bfloat16")
    logits, _ = outputs_of(model)
    assert logits.dtype == jnp.bfloat16
    assert {(o["focal_level"], o["focal_window"]) for o in given} == {(2, 3), (1, 5)}
    assert given[0].keys() == {
        *("focal_level", "focal_window", "focal_factor", "normalize_modulator"),
        *("use_depthwise_bias", "causal", "causal_window", "global_axes"),
        *("use_postln_in_modulation", "drop_rate", "implementation"),
        *("dtype", "param_dtype"),
    }


def test_a_subclass_changes_one_step():
    changed = tiny_model(modulation=WithoutGlobalLevel)
    params = random_params(tiny_model(), "float32")
    _, outputs = outputs_of(changed, params)
    _, before = outputs_of(tiny_model(), params)
    name = "stage0/block0/modulator"
    assert not np.allclose(outputs[name], before[name])
    # Without the weights that make the last gate, the two are the same.
    for stage in ("layers_0", "layers_1"):
        for block in params[stage].values():
            if "modulation" in block:
                f = block["modulation"]["f"]
                f["kernel"][:, -1], f["bias"][-1] = 0, 0
    _, outputs = outputs_of(changed, params)
    _, before = outputs_of(tiny_model(), params)
    np.testing.assert_array_equal(outputs[name], before[name])


def test_operators_have_names(monkeypatch):
    monkeypatch.setitem(MODULATIONS, "pool", Pool)
    by_name, by_class = tiny_model(modulation="pool"), tiny_model(modulation=Pool)
    given, expected = outputs_of(by_name), outputs_of(by_class)
    np.testing.assert_array_equal(given[0], expected[0])


@pytest.mark.parametrize(
    ("modulation", "message"),
    [
        ("focla", "modulation='focla' is unknown; did you mean 'focal'"),
        (3, "modulation=3 is unknown"),
        (FocalModulation(focal_level=2, focal_window=3), "modulation=FocalModulation"),
    ],
)
def test_what_makes_no_operator_is_an_error(modulation, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(modulation=modulation)


def test_options_that_an_operator_lacks_are_errors():
    with pytest.raises(
        ValueError, match="causal=True has no effect on modulation=.*Pool"
    ):
        tiny_model(modulation=Pool, causal=True)
    assert tiny_model(modulation=WithoutGlobalLevel, causal=True).encoder.causal


def test_whether_it_is_focal_modulation():
    assert tiny_model().encoder.has_focal_modulation
    assert tiny_model(modulation=FocalModulation).encoder.has_focal_modulation
    assert not tiny_model(modulation=Pool).encoder.has_focal_modulation
    assert not tiny_model(modulation=WithoutGlobalLevel).encoder.has_focal_modulation


def test_a_backbone_takes_operators_too():
    backbone = tiny_backbone(modulation=Pool)
    params = random_params(backbone, "float32")
    maps = backbone.apply({"params": params}, random_images())
    assert [x.shape for x in maps] == [(2, 8, 10, 8), (2, 4, 5, 16)]


def test_size_with_another_operator():
    options = dict(depths=(1,), focal_levels=(1,), focal_windows=(3,), num_classes=0)
    model = tiny_model(modulation=Pool, **options)
    norms, mlp, operator = 4 * 8 * 2, 8 * 32 + 32 + 32 * 8 + 8, 8 * 8 + 8
    assert count_params(model) == (4 * 4 * 3 * 8 + 8) + norms + mlp + operator
    # At 8 x 8 pixels the maps have 2 x 2 positions.
    per_position = 4 * 4 * 3 * 8 + 2 * 8 * 32 + 8 * 8 + 4 * 8
    assert count_multiply_adds(model, 8) == 4 * per_position


def test_another_aggregation_is_given_kernels_that_it_can_compute_with():
    class OfOneLevel(FocalModulation):
        def aggregate(self, context, gates, kernels):
            chex.assert_type([context, gates, *kernels], jnp.bfloat16)
            return context * kernels[0].sum((0, 1))

    operator = OfOneLevel(focal_level=1, focal_window=3, dtype=jnp.bfloat16)
    (y, _), _ = operator.init_with_output(
        jax.random.key(0), jnp.ones((1, 4, 4, 3)), train=False
    )
    chex.assert_type(y, jnp.bfloat16)
