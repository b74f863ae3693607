"""Learning rates, the weight-decay masks, and the loss."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from focalnet_jax import create_model
from focalnet_jax.errors import SetupError
from focalnet_jax.models import abstract_params
from focalnet_jax.tasks.losses import cross_entropy
from focalnet_jax.train import check_config, train
from focalnet_jax.train.optimizer import make_optimizer, make_schedule, rate_factors
from focalnet_jax.train.schedule import warmup_cosine, warmup_poly
from focalnet_jax.trees import named_leaves, nested

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


def mmcv_rate(step, *, power, least=0.0, warmup=1500):
    """What `PolyLrUpdaterHook` of mmcv 1.x sets, per iteration, with a linear warmup."""
    rate = (6e-5 - least) * (1 - step / 160_000) ** power + least
    if step >= warmup:
        return rate
    k = (1 - step / warmup) * (1 - 1e-6)
    return rate * (1 - k)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("power", "least"), [(1.0, 0.0), (0.9, 1e-6)])
def test_poly_is_mmcvs(power, least):
    schedule = warmup_poly(
        peak=6e-5,
        start=6e-11,
        final=least,
        power=power,
        warmup_steps=1500,
        total_steps=160_000,
    )
    for step in (0, 1, 2, 749, 1499, 1500, 1501, 80_000, 159_999, 160_000):
        expected = mmcv_rate(step, power=power, least=least)
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-12, abs=1e-18)
    assert float(schedule(170_000)) == pytest.approx(least, abs=1e-18)


@pytest.mark.usefixtures("float64")
def test_poly_without_warmup_and_after_it():
    numbers = dict(peak=1.0, start=0.1, final=0.0, power=1.0, total_steps=10)
    schedule = warmup_poly(**numbers, warmup_steps=0)
    assert [float(schedule(i)) for i in (0, 5, 10)] == [1, 0.5, 0]
    schedule = warmup_poly(**numbers, warmup_steps=5, warmup_prefix=True)
    assert [float(schedule(i)) for i in (0, 5, 10)] == pytest.approx([0.1, 1, 0])


def test_the_configuration_chooses_the_schedule(tiny_config):
    config = tiny_config
    config.schedule, config.schedule_power = "poly", 1.0
    config.learning_rate_batch_size = 0
    config.learning_rate, config.warmup_learning_rate = 6e-5, 6e-11
    config.final_learning_rate = 0.0
    config.num_steps, config.warmup_steps = 160_000, 1500
    rate = make_schedule(config, 10**9)
    # In float32: the step over the run's length is rounded once, to 6e-8.
    for step in (0, 1000, 1500, 100_000):
        expected = mmcv_rate(step, power=1.0)
        assert float(rate(step)) == pytest.approx(expected, rel=1e-6)


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
    optimizer = make_optimizer(tiny_config, lambda step: 0.1, depth_of=len)
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


@pytest.mark.usefixtures("float64")
def test_steps_with_exceptions_from_decay_are_torchs(tiny_config):
    """Norms are exempt by a pattern, and all else decays: mmsegmentation's recipe."""
    torch = pytest.importorskip("torch", reason="the reference is torch's AdamW")
    config = tiny_config
    config.schedule, config.warmup_learning_rate = "poly", 6e-8
    config.learning_rate, config.final_learning_rate = 6e-2, 0.0
    config.learning_rate_batch_size = 0
    config.num_steps, config.warmup_steps = 20, 5
    config.weight_decay, config.clip_norm = 0.1, 0.0
    config.weight_decay_mask, config.no_weight_decay = "all", (".*norm",)
    config, _ = check_config(config)
    rng = np.random.default_rng(0)
    shapes = {"layers_0/norm1/scale": (3,), "norm0/bias": (3,), "head/kernel": (3, 2)}
    shapes |= {"decode_head/bn/scale": (2,), "decode_head/bn/bias": (2,)}
    values = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    theirs = {
        name: torch.nn.Parameter(torch.tensor(value)) for name, value in values.items()
    }
    optimizer = torch.optim.AdamW(
        [
            {"params": [value], "weight_decay": 0.0 if "norm" in name else 0.1}
            for name, value in theirs.items()
        ]
    )

    def rate(step):
        return 6e-2 * (1 - step / 20) * (1 - max(1 - step / 5, 0) * (1 - 1e-6))

    ours = nested({name: jnp.array(value) for name, value in values.items()})
    schedule = make_schedule(config, 1000)
    transformation = make_optimizer(config, schedule, depth_of=len)
    state = transformation.init(ours)
    for step in range(8):
        gradients = {name: rng.normal(size=shape) for name, shape in shapes.items()}
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        for name, gradient in gradients.items():
            theirs[name].grad = torch.tensor(gradient)
        optimizer.step()
        gradients = nested({name: jnp.array(g) for name, g in gradients.items()})
        updates, state = transformation.update(gradients, state, ours)
        ours = optax.apply_updates(ours, updates)
    for name, value in named_leaves(ours).items():
        # A step is an int32, so rates are float32: 6e-8 of a change of 0.06 in each step.
        np.testing.assert_allclose(value, theirs[name].detach(), atol=3e-8)


def test_exceptions_from_decay_may_name_what_is_frozen(tiny_config, params):
    tiny_config.frozen = ("norm", "layers_", "patch_embed")
    tiny_config.no_weight_decay = (".*norm",)
    given, _ = updates_of(tiny_config, params)
    tiny_config.no_weight_decay = ()
    chex.assert_trees_all_equal(given, updates_of(tiny_config, params)[0])


