"""Learning rates, the weight-decay masks, and the loss."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focalnet_jax.train.losses import cross_entropy
from focalnet_jax.train.optimizer import make_optimizer, make_schedule
from focalnet_jax.train.schedule import warmup_cosine

RATES = dict(peak=1e-3, start=1e-6, final=1e-5, warmup_steps=20, total_steps=100)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("warmup_prefix", [False, True])
def test_warmup_then_cosine(warmup_prefix):
    schedule = warmup_cosine(**RATES, warmup_prefix=warmup_prefix)
    offset = 20 if warmup_prefix else 0
    for step in range(120):
        if step < 20:
            expected = 1e-6 + (1e-3 - 1e-6) * step / 20
        else:
            share = min((step - offset) / (100 - offset), 1)
            expected = 1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * share)) / 2
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-12)


def test_cosine_is_part_of_the_way_down_when_the_warmup_ends():
    assert float(warmup_cosine(**RATES)(20)) < 0.91e-3
    prefixed = warmup_cosine(**RATES, warmup_prefix=True)
    assert float(prefixed(20)) == pytest.approx(1e-3)


def test_rates_scale_with_the_batch(tiny_config):
    config = tiny_config
    config.learning_rate_batch_size = 32
    config.warmup_epochs = 1.0
    assert float(make_schedule(config, 320)(20)) < 0.5e-2  # at batch 16
    steps = make_schedule(config, 32)
    assert float(steps(0)) == pytest.approx(config.warmup_learning_rate / 2)


@pytest.mark.parametrize(("mask", "decayed"), [("nominal", True), ("none", False)])
def test_weight_decay_masks(tiny_config, mask, decayed):
    """With no gradient, what decays shrinks by the rate times the weight decay."""
    tiny_config.weight_decay_mask = mask
    optimizer = make_optimizer(tiny_config, lambda step: 0.1)
    params = {
        "dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
        "norm": {"scale": jnp.ones(3)},
        "gamma_1": jnp.ones(3),
        "focal_layers_0": {"kernel": jnp.ones((3, 3, 1, 2))},
    }
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    expected = -0.1 * tiny_config.weight_decay if decayed else 0
    for kernel in (updates["dense"]["kernel"], updates["focal_layers_0"]["kernel"]):
        np.testing.assert_allclose(kernel, expected, rtol=1e-6)
    for name in ("gamma_1", "norm"):
        assert not np.any(jax.tree.leaves(updates[name])), name
    assert not np.any(updates["dense"]["bias"])


def test_gradients_are_clipped_by_their_global_norm(tiny_config):
    tiny_config.clip_norm = 0.5
    tiny_config.adam_b1 = tiny_config.adam_b2 = 0.0
    tiny_config.adam_eps = 1.0  # so that the update shows the gradient's size
    tiny_config.weight_decay = 0.0
    optimizer = make_optimizer(tiny_config, lambda step: 1.0)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    gradients = {"a": jnp.array([2.0, 3.0]), "b": jnp.array([6.0])}  # norm 7
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    for name, gradient in gradients.items():
        clipped = gradient * 0.5 / 7
        expected = -clipped / (clipped + 1)
        np.testing.assert_allclose(updates[name], expected, rtol=1e-5)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_torchs(smoothing):
    torch = pytest.importorskip("torch", reason="the reference is torch's loss")
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(7, 5)), rng.integers(0, 5, 7)
    given = cross_entropy(jnp.array(logits), labels, label_smoothing=smoothing)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), label_smoothing=smoothing
    )
    assert float(given) == pytest.approx(float(expected), rel=1e-13)


def test_cross_entropy_of_bfloat16_is_float32():
    logits = jnp.array([[200.0, 100.0]], jnp.bfloat16)
    assert cross_entropy(logits, jnp.array([0])).dtype == jnp.float32
