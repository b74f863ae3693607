"""Conversion in both directions is bit-exact and complete, and its errors are clear."""

import functools
import logging

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from tiny import random_params, tiny_backbone, tiny_model

from focalnet_jax import create_backbone, create_model, load_model
from focalnet_jax.convert import from_torch, infer_model, to_torch
from focalnet_jax.convert.dialects import CLASSIFIER_DIALECTS, DIALECTS
from focalnet_jax.convert.fit import fit_to_model
from focalnet_jax.convert.infer import visible_settings
from focalnet_jax.convert.names import MatchedWeights, Parameter
from focalnet_jax.convert.reading import Changes
from focalnet_jax.convert.weight_files import write_weights
from focalnet_jax.errors import SetupError
from focalnet_jax.models import abstract_params
from focalnet_jax.models.modulation import FocalModulation
from focalnet_jax.trees import named_leaves

small = functools.partial(tiny_model, focal_windows=(3, 5))


@pytest.fixture
def params():
    return random_params(small(), "float32")


def assert_same_trees(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["focalnet_tiny_srf", "focalnet_huge_fl4"])
@pytest.mark.parametrize("first", CLASSIFIER_DIALECTS)
def test_round_trips_across_dialects_are_exact(first, name):
    model = small(name)
    params = random_params(model, "float32")
    there = to_torch(params, model, dialect=first)
    for second in CLASSIFIER_DIALECTS:
        elsewhere = to_torch(from_torch(there, model), model, dialect=second)
        back = to_torch(from_torch(elsewhere, model), model, dialect=first)
        assert back.keys() == there.keys()
        for key, array in there.items():
            assert back[key].tobytes() == array.tobytes(), key
    assert_same_trees(from_torch(there, model), params)


@pytest.mark.parametrize("kind", ["timm", "transformers"])
def test_peers_take_our_state_dicts_and_give_theirs(kind, peers, torch):
    """A peer's initial weights go from PyTorch to Flax and back."""
    model = small("focalnet_huge_fl3")
    peer = peers.build_peer(kind, model)
    before = {k: v.clone() for k, v in peer.state_dict().items()}
    params = from_torch(peer.state_dict(), model)
    for tensor in peer.parameters():
        tensor.data.zero_()
    peers.load_peer(peer, to_torch(params, model, dialect=kind))
    for key, tensor in peer.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_modules_are_not_state_dicts(peers):
    peer = peers.build_peer("timm", small())
    with pytest.raises(SetupError, match=r"a FocalNet is given: pass its state_dict\(\)"):
        from_torch(peer, small())


def test_parameters_share_no_memory_with_their_source(params):
    model = small()
    source = to_torch(params, model, dialect="microsoft")
    converted = from_torch(source, model)
    for array in source.values():
        array += 1
    assert_same_trees(converted, params)
    out = to_torch(converted, model, dialect="microsoft")
    for array in out.values():
        array += 1  # These arrays must be writable, too.
    assert_same_trees(converted, params)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_widened_exactly_and_said(dtype, params, caplog):
    model = small()
    narrow = to_torch(params, model, dialect="timm", dtype=dtype)
    assert {array.dtype.name for array in narrow.values()} == {dtype}
    with caplog.at_level(logging.WARNING):
        wide = from_torch(narrow, model)
    assert f"{dtype} widened to float32, exactly" in caplog.text
    assert {leaf.dtype.name for leaf in jax.tree.leaves(wide)} == {"float32"}
    back = to_torch(wide, model, dialect="timm", dtype=dtype)
    for key, array in narrow.items():
        assert back[key].tobytes() == array.tobytes()


def test_torch_bfloat16_is_read(torch, params):
    model = small()
    tensors = {
        key: torch.from_numpy(array).bfloat16()
        for key, array in to_torch(params, model, dialect="microsoft").items()
    }
    given = to_torch(from_torch(tensors, model), model, dialect="microsoft")
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(given[key], tensor.float().numpy())


def test_params_take_the_models_dtype_and_rounding_is_said(params, caplog):
    model = small(param_dtype="bfloat16")
    with caplog.at_level(logging.WARNING):
        given = from_torch(to_torch(params, small(), dialect="timm"), model)
    assert "float32 rounded to bfloat16" in caplog.text
    assert {leaf.dtype for leaf in jax.tree.leaves(given)} == {
        np.dtype(ml_dtypes.bfloat16)
    }


