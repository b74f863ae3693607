"""Weights of segmenters: mmsegmentation's names in and out, with running averages."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
    random_like,
    random_params,
    tiny_backbone,
    tiny_model,
    tiny_segmenter,
    write_segmenter,
)

from focalnet_jax import create_segmenter, load_model
from focalnet_jax.convert import from_torch, infer_model, to_torch
from focalnet_jax.convert.__main__ import main
from focalnet_jax.convert.weight_files import read_weights, write_weights
from focalnet_jax.errors import SetupError
from focalnet_jax.heads import Segmenter
from focalnet_jax.models import FocalNetBackbone, abstract_params, abstract_variables
from focalnet_jax.trees import named_leaves
from focalnet_jax.weights.description import find_description

MODEL = tiny_segmenter()


@pytest.fixture(scope="module")
def variables():
    return random_like(abstract_variables(MODEL), "float32")


@pytest.fixture(scope="module")
def tensors(variables):
    return in_torch(variables)


def in_torch(variables, model=MODEL):
    return to_torch(
        variables["params"],
        model,
        dialect="mmsegmentation",
        batch_stats=variables.get("batch_stats"),
    )


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def assert_same_bytes(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, array in ours.items():
        assert (array.dtype, array.shape) == (theirs[key].dtype, theirs[key].shape), key
        assert array.tobytes() == theirs[key].tobytes(), key


def test_names_and_shapes_are_mmsegmentations(mmseg, tensors):
    """Of the heads; those of the backbone are the official ones below a prefix."""
    same = dict(num_classes=5, norm_cfg=dict(type="BN"), align_corners=False)
    heads = {
        "decode_head": mmseg.models.UPerHead(
            in_channels=[8, 16], in_index=[0, 1], channels=8, **same
        ),
        "auxiliary_head": mmseg.models.FCNHead(
            in_channels=8, channels=6, num_convs=1, concat_input=False, **same
        ),
    }
    backbone = tiny_backbone()
    official = to_torch(random_params(backbone), backbone, dialect="microsoft")
    expected = {f"backbone.{key}": array.shape for key, array in official.items()}
    for name, head in heads.items():
        for key, tensor in head.state_dict().items():
            expected[f"{name}.{key}"] = tuple(tensor.shape)
    assert {key: array.shape for key, array in tensors.items()} == expected
    counts = {key for key, array in tensors.items() if array.dtype == np.int64}
    assert counts == {key for key in expected if key.endswith("num_batches_tracked")}


def test_round_trips_in_memory_are_exact(variables, tensors):
    back = from_torch(tensors, MODEL, variables=True)
    assert_same(back, variables)
    assert_same_bytes(in_torch(back), tensors)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trips_of_files_are_exact(variables, dtype, tmp_path):
    """Checkpoint, directory, checkpoint; a directory has float32 and remembers."""
    tensors = to_torch(
        variables["params"],
        MODEL,
        dialect="mmsegmentation",
        dtype=dtype,
        batch_stats=variables["batch_stats"],
    )
    # As distributed training of 0.x writes it, with what lies beside.
    prefixed = {f"module.{key}": array for key, array in tensors.items()}
    write_weights(tmp_path / "first.pth", prefixed, wrapper="state_dict")
    main([str(tmp_path / "first.pth"), str(tmp_path / "converted")])
    main([str(tmp_path / "converted"), str(tmp_path / "second.pth")])
    assert_same_bytes(read_weights(tmp_path / "second.pth").tensors, tensors)
    main([str(tmp_path / "converted"), str(tmp_path / "third.safetensors")])
    main([str(tmp_path / "third.safetensors"), str(tmp_path / "again")])
    for name in ("converted", "again"):
        net = load_model(tmp_path / name)
        assert_same(net.variables, load_model(tmp_path / "first.pth").variables)
    assert {path.name for path in (tmp_path / "again").iterdir()} == {
        "params",
        "batch_stats",
        "model.json",
    }


def test_model_is_inferred():
    """One of the published size, from shapes alone."""
    model = create_segmenter("focalnet_tiny_lrf", num_classes=19, focal_windows=(9,) * 4)
    zeros = jax.tree.map(
        lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape),
        abstract_variables(model),
    )
    expected = dict(segment=True, num_classes=19, focal_windows=(9,) * 4)
    assert infer_model(in_torch(zeros, model)) == ("focalnet_tiny_lrf", expected)


def test_loaded_segmenters_segment(variables, tmp_path):
    write_segmenter(tmp_path / "segmenter.pth")
    net = load_model(tmp_path / "segmenter.pth")
    segment = jax.jit(
        lambda variables: net.model.apply(variables, jnp.ones((1, 16, 24, 3)))
    )
    (given, _), (expected, _) = segment(net.variables), segment(variables)
    np.testing.assert_array_equal(given.logits, expected.logits)
    assert np.isfinite(given.logits).all()
    with pytest.raises(SetupError, match="says of each pixel what it shows"):
        net.predict(np.zeros((32, 40, 3), np.uint8))


def test_classes_of_checkpoints_travel(variables, tensors, tmp_path, torch):
    """From the meta of 1.x or 0.x to model.json, and on to files."""
    names, colors = list("abcde"), [[n, n, n] for n in range(5)]
    new = {"dataset_meta": {"classes": tuple(names), "palette": colors}}
    new["dataset_meta"]["reduce_zero_label"] = True
    for meta, reduces in ((new, True), ({"CLASSES": names, "PALETTE": colors}, None)):
        content = {key: torch.from_numpy(array) for key, array in tensors.items()}
        torch.save({"meta": meta, "state_dict": content}, tmp_path / "given.pth")
        main([str(tmp_path / "given.pth"), str(tmp_path / "directory"), "--overwrite"])
        description = find_description(tmp_path / "directory")
        assert description.task == "semantic_segmentation"
        assert description.classes == names
        assert description.colors == colors
        assert description.reduce_zero_label is reduces
        assert load_model(tmp_path / "directory").classes == tuple(names)
        main([str(tmp_path / "directory"), str(tmp_path / "back.pth"), "--overwrite"])
        written = torch.load(tmp_path / "back.pth", weights_only=True)["meta"]
        assert written["dataset_meta"]["classes"] == names
        assert written["dataset_meta"]["palette"] == colors


def test_meta_of_other_classes_is_not_taken(tensors, tmp_path, torch):
    for meta in (
        {"CLASSES": ["a", "b"]},
        {"dataset_meta": {"classes": "abcde", "palette": [[300] * 3] * 5}},
        {"dataset_meta": None},
        [1],
    ):
        content = {key: torch.from_numpy(array) for key, array in tensors.items()}
        torch.save({"meta": meta, "state_dict": content}, tmp_path / "given.pth")
        net = load_model(tmp_path / "given.pth")
        assert net.classes is None


def test_a_segmenter_starts_from_a_classifier(tmp_path, caplog):
    """Its kernels in the middle of larger ones, which the paper's segmenters have."""
    model = tiny_model()
    params = random_params(model, "float32")
    weights = to_torch(params, model, dialect="microsoft")
    write_weights(tmp_path / "net.pth", weights, wrapper="model")
    options = dict(head="reset", segment=True, num_classes=7, head_channels=8)
    with caplog.at_level(logging.WARNING):
        net = load_model(
            tmp_path / "net.pth", resize_kernels=True, focal_windows=(9, 9), **options
        )
    assert "new: norm0, norm1, decode_head, auxiliary_head (" in sorted_modules(caplog)
    assert isinstance(net.model, Segmenter)
    assert net.model.num_classes == 7
    path = ("layers_0", "blocks_0", "modulation", "focal_layers_0", "kernel")
    small, large = params, net.params
    for part in path:
        small, large = small[part], large[part]
    expected = np.zeros((9, 9, 1, 8), np.float32)
    expected[3:6, 3:6] = small
    np.testing.assert_array_equal(large, expected)
    fc1 = ("layers_1", "blocks_1", "mlp", "fc1", "kernel")
    small, large = params, net.params
    for part in fc1:
        small, large = small[part], large[part]
    np.testing.assert_array_equal(large, small)
    averages = named_leaves(net.batch_stats)
    assert all(np.all(leaf == name.endswith("/var")) for name, leaf in averages.items())
    with pytest.raises(SetupError, match="resize_kernels=True zero-pads or crops"):
        load_model(tmp_path / "net.pth", focal_windows=(9, 9), **options)
    with pytest.raises(SetupError, match="head='reset' starts the heads of the segm"):
        load_model(tmp_path / "net.pth", segment=True)


