"""Weights that don't fit are refused, with all that is wrong and its causes."""

import numpy as np
import pytest
from converting import assert_same_trees, small, zeros
from tiny import random_params, tiny_backbone

from focalnet_jax import load_model
from focalnet_jax.convert import from_torch, infer_model, to_torch
from focalnet_jax.convert.dialects import CLASSIFIER_DIALECTS
from focalnet_jax.convert.weight_files import write_weights
from focalnet_jax.errors import SetupError


@pytest.mark.parametrize("dialect", CLASSIFIER_DIALECTS)
@pytest.mark.parametrize(
    "prefix", ["module.", "visual.", "vision.", "encoder.", "backbone.", "module.visual."]
)
def test_prefixes_are_seen_through(prefix, dialect, params):
    source = to_torch(params, small(), dialect=dialect)
    source = {prefix + key: array for key, array in source.items()}
    assert_same_trees(from_torch(source, small()), params)


def test_transformers_bare_model_has_no_inner_prefix():
    model = small(num_classes=0)
    params = random_params(model, "float32")
    source = to_torch(params, model, dialect="transformers")
    bare = {key.removeprefix("focalnet."): array for key, array in source.items()}
    assert "encoder.stages.0.downsample.norm.bias" in bare
    assert_same_trees(from_torch(bare, model), params)


def test_a_detector_gives_its_backbone_when_asked():
    model = tiny_backbone(focal_windows=(3, 5))
    params = random_params(model, "float32")
    backbone = to_torch(params, model, dialect="microsoft")
    assert "norm1.weight" in backbone
    assert_same_trees(from_torch(backbone, model), params)
    detector = {f"backbone.{key}": array for key, array in backbone.items()}
    detector |= {"neck.conv.weight": np.zeros((1, 1, 1, 1), np.float32)}
    with pytest.raises(SetupError, match=r"neck.conv.weight \[1, 1, 1, 1\] is no param"):
        from_torch(detector, model)
    assert_same_trees(from_torch(detector, model, prefix="backbone."), params)
    assert_same_trees(from_torch(detector, model, ignore=["neck.*"]), params)
    with pytest.raises(SetupError, match="dialect='microsoft'"):
        to_torch(params, model, dialect="timm")


def test_an_unknown_prefix_is_named(params):
    source = to_torch(params, small(), dialect="timm")
    source = {f"student.{key}": array for key, array in source.items()}
    with pytest.raises(SetupError, match="below the unknown prefix 'student.'"):
        from_torch(source, small())
    assert_same_trees(from_torch(source, small(), prefix="student."), params)


def test_every_misfit_is_listed_at_once(params):
    source = to_torch(params, small(), dialect="microsoft")
    del source["norm.bias"]
    del source["layers.0.blocks.0.modulation.h.weight"]
    source["extra.weight"] = np.zeros(3, np.float32)
    source["head.bias"] = np.zeros(7, np.float32)
    source["module.norm.weight"] = source["norm.weight"]
    with pytest.raises(SetupError) as error:
        from_torch(source, small())
    lines = str(error.value).splitlines()
    assert lines[0] == "the state dict does not fit the model:"
    for expected in (
        "extra.weight [3] is no parameter of a FocalNet",
        "module.norm.weight [16] and norm.weight [16] are the same parameter",
        "head.bias is [7], the model has [5]",
        "norm.bias [16] is missing",
        "layers.0.blocks.0.modulation.h.weight [8, 8, 1, 1] is missing",
    ):
        assert f"  {expected}" in lines


@pytest.mark.parametrize(
    ("weights", "model", "cause"),
    [
        (dict(focal_levels=(2, 2)), dict(focal_levels=(3, 3)), "add_levels=True adds"),
        (dict(focal_levels=(3, 3)), dict(focal_levels=(2, 2)), "LRF for SRF"),
        (
            dict(focal_windows=(3, 3)),
            dict(focal_windows=(9, 9)),
            "resize_kernels=True zero-pads",
        ),
        ({}, dict(use_layerscale=True), "use_layerscale is False there, True in"),
        (dict(num_classes=21_842), dict(num_classes=1000), "head='in22k_to_in1k'"),
        (dict(num_classes=7), {}, "head='reset'"),
        (dict(depths=(2, 2)), {}, r"depths is \(2, 2\) there, \(1, 2\) in the model"),
        (dict(use_conv_embed=True), {}, "use_conv_embed is True there, False in"),
    ],
)
def test_causes_are_named(weights, model, cause):
    with pytest.raises(SetupError, match=cause):
        from_torch(zeros(small(**weights)), small(**model))


