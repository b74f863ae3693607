"""Weights that are changed on the way: heads, kernels and levels of other sizes."""

import numpy as np
import pytest
from converting import assert_same_trees, small, zeros
from tiny import random_params, tiny_backbone

from focalnet_jax.convert import from_torch, to_torch
from focalnet_jax.convert.fit import fit_to_model
from focalnet_jax.convert.names import MatchedWeights, Parameter
from focalnet_jax.convert.reading import Changes
from focalnet_jax.errors import SetupError
from focalnet_jax.trees import named_leaves


def test_head_reset_leaves_the_rest(params):
    source = to_torch(params, small(), dialect="transformers")
    given = from_torch(source, small(num_classes=9), head="reset")
    assert given["head"]["kernel"].shape == (16, 9)
    assert np.std(given["head"]["kernel"]) == pytest.approx(0.02, rel=0.3)
    assert not given["head"]["bias"].any()
    del given["head"]
    assert_same_trees(given, {k: v for k, v in params.items() if k != "head"})
    headless = from_torch(source, small(num_classes=0), head="reset")
    assert "head" not in headless


def test_a_classifier_becomes_a_backbone(params):
    source = to_torch(params, small(), dialect="timm")
    backbone = tiny_backbone(focal_windows=(3, 5))
    given = from_torch(source, backbone, head="reset")
    assert given["norm0"]["scale"].shape == (8,)
    assert (given["norm1"]["scale"] == 1).all()
    assert_same_trees(given["layers_1"], params["layers_1"])


def test_the_1k_part_of_a_22k_head_is_its_first_thousand_rows():
    """Row 850 is among them, though the published label map lacks it."""
    large = small(num_classes=21_842)
    source = to_torch(random_params(large), large, dialect="microsoft")
    given = from_torch(source, small(num_classes=1000), head="in22k_to_in1k")
    expected = np.float32(source["head.weight"][:1000].T)
    np.testing.assert_array_equal(given["head"]["kernel"], expected)
    np.testing.assert_array_equal(
        given["head"]["bias"], np.float32(source["head.bias"][:1000])
    )
    with pytest.raises(SetupError, match=r"released heads of 21,842 classes; .* has 5"):
        from_torch(
            zeros(small(num_classes=5)), small(num_classes=1000), head="in22k_to_in1k"
        )