def sorted_modules(caplog):
    """The text of the log, with the modules of a new head in the order of the net."""
    order = ["norm0", "norm1", "decode_head", "auxiliary_head"]
    listed = ", ".join(sorted(order))
    return caplog.text.replace(listed, ", ".join(order))


def test_other_classes_keep_the_rest_of_the_heads(variables, tmp_path):
    write_segmenter(tmp_path / "segmenter.pth")
    net = load_model(tmp_path / "segmenter.pth", head="reset", num_classes=7)
    assert net.model.num_classes == 7
    given, expected = named_leaves(net.variables), named_leaves(variables)
    new = {name for name in given if "conv_seg" in name}
    assert len(new) == 4
    for name in given.keys() - new:
        np.testing.assert_array_equal(given[name], expected[name], err_msg=name)


def test_a_segmenters_encoder_is_a_backbone(variables, tmp_path):
    """With its norms, whether by options or by the prefix of its names."""
    write_segmenter(tmp_path / "segmenter.pth")
    for options in (dict(out_stages=(0, 1)), dict(prefix="backbone")):
        net = load_model(tmp_path / "segmenter.pth", **options)
        assert isinstance(net.model, FocalNetBackbone)
        own = named_leaves(net.params)
        assert {*own} == {*named_leaves(abstract_params(tiny_backbone()))}
        for name, leaf in own.items():
            np.testing.assert_array_equal(leaf, named_leaves(variables["params"])[name])


