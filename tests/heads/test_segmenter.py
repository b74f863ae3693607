"""Segmenters: their sizes, names, initial values and options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focalnet_jax import count_params, create_model, create_segmenter
from focalnet_jax.errors import OptionError
from focalnet_jax.heads import FCNHead, UPerNetHead
from focalnet_jax.models import abstract_params
from focalnet_jax.trees import named_leaves

TINY = dict(depths=(1, 1), embed_dim=8, focal_levels=(2, 1), focal_windows=(3, 3))
SMALL = TINY | dict(num_classes=5, head_channels=8, auxiliary_channels=6)

# Millions of parameters: README of microsoft/FocalNet has 61, 61, 83, 84, 124 and 126,
# of which the second is cut off.
SIZES = {
    "tiny_srf": 60.82,
    "tiny_lrf": 61.57,
    "small_srf": 83.06,
    "small_lrf": 84.59,
    "base_srf": 123.68,
    "base_lrf": 125.73,
}


@pytest.mark.parametrize(("variant", "millions"), SIZES.items())
def test_published_sizes(variant, millions):
    model = create_segmenter(f"focalnet_{variant}", focal_windows=(9, 9, 9, 9))
    assert count_params(model) / 1e6 == pytest.approx(millions, abs=0.005)


def test_encoder_and_norms_have_the_names_of_others():
    """Those of a classifier, so that a segmenter can start from it."""
    own = named_leaves(abstract_params(create_segmenter("focalnet_tiny_srf", **SMALL)))
    classifier = named_leaves(abstract_params(create_model("focalnet_tiny_srf", **TINY)))
    shared = {
        n: leaf for n, leaf in classifier.items() if n.startswith(("patch", "layer"))
    }
    assert {n: own[n] for n in shared} == shared
    others = {name.split("/")[0] for name in own.keys() - shared.keys()}
    assert others == {"norm0", "norm1", "decode_head", "auxiliary_head"}


def test_without_auxiliary_head():
    model = create_segmenter("focalnet_tiny_srf", **SMALL | dict(auxiliary_channels=0))
    shape = jax.ShapeDtypeStruct((1, 32, 40, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), shape)
    assert {*variables} == {"params", "batch_stats"}
    assert {*variables["batch_stats"]} == {"decode_head"}
    logits, outputs = jax.eval_shape(model.apply, variables, shape)
    assert logits.logits.shape == (1, 8, 10, 5)
    assert logits.auxiliary is None
    assert "stage1/block0/gates" in outputs


def test_initial_values_are_those_of_mmsegmentation():
    """Kaiming's by fan-out for convolutions, a narrow distribution for classifiers."""
    head = UPerNetHead(10, channels=64)
    maps = [jnp.zeros((1, 4, 4, 64)), jnp.zeros((1, 2, 2, 64))]
    variables = head.init(jax.random.key(0), maps, train=False, valid=[None, None])
    named = named_leaves(variables["params"])
    # Of some ten thousand draws, so within 2 %; a classifier has 640.
    for name, deviation in {
        "fpn_convs_0/conv/kernel": np.sqrt(2 / (64 * 9)),
        "fpn_bottleneck/conv/kernel": np.sqrt(2 / (64 * 9)),
        "lateral_convs_0/conv/kernel": np.sqrt(2 / 64),
        "conv_seg/kernel": 0.01,
    }.items():
        tolerance = 0.1 if name == "conv_seg/kernel" else 0.03
        assert np.std(named[name]) == pytest.approx(deviation, rel=tolerance), name
    assert not np.any(named["conv_seg/bias"])
    assert np.all(named["bottleneck/bn/scale"] == 1)


def test_dropout_takes_whole_channels():
    head = FCNHead(num_classes=32, channels=32, drop_rate=0.25)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4, 4, 32)), jnp.float32)
    variables = head.init(jax.random.key(0), x, train=False)
    # The logits are the channels that the dropout leaves.
    variables["params"]["conv_seg"]["kernel"] = jnp.eye(32)[None, None]

    def run(head):
        logits, _ = head.apply(
            variables,
            x,
            train=True,
            rngs={"dropout": jax.random.key(1)},
            mutable=["batch_stats"],
        )
        return np.asarray(logits)

    whole, dropped = run(head.clone(drop_rate=0.0)), run(head)
    kept = np.abs(dropped).max((1, 2), keepdims=True) > 0
    np.testing.assert_allclose(dropped, np.where(kept, whole / 0.75, 0), rtol=1e-6)
    assert 0.65 < kept.mean() < 0.85  # of 256 channels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(head_channels=0), "head_channels=0 is not a whole number from 1"),
        (dict(num_classes=0), "num_classes=0 is not a whole number from 1"),
        (dict(pool_sizes=()), r"pool_sizes=\(\)"),
        (dict(head_dropout=1), "head_dropout=1"),
        (dict(depths=(2,)), "focal_levels has 2 entries"),
        (dict(patch_size=(4,)), "is for inputs that are no images"),
        (
            dict(depths=(1,), focal_levels=(1,), focal_windows=(3,)),
            "makes a single map, and the heads",
        ),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(OptionError, match=message):
        create_segmenter("focalnet_tiny_srf", **SMALL | options)


def test_unknown_options_have_the_nearest_name():
    with pytest.raises(TypeError, match="did you mean 'head_channels'"):
        create_segmenter("focalnet_tiny_srf", head_chanels=3)
    with pytest.raises(ValueError, match="did you mean 'focalnet_tiny_srf'"):
        create_segmenter("focalnet_tiny_sfr")