def test_timms_names_tell_where_the_norms_stand():
    with pytest.raises(SetupError, match="norm1_post.weight would be called layers.0.bl"):
        from_torch(zeros(small(use_postln=True), "timm"), small())


def test_nan_is_refused_unless_allowed(params):
    source = to_torch(params, small(), dialect="timm")
    source["norm.bias"][2] = np.nan
    source["head.fc.bias"][:2] = np.inf
    with pytest.raises(SetupError, match=r"2 of 58 tensors hold NaN .* head.fc.bias w"):
        from_torch(source, small())
    given = from_torch(source, small(), allow_nan=True)
    assert np.isnan(given["norm"]["bias"][2])


def test_integers_are_refused(params):
    source = to_torch(params, small(), dialect="timm")
    source["norm.bias"] = source["norm.bias"].astype(np.int8)
    with pytest.raises(SetupError, match="norm.bias is int8, not floating point"):
        from_torch(source, small())


def test_another_architecture_is_one_line():
    swin = {
        "patch_embed.proj.weight": np.zeros((8, 3, 4, 4)),
        "layers.0.blocks.0.attn.qkv.weight": np.zeros((24, 8)),
    }
    resnet = {"conv1.weight": np.zeros((64, 3, 7, 7)), "fc.bias": np.zeros(1000)}
    for source in (swin, resnet):
        with pytest.raises(SetupError, match="holds no FocalNet") as error:
            from_torch(source, small())
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("dialect", CLASSIFIER_DIALECTS)
def test_another_layout_is_never_taken_for_the_right_one(dialect, params):
    """A square matrix would fit both with and without a transposition."""
    source = to_torch(params, small(), dialect=dialect)
    for key, array in source.items():
        if array.ndim == 1:
            continue
        if array.ndim == 2:
            other = array[..., None, None]
        else:
            other = array.reshape(array.shape[:2] if array[0, 0].size == 1 else -1)
        with pytest.raises(SetupError, match=f"has not the layout of {dialect}") as error:
            from_torch(source | {key: other}, small())
        assert f"  {key} {list(other.shape)} has not" in str(error.value)


@pytest.mark.parametrize(
    "ndim", [0, *(pytest.param(n, marks=pytest.mark.extended) for n in (1, 2, 3)), 5]
)
def test_no_shape_makes_a_trace(ndim, params):
    source = to_torch(params, small(), dialect="timm")
    for key, array in source.items():
        if array.ndim == ndim:
            continue
        other = source | {key: np.zeros((3,) * ndim, np.float32)}
        for changes in ({}, dict(head="reset", resize_kernels=True, add_levels=True)):
            if changes and key.startswith("head"):
                continue
            with pytest.raises(SetupError):
                from_torch(other, small(), **changes)


def test_names_of_another_module_fill_nothing(params):
    source = to_torch(params, small(), dialect="microsoft")
    source = {f"backbone.{key}": array for key, array in source.items()}
    norm = source.pop("backbone.norm.weight")
    with pytest.raises(SetupError, match=r"encoder.norm.weight \[16\] is no parameter"):
        from_torch(source | {"encoder.norm.weight": norm}, small())


def test_nets_of_another_rank_are_told(params, tmp_path):
    weights = to_torch(params, small(), dialect="microsoft")
    with pytest.raises(
        SetupError, match="with 2 spatial axes, and the model those wi"
    ) as e:
        from_torch(weights, small(patch_size=(4,)))
    assert "one with patch_size=4 takes the weights" in str(e.value)
    write_weights(tmp_path / "a.safetensors", weights)
    with pytest.raises(SetupError, match="the model those with 3: one with patch_size=4"):
        load_model(tmp_path / "a.safetensors", patch_size=(4, 4, 4))
    key = "patch_embed.proj.weight"
    for shape, axes in (((8, 3, 4), "1 spatial axis"), ((8, 3, 2, 4, 4), "3 spatial ax")):
        with pytest.raises(SetupError, match=f"net for inputs with {axes}") as error:
            infer_model(weights | {key: np.zeros(shape, np.float32)})
        assert "\n" not in str(error.value)