def test_gradients_have_no_averages(variables, tensors):
    given = in_torch({"params": variables["params"]})
    averages = ("running_mean", "running_var", "num_batches_tracked")
    assert given.keys() == {k for k in tensors if not k.endswith(averages)}


def test_errors_say_what_to_do(variables, tensors):
    with pytest.raises(SetupError, match="running averages .* variables=True returns"):
        from_torch(tensors, MODEL)
    with pytest.raises(SetupError, match="segmenters with dialect='mmsegmentation'"):
        to_torch(variables["params"], MODEL, dialect="microsoft")
    with pytest.raises(SetupError, match="no place for head/bias"):
        to_torch(random_params(tiny_model()), tiny_model(), dialect="mmsegmentation")
    broken = tensors | {"decode_head.bottleneck.bn.num_batches_tracked": np.ones(())}
    with pytest.raises(SetupError, match="num_batches_tracked is float64, not a whole"):
        from_torch(broken, MODEL, variables=True)
    large = np.array(2**40)
    broken = tensors | {"decode_head.bottleneck.bn.num_batches_tracked": large}
    with pytest.raises(SetupError, match="tracked has values too large for int32"):
        from_torch(broken, MODEL, variables=True)
    missing = dict(tensors)
    del missing["auxiliary_head.convs.0.bn.running_var"]
    with pytest.raises(SetupError, match=r"running_var \[6\] is missing"):
        from_torch(missing, MODEL, variables=True)


def test_other_heads_can_be_left_out(tensors):
    """Such as SegFormer's on a FocalNet, of which the backbone is wanted."""
    others = {k: a for k, a in tensors.items() if k.startswith("backbone.")}
    others |= {"decode_head.linear_pred.weight": np.zeros((5, 8, 1, 1), np.float32)}
    with pytest.raises(SetupError, match=r"ignore=\['decode_head.\*'\] leaves it out"):
        from_torch(others, tiny_backbone())
    from_torch(others, tiny_backbone(), ignore=["decode_head.*"])


def test_averages_that_are_there_are_read(tmp_path, variables):
    """A directory without them is of a model that lacks them, and says so."""
    write_segmenter(tmp_path / "segmenter.pth")
    main([str(tmp_path / "segmenter.pth"), str(tmp_path / "directory")])
    (tmp_path / "directory" / "batch_stats").rename(tmp_path / "elsewhere")
    with pytest.raises(SetupError, match=r"auxiliary_head/convs_0/bn/count \[\] is miss"):
        load_model(tmp_path / "directory")


def test_descriptions_are_read_back(tmp_path):
    write_segmenter(tmp_path / "segmenter.pth")
    main([str(tmp_path / "segmenter.pth"), str(tmp_path / "directory")])
    content = json.loads((tmp_path / "directory" / "model.json").read_text())
    assert content["task"] == "semantic_segmentation"
    assert content["scale"] == [2048, 512]
    assert content["source"]["dtype"] == "float32"
    assert content["overrides"]["segment"] is True