@pytest.mark.parametrize(("before", "after"), [(3, 7), (7, 3)])
def test_kernels_are_padded_or_cropped_around_their_centre(before, after):
    options = dict(focal_levels=(1, 1))
    model = small(focal_windows=(before, before), **options)
    params = random_params(model, "float32")
    target = small(focal_windows=(after, after), **options)
    source = to_torch(params, model, dialect="timm")
    given = from_torch(source, target, resize_kernels=True)
    old = params["layers_0"]["blocks_0"]["modulation"]["focal_layers_0"]["kernel"]
    new = given["layers_0"]["blocks_0"]["modulation"]["focal_layers_0"]["kernel"]
    assert new.shape == (after, after, 1, 8)
    if after > before:
        np.testing.assert_array_equal(new[2:5, 2:5], old)
        assert not new.at[2:5, 2:5].set(0).any()
        # Zeros around a kernel do not change what it computes.
        images = np.float32(np.random.default_rng(0).normal(size=(1, 16, 16, 3)))
        wide, _ = target.apply({"params": given}, images)
        narrow, _ = model.apply({"params": params}, images)
        np.testing.assert_allclose(wide, narrow, rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_array_equal(new, old[2:5, 2:5])


@pytest.mark.parametrize(
    ("before", "after", "options"),
    [
        ((3, 5), (4, 8), {}),
        ((4, 4), (5, 6), {}),
        ((3, 3), (3, 3), dict(focal_factor=4)),
        ((3, 3), (4, 6), dict(patch_size=(4,))),
        ((3, 3), (4, 6), dict(patch_size=(4,), causal=True, causal_window=12)),
    ],
)
def test_zeros_around_kernels_change_nothing(before, after, options):
    """Each kernel grows where it has its centre, by even and by odd numbers."""
    common = {k: v for k, v in options.items() if k in ("patch_size", "causal")}
    window = {"causal_window": 9} if options.get("causal") else {}
    model = small(focal_windows=before, **window, **common)
    params = random_params(model, "float32")
    target = small(focal_windows=after, **options)
    weights = MatchedWeights("a run", None, flax_parameters(params))
    fitted = fit_to_model(weights, target, Changes(resize_kernels=True))
    shape = (1, *(32,) * model.encoder.spatial_rank, 3)
    images = np.float32(np.random.default_rng(0).normal(size=shape))
    wide, _ = target.apply({"params": fitted.params}, images)
    narrow, _ = model.apply({"params": params}, images)
    np.testing.assert_allclose(wide, narrow, rtol=1e-4, atol=1e-5)
    # And cut back, they are as they were.
    weights = MatchedWeights("a run", None, flax_parameters(fitted.params))
    cut = fit_to_model(weights, model, Changes(resize_kernels=True))
    assert_same_trees(cut.params, params)


def flax_parameters(params):
    named = named_leaves(params)
    return {path: Parameter(path, leaf, leaf, path) for path, leaf in named.items()}


def test_causal_levels_are_added_before_the_global_one():
    options = dict(patch_size=(4,), causal=True, causal_window=7, use_depthwise_bias=True)
    model = small(focal_levels=(2, 2), focal_windows=(3, 3), **options)
    params = random_params(model, "float32")
    # The added level has a kernel of the size of the global one.
    target = small(focal_levels=(3, 2), focal_windows=(3, 3), **options)
    weights = MatchedWeights("a run", None, flax_parameters(params))
    fitted = fit_to_model(weights, target, Changes(add_levels=True))
    assert fitted.notes == (
        "new: 1 kernel of added focal levels",
        "the global level now convolves the last added one",
    )
    old = params["layers_0"]["blocks_0"]["modulation"]
    new = fitted.params["layers_0"]["blocks_0"]["modulation"]
    assert_same_trees(new["focal_layers_3"], old["focal_layers_2"])
    assert not np.array_equal(
        new["focal_layers_2"]["kernel"], old["focal_layers_2"]["kernel"]
    )
    assert_same_trees(fitted.params["layers_1"], params["layers_1"])


@pytest.mark.parametrize("add_levels", [False, True])
def test_causal_nets_have_a_global_kernel_that_others_lack(params, add_levels):
    """It is no focal level, and is never made anew."""
    weights = to_torch(params, small(), dialect="microsoft")
    with pytest.raises(SetupError) as error:
        from_torch(weights, small(causal=True), add_levels=add_levels)
    message = str(error.value)
    assert "causal is False there, True in the model" in message
    assert "which the weights lack: a model with causal=False takes" in message
    assert "focal_levels is" not in message
    assert "add_levels" not in message
    causal = small(causal=True, causal_window=9)
    given = MatchedWeights("a run", None, flax_parameters(random_params(causal)))
    with pytest.raises(SetupError, match="no place for: a model with causal=True takes"):
        fit_to_model(given, small())


def test_added_levels_change_only_what_the_global_level_sees():
    model = small(focal_levels=(2, 2))
    params = random_params(model, "float32")
    target = small(focal_levels=(3, 4))
    source = to_torch(params, model, dialect="microsoft")
    given = from_torch(source, target, add_levels=True, seed=3)
    for stage, added in ((0, 1), (1, 2)):
        old = params[f"layers_{stage}"]["blocks_0"]["modulation"]
        new = given[f"layers_{stage}"]["blocks_0"]["modulation"]
        for leaf in ("kernel", "bias"):
            before, after = old["f"][leaf], np.asarray(new["f"][leaf])
            np.testing.assert_array_equal(after[..., : -added - 1], before[..., :-1])
            assert not after[..., -added - 1 : -1].any()
            np.testing.assert_array_equal(after[..., -1], before[..., -1])
        assert new["focal_layers_2"]["kernel"].any()
    again = from_torch(source, target, add_levels=True, seed=3)
    assert_same_trees(given, again)
    # A level that is missing in the weights is not taken for an added one.
    del source["layers.0.blocks.0.modulation.focal_layers.1.0.weight"]
    with pytest.raises(
        SetupError, match=r"focal_layers.1.0.weight \[8, 1, 5, 5\] is mis"
    ):
        from_torch(source, target, add_levels=True)
