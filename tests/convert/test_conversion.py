"""Conversion in both directions is bit-exact and complete."""

import logging

import jax
import ml_dtypes
import numpy as np
import pytest
from converting import assert_same_trees, small
from tiny import random_params

from focalnet_jax import create_model
from focalnet_jax.convert import from_torch, to_torch
from focalnet_jax.convert.dialects import CLASSIFIER_DIALECTS
from focalnet_jax.errors import SetupError
from focalnet_jax.models.modulation import FocalModulation


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