def test_gradients_are_clipped_by_their_global_norm(tiny_config):
    tiny_config.clip_norm = 0.5
    tiny_config.adam_b1 = tiny_config.adam_b2 = 0.0
    tiny_config.adam_eps = 1.0  # so that the update shows the gradient's size
    tiny_config.weight_decay = 0.0
    optimizer = make_optimizer(tiny_config, lambda step: 1.0, depth_of=len)
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
    given = cross_entropy(jnp.array(logits), labels, label_smoothing=smoothing).mean()
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), label_smoothing=smoothing
    )
    assert float(given) == pytest.approx(float(expected), rel=1e-13)


def test_cross_entropy_of_bfloat16_is_float32():
    logits = jnp.array([[200.0, 100.0]], jnp.bfloat16)
    assert cross_entropy(logits, jnp.array([0])).dtype == jnp.float32


MODEL = create_model(
    "focalnet_tiny_srf",
    num_classes=3,
    depths=(2, 1),
    embed_dim=4,
    focal_levels=(1, 1),
    focal_windows=(3, 3),
)
depth_of = MODEL.encoder.depth_of


@pytest.fixture(scope="module")
def params():
    """Ones, of two stages with two blocks and one."""
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape), abstract_params(MODEL))


def test_rates_decay_from_the_head_down(params):
    """As timm's `param_groups_layer_decay` groups the layers of a hierarchical net."""
    factors = rate_factors(params, 0.5, (), depth_of=depth_of)
    assert set(jax.tree.leaves(factors["patch_embed"])) == {0.5**4}
    assert set(jax.tree.leaves(factors["layers_0"]["blocks_0"])) == {0.5**3}
    assert set(jax.tree.leaves(factors["layers_0"]["blocks_1"])) == {0.5**2}
    assert set(jax.tree.leaves(factors["layers_0"]["downsample"])) == {0.5**2}
    assert set(jax.tree.leaves(factors["layers_1"]["blocks_0"])) == {0.5}
    assert set(jax.tree.leaves([factors["norm"], factors["head"]])) == {1.0}


def test_factors_come_on_top_of_the_decay(params):
    factors = (("head", 10.0), ("layers_0/blocks_1/mlp", 3.0), ("layers_", 2.0))
    given = rate_factors(params, 0.5, factors, depth_of=depth_of)
    assert set(jax.tree.leaves(given["head"])) == {10.0}
    assert set(jax.tree.leaves(given["layers_0"]["blocks_1"]["mlp"])) == {6 * 0.25}
    assert set(jax.tree.leaves(given["layers_1"])) == {2 * 0.5}
    assert set(jax.tree.leaves(given["norm"])) == {1.0}


def test_mistakes_are_found_before_anything_is_written(tiny_config, tmp_path):
    tiny_config.learning_rate_factors = (("hed", 2.0),)
    with pytest.raises(SetupError, match="begins with 'hed'; did you mean 'head"):
        train(*check_config(tiny_config), epath.Path(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_decay_needs_depths(params):
    with pytest.raises(SetupError, match="layer_decay=0.5 has no effect"):
        rate_factors(params, 0.5, (), depth_of=lambda name: 3)


def updates_of(config, params):
    config, _ = check_config(config)
    optimizer = make_optimizer(config, lambda step: 0.1, depth_of=depth_of)
    gradients = jax.tree.map(lambda leaf: 0.01 * jnp.ones_like(leaf), params)
    state = jax.jit(optimizer.init)(params)
    return jax.jit(optimizer.update)(gradients, state, params)[0], state


def test_updates_and_weight_decay_are_scaled_together(tiny_config, params):
    expected, _ = updates_of(tiny_config, params)
    tiny_config.layer_decay = 0.5
    given, _ = updates_of(tiny_config, params)
    factors = rate_factors(params, 0.5, (), depth_of=depth_of)
    chex.assert_trees_all_close(
        given, jax.tree.map(jnp.multiply, expected, factors), rtol=1e-6
    )


def test_what_is_frozen_stays_and_has_no_part_in_the_norm(tiny_config, params):
    tiny_config.clip_norm = 1e-3
    tiny_config.weight_decay = 0.0
    tiny_config.adam_eps = 1.0  # so that updates tell the size of gradients
    tiny_config.frozen = ("patch_embed", r"layers_\d")
    given, state = updates_of(tiny_config, params)
    head = {name: params[name] for name in ("head", "norm")}
    tiny_config.frozen = ()
    alone, _ = updates_of(tiny_config, head)
    chex.assert_trees_all_close({name: given[name] for name in head}, alone, rtol=1e-6)
    del given["head"], given["norm"]
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(given))
    # Two moments for what is trained, and none for the rest.
    sizes = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert sizes == 2 * sum(leaf.size for leaf in jax.tree.leaves(head))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("frozen", ("patch_embde",), "begins with 'patch_embde'; did you mean 'patch_e"),
        ("frozen", ("qqqqq",), "'qqqqq', such as 'head/bias'"),
        (
            "no_weight_decay",
            ("nrm",),
            "no_weight_decay: no parameter's name begins with 'nrm'; did you mean 'norm'",
        ),
        ("frozen", ("(",), "holds '\\(', which is no regular expression"),
        (
            "learning_rate_factors",
            (("hed", 2.0),),
            "begins with 'hed'; did you mean 'head",
        ),
        ("learning_rate_factors", (("head",),), "not a pair of a reg"),
    ],
)
def test_patterns_that_match_nothing_are_errors(
    tiny_config, params, field, value, message
):
    tiny_config[field] = value
    with pytest.raises(SetupError, match=message):
        updates_of(tiny_config, params)
