"""One training step: what it computes by, what it draws, what it returns."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from tiny import classification, tiny_model

from focalnet_jax.tasks.images import normalize
from focalnet_jax.train.state import initial_state
from focalnet_jax.train.step import make_predict, make_train_step, moving_average

STATISTICS = dict(mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))


def make_step(seed=0, ema_decay=0.0, **options):
    model = tiny_model(num_classes=4, **dict(depths=(1, 1)) | options)
    task = classification(model, label_smoothing=0.1, **STATISTICS)
    optimizer = optax.sgd(0.1, momentum=0.9)
    init = functools.partial(
        initial_state, task, optimizer, seed=seed, ema=bool(ema_decay)
    )
    step = make_train_step(task, optimizer, ema_decay=ema_decay, seed=seed)
    return task, jax.jit(init)(), step


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    return {"image": images, "label": np.arange(6, dtype=np.int32) % 4}


def test_normalizes_by_channel(batch):
    given = normalize(batch["image"], **STATISTICS)
    expected = (batch["image"] / 255 - STATISTICS["mean"]) / STATISTICS["std"]
    assert given.dtype == jnp.float32
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-6)  # float32
    with pytest.raises(AssertionError):
        normalize(batch["image"].astype(np.float32), **STATISTICS)


def test_bfloat16_computes_on_float32_parameters(batch):
    """What is kept from step to step is float32; the losses differ by rounding."""
    losses = []
    for dtype in ("float32", "bfloat16"):
        task, state, step = make_step(dtype=dtype)
        assert task.model.encoder.dtype == dtype
        step = jax.jit(step)
        for _ in range(3):
            state, metrics = step(state, batch)
        chex.assert_type(jax.tree.leaves(state.params), jnp.float32)
        moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
        chex.assert_type(moments, jnp.float32)
        chex.assert_type([*metrics.values()], jnp.float32)
        losses.append(metrics["loss"].item())
    assert losses[0] != losses[1]
    # 8 bits of mantissa, through two blocks.
    assert losses[1] == pytest.approx(losses[0], rel=2**-7)


@pytest.mark.parametrize(("platform", "has_convolution"), [("tpu", True), ("cpu", False)])
def test_step_for_a_tpu_holds_the_depthwise_convolution(batch, platform, has_convolution):
    """Compiled ahead of time, on a machine whose own devices are CPUs."""
    _, state, step = make_step()
    traced = jax.jit(step).trace(state, batch)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("feature_group_count = 8 " in program) == has_convolution
    assert "stablehlo.convolution" in program  # the stem is one everywhere


def test_randomness_follows_from_seed_and_step(batch):
    _, state, step = make_step(drop_path_rate=0.5, drop_rate=0.5)
    step = jax.jit(step)
    first, _ = step(state, batch)
    again, metrics = step(state, batch)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again)):
        np.testing.assert_array_equal(a, b)
    later = jax.tree.map(jnp.copy, state)
    later = type(state)(later.step + 1, later.params, later.opt_state)
    assert step(later, batch)[1]["loss"] != metrics["loss"]
    _, _, other = make_step(seed=1, drop_path_rate=0.5, drop_rate=0.5)
    assert jax.jit(other)(state, batch)[1]["loss"] != metrics["loss"]


def test_step_descends_the_smoothed_loss(batch):
    task, state, step = make_step()
    next_state, metrics = jax.jit(step)(state, batch)
    assert int(next_state.step) == 1

    def loss(params):
        logits = make_predict(task)({"params": params}, batch)
        targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], 4), 0.1)
        return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()

    expected, gradients = jax.jit(jax.value_and_grad(loss))(state.params)
    # float32, sums in another order.
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    squares = sum((g**2).sum() for g in jax.tree.leaves(gradients))
    np.testing.assert_allclose(metrics["gradient_norm"], jnp.sqrt(squares), rtol=1e-4)
    for new, old, gradient in zip(
        *map(jax.tree.leaves, (next_state.params, state.params, gradients))
    ):
        np.testing.assert_allclose(new, old - 0.1 * gradient, rtol=0, atol=1e-5)
    norm = jnp.sqrt(sum((p**2).sum() for p in jax.tree.leaves(next_state.params)))
    np.testing.assert_allclose(metrics["weight_norm"], norm, rtol=1e-5)


class Normed(nn.Module):
    """An operator with running averages."""

    @nn.compact
    def __call__(self, x, *, train):
        return nn.BatchNorm(use_running_average=not train)(x), {}


def test_operators_may_have_running_averages(batch):
    """Those of training are used in evaluation."""
    task, state, step = make_step(modulation=Normed)
    before = make_predict(task)(state.variables, batch)
    after, _ = jax.jit(step)(state, batch)
    means = [leaf for leaf in jax.tree.leaves(after.batch_stats) if leaf.ndim]
    assert len(means) == 2 * 2  # mean and variance, in two blocks
    assert all(
        np.any(new != old) for new, old in zip(means, jax.tree.leaves(state.batch_stats))
    )
    variables = {"params": state.params, "batch_stats": after.batch_stats}
    assert np.any(make_predict(task)(variables, batch) != before)


def test_average_forgets_faster_in_the_beginning(batch):
    """By 1/10, 2/11, 3/12 ... until the decay that was asked for."""
    _, state, step = make_step(ema_decay=0.2)
    step = jax.jit(step)
    average = state.params
    for decay in (1 / 10, 2 / 11, 0.2, 0.2):
        state, _ = step(state, batch)
        average = jax.tree.map(
            lambda old, new, decay=decay: decay * old + (1 - decay) * new,
            average,
            state.params,
        )
        chex.assert_trees_all_close(state.ema_params, average, rtol=1e-6, atol=1e-7)
    assert make_step()[1].ema_params is None


def test_counts_have_no_average():
    """Such as that of the batches which BatchNorm has taken in."""
    old, new = (
        {"mean": jnp.float32(value), "count": jnp.int32(value)} for value in (0, 10)
    )
    average = moving_average(old, new, jnp.int32(1000), decay=0.75)
    assert average == {"mean": 2.5, "count": 10}
    assert average["count"].dtype == jnp.int32


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_steps_that_are_not_finite_change_nothing(batch, value):
    _, state, step = make_step(ema_decay=0.9)
    step = jax.jit(step)
    state, _ = step(state, batch)
    bias = state.params["head"]["bias"].at[1].set(value)
    params = state.params | {"head": state.params["head"] | {"bias": bias}}
    broken = dataclasses.replace(state, params=params)
    after, metrics = step(broken, batch)
    assert not np.isfinite(metrics["loss"])
    chex.assert_trees_all_equal(after, dataclasses.replace(broken, step=state.step + 1))
    # And the next good one is a step like any other.
    healed = dataclasses.replace(after, params=state.params)
    after, metrics = step(healed, batch)
    assert np.isfinite(metrics["weight_norm"])
    assert int(after.step) == 3
    assert (after.params["head"]["bias"] != state.params["head"]["bias"]).all()