def test_values_too_large_for_the_models_dtype_are_refused(params):
    source = to_torch(params, small(), dialect="timm")
    source["norm.bias"][0] = 1e6
    with pytest.raises(SetupError, match="norm.bias has values too large for float16"):
        from_torch(source, small(param_dtype="float16"))


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "teacher"])
def test_wrappers_are_opened(wrapper, params):
    source = to_torch(params, small(), dialect="microsoft")
    checkpoint = {"epoch": 3, "optimizer": {"lr": 0.1}, wrapper: source}
    assert_same_trees(from_torch(checkpoint, small()), params)


def test_of_several_wrappers_the_choice_is_said(params, caplog):
    source = to_torch(params, small(), dialect="timm")
    other = {key: array * 0 for key, array in source.items()}
    checkpoint = {"state_dict": source, "state_dict_ema": other}
    with caplog.at_level(logging.WARNING):
        assert_same_trees(from_torch(checkpoint, small()), params)
    assert "'state_dict' are taken, not those under 'state_dict_ema'" in caplog.text
    chosen = from_torch(checkpoint, small(), wrapper="state_dict_ema")
    assert not any(leaf.any() for leaf in jax.tree.leaves(chosen))
    with pytest.raises(
        SetupError, match="no weights under 'ema'; there are state_dict, st"
    ):
        from_torch(checkpoint, small(), wrapper="ema")


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


def shapes_of(model):
    leaves = named_leaves(abstract_params(model))
    return {path: leaf.shape for path, leaf in leaves.items()}


def zeros(model, dialect="microsoft", shapes=None):
    """A state dict of the model's shapes that takes no memory."""
    table, use_postln = DIALECTS[dialect], model.encoder.use_postln
    shapes = shapes or shapes_of(model)
    return {
        table.key_of(path, use_postln=use_postln): np.broadcast_to(
            np.float32(0), table.to_torch(path, np.broadcast_to(0, shape)).shape
        )
        for path, shape in shapes.items()
    }


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


def test_gradients_convert_as_parameters_do(params):
    """Any tree with the shapes of the parameters can be converted, even with NaN."""
    gradients = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), params)
    given = to_torch(gradients, small(), dialect="timm")
    assert all(np.isnan(array).all() for array in given.values())


def test_trees_of_other_models_are_refused(params):
    with pytest.raises(SetupError, match='below "params"'):
        to_torch({"params": params}, small(), dialect="timm")
    with pytest.raises(SetupError, match=r"head/bias: \(5,\) given, \(6,\) in the model"):
        to_torch(params, small(num_classes=6), dialect="timm")
    with pytest.raises(SetupError, match="dtype='int8' is not floating point"):
        to_torch(params, small(), dialect="timm", dtype="int8")
    with pytest.raises(SetupError, match="did you mean 'timm'"):
        to_torch(params, small(), dialect="tim")


def test_nets_that_a_dialect_can_not_be_are_refused():
    model = create_model("focalnet_tiny_iso", depths=(1,), embed_dim=8)
    with pytest.raises(SetupError, match="timm's FocalNet always has patch_size=4"):
        to_torch(random_params(model), model, dialect="timm")
    model = small(focal_factor=4)
    with pytest.raises(SetupError, match="transformers's FocalNet always has focal_fact"):
        to_torch(random_params(model), model, dialect="transformers")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(use_depthwise_bias=True), "use_depthwise_bias=True"),
        (dict(causal=True), "causal=True"),
        (dict(downsample_stride=(1, 2)), "downsample_stride=(1, 2)"),
        (dict(focal_windows=((3, 5), 3)), "focal_windows=((3, 5), 3)"),
        (dict(focal_windows=(3, 4)), "kernels of even size (4)"),
        (dict(patch_size=(4,)), "patch_size=(4,)"),
    ],
)
def test_nets_that_no_implementation_has_are_refused(options, said):
    model = small(**options)
    with pytest.raises(SetupError) as error:
        to_torch(random_params(model), model, dialect="microsoft")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_operators_of_a_fork_take_weights_and_give_none(params):
    class Doubled(FocalModulation):
        """It has the parameters of focal modulation, and computes something else."""

        def aggregate(self, context, gates, kernels):
            return 2 * super().aggregate(context, gates, kernels)

    model = small(modulation=Doubled)
    assert_same_trees(
        from_torch(to_torch(params, small(), dialect="timm"), model), params
    )
    with pytest.raises(SetupError, match="the model has another operator, modulation="):
        to_torch(params, model, dialect="timm")


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
