"""The model that weights are of is inferred from their shapes."""

import logging

import jax.numpy as jnp
import numpy as np
import pytest
from converting import shapes_of, small, zeros

from focalnet_jax import create_backbone, create_model
from focalnet_jax.convert import from_torch, infer_model, to_torch
from focalnet_jax.convert.dialects import CLASSIFIER_DIALECTS
from focalnet_jax.convert.infer import visible_settings
from focalnet_jax.errors import SetupError


@pytest.mark.parametrize(
    "options",
    [
        dict(patch_size=(4,)),
        dict(patch_size=(2, 4)),
        dict(patch_size=(1, 4), use_conv_embed=True),
        dict(patch_size=(2, 4, 4), focal_windows=((1, 3, 3), 5)),
        dict(focal_windows=((3, 5), 5), focal_factor=(2, 4)),
        dict(patch_size=(8,), causal=True, causal_window=64, use_depthwise_bias=True),
    ],
)
def test_shapes_of_any_rank_are_seen(options):
    model = small(**options)
    seen = visible_settings(shapes_of(model))
    for option, value in options.items():
        assert seen[option] == value
    assert seen["focal_levels"] == model.encoder.focal_levels


def test_variants_are_inferred_from_their_shapes(variant):
    """The variants have their full size, and every dialect is tested."""
    name, shapes = variant
    model = create_model(name)
    for dialect in CLASSIFIER_DIALECTS:
        assert infer_model(zeros(model, dialect, shapes)) == (name, {})


def test_what_differs_from_a_variant_is_inferred(caplog):
    options = dict(
        depths=(3, 1, 2),
        embed_dim=16,
        focal_levels=(2, 3, 1),
        focal_windows=(5, 3, 7),
        focal_factor=4,
        mlp_ratio=2.0,
        in_channels=1,
        num_classes=10,
        use_layerscale=True,
    )
    model = create_model("focalnet_huge_fl3", **options)
    with caplog.at_level(logging.WARNING):
        name, overrides = infer_model(zeros(model))
    assert create_model(name, **overrides) == model
    assert (
        "not visible in the weights, so as in focalnet_huge_fl3: "
        "normalize_modulator=False, use_postln=True, stem_padding=2"
    ) in caplog.text
    backbone = create_backbone("focalnet_base_lrf", out_stages=(1, 3))
    name, overrides = infer_model(zeros(backbone))
    assert (name, overrides) == ("focalnet_base_lrf", {"out_stages": (1, 3)})


@pytest.mark.parametrize(("embed_dim", "mlp_ratio"), [(96, 3.3), (352, 15 / 352), (8, 4)])
def test_inferred_ratios_give_the_same_widths(embed_dim, mlp_ratio):
    model = small(embed_dim=embed_dim, mlp_ratio=mlp_ratio)
    shapes = shapes_of(model)
    name, overrides = infer_model(zeros(model, shapes=shapes))
    assert shapes_of(create_model(name, **overrides)) == shapes


def test_what_is_disputed_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        infer_model(zeros(create_model("focalnet_large_fl4", depths=(1, 1, 1, 1))))
        infer_model(zeros(create_backbone("focalnet_large_fl3", depths=(1, 1, 1, 1))))
    first, second = caplog.messages
    assert "sources disagree about normalize_modulator of this variant" in first
    assert "have stem_padding=3 in the official code, 2 in FocalNet-DINO" in second


def test_inferred_models_take_their_weights(params):
    source = to_torch(params, small(), dialect="timm")
    name, overrides = infer_model(source)
    model = create_model(name, **overrides)
    images = jnp.ones((1, 16, 16, 3))
    ours, _ = small().apply({"params": params}, images)
    theirs, _ = model.apply({"params": from_torch(source, model)}, images)
    np.testing.assert_array_equal(ours, theirs)


def test_too_little_to_infer_from_is_said(params):
    source = to_torch(params, small(), dialect="timm")
    del source["layers.0.blocks.0.mlp.fc1.weight"]
    with pytest.raises(SetupError, match="lack layers_0/blocks_0/mlp/fc1/kernel"):
        infer_model(source)
