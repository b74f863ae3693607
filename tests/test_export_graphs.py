"""ONNX graphs compute what their model does."""

import collections
import json

import jax
import numpy as np
import pytest
from exported_models import MODELS, VIDEOS, parameters, session_of
from tiny import random_params, tiny_backbone, tiny_model

from focalnet_jax import create_model, list_models
from focalnet_jax.errors import SetupError
from focalnet_jax.export import export_onnx
from focalnet_jax.models import FocalNet
from focalnet_jax.trees import named_leaves

EVERYTHING = dict(
    use_conv_embed=True,
    stem_padding=3,
    use_layerscale=True,
    use_postln=True,
    use_postln_in_modulation=True,
    normalize_modulator=True,
)
GRAPHS = MODELS | {
    "everything": lambda: tiny_model(**EVERYTHING),
    "no head": lambda: tiny_model(num_classes=0),
    "padding": lambda: tiny_model(pad_to_patch=True),
    "biases": lambda: tiny_model(use_depthwise_bias=True),
    "even kernels": lambda: tiny_model(focal_windows=(4, 2)),
    "shades of grey": lambda: tiny_model(in_channels=1),
    "a stage without a norm": lambda: tiny_backbone(out_stages=(1,), out_norm=False),
    "the first stage alone": lambda: tiny_backbone(out_stages=(0,)),
    "causal sequences": lambda: tiny_model(
        patch_size=(4,), causal=True, causal_window=5, use_depthwise_bias=True
    ),
    "causal images": lambda: tiny_model(causal=True, causal_window=3),
    "videos": lambda: tiny_model(**VIDEOS, global_axes=(1, 2)),
}
EXTENDED = {"padded videos", "means of rows", "kernels of one position"}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", parameters(GRAPHS, *(GRAPHS.keys() - EXTENDED)))
def test_a_graph_computes_what_the_model_does(name):
    """At two odd sizes; the roundings of float32 add up to less than 1e-6."""
    onnx = pytest.importorskip("onnx", reason="it is what is written")
    model = GRAPHS[name]()
    types = dict(dtype="float64", param_dtype="float64")
    model = model.clone(encoder=model.encoder.clone(**types))
    params = random_params(model)
    graph = export_onnx(model, params, metadata={"classes": ["a", "ü"]})
    onnx.checker.check_model(graph, full_check=True)
    assert {p.key: json.loads(p.value) for p in graph.metadata_props} == {
        "classes": ["a", "ü"]
    }
    session = session_of(graph)
    rng = np.random.default_rng(0)
    for batch, *sizes in ((2, 17, 22, 19), (1, 33, 26, 12)):
        sizes = sizes[: model.encoder.spatial_rank]
        images = rng.normal(size=(batch, *sizes, model.encoder.in_channels))
        results = jax.jit(model.apply)({"params": params}, images)
        if isinstance(model, FocalNet):
            expected = [results[0]]
        else:
            expected = [np.moveaxis(map_, -1, 1) for map_ in results]
        first = np.moveaxis(images, -1, 1).astype(np.float32)
        for y, z in zip(session.run(None, {"images": first}), expected, strict=True):
            assert y.dtype == np.float32
            np.testing.assert_allclose(y, z, rtol=0, atol=1e-6 * np.abs(z).max())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "name", ["the usual one", "everything", "padding", "causal sequences", "videos"]
)
def test_a_graph_returns_what_the_model_names(name):
    """All that it names, beside the logits, which stay the first result."""
    onnx = pytest.importorskip("onnx", reason="it is what is written")
    model = GRAPHS[name]()
    types = dict(dtype="float64", param_dtype="float64")
    model = model.clone(encoder=model.encoder.clone(**types))
    params = random_params(model)
    sizes = (33, 26, 12)[: model.encoder.spatial_rank]
    images = np.random.default_rng(0).normal(size=(2, *sizes, 3))
    logits, expected = jax.jit(model.apply)({"params": params}, images)
    assert {"stem", "stage0/downsample", "stage1/block1/gates", "pre_logits"} <= {
        *expected
    }
    graph = export_onnx(model, params, outputs=[*expected, "stem"])
    onnx.checker.check_model(graph, full_check=True)
    session = session_of(graph)
    names = [result.name for result in session.get_outputs()]
    assert names == ["logits", *expected]
    first = np.moveaxis(images, -1, 1).astype(np.float32)
    results = session.run(None, {"images": first})
    expected = {"logits": logits} | expected
    for result, y in zip(session.get_outputs(), results, strict=True):
        z = np.moveaxis(expected[result.name], -1, 1)
        np.testing.assert_allclose(y, z, rtol=0, atol=1e-6 * np.abs(z).max())
        assert result.shape[:2] == ["batch", y.shape[1]]


@pytest.mark.parametrize(
    ("make", "name", "said"),
    [
        (tiny_model, "stage1/blok1/gates", "did you mean 'stage1/block1/gates'"),
        (tiny_model, "logits", "outputs='logits' is unknown; did you mean 'pre_logits'"),
        # The result of that name has gone through a norm.
        (tiny_backbone, "stage1", "outputs='stage1' is unknown"),
        (lambda: tiny_backbone(out_stages=(0,)), "stage1/block0", "did you mean 'stage0"),
    ],
)
def test_what_a_model_does_not_name_is_told(make, name, said):
    pytest.importorskip("onnx", reason="it is what is written")
    model = make()
    with pytest.raises(ValueError, match=said):
        export_onnx(model, random_params(model), outputs=[name])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "name", parameters(list_models(), "focalnet_tiny_srf", "focalnet_huge_fl4")
)
def test_the_variants_are_written(name):
    """With a block in each stage, and few channels."""
    onnx = pytest.importorskip("onnx", reason="it is what is written")
    depths = [1] * len(create_model(name).encoder.depths)
    types = dict(dtype="float64", param_dtype="float64")
    model = create_model(name, embed_dim=4, num_classes=3, depths=depths, **types)
    params = random_params(model)
    graph = export_onnx(model, params)
    onnx.checker.check_model(graph, full_check=True)
    kinds = collections.Counter(node.op_type for node in graph.graph.node)
    levels = sum(model.encoder.focal_levels)
    assert kinds["Conv"] == levels + len(depths)
    assert kinds["Gelu"] == levels + 2 * len(depths)
    images = np.random.default_rng(0).normal(size=(2, 67, 90, 3))
    expected, _ = jax.jit(model.apply)({"params": params}, images)
    first = np.moveaxis(images, -1, 1).astype(np.float32)
    [given] = session_of(graph).run(None, {"images": first})
    # The roundings of float32, in four blocks.
    tolerance = 2e-6 * np.abs(expected).max()
    np.testing.assert_allclose(given, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["the usual one", "everything", "videos"])
def test_a_graph_may_store_halves(name):
    """Each matrix is rounded to 11 bits; the errors of four blocks add up to less."""
    pytest.importorskip("onnx", reason="it is what is written")
    model = GRAPHS[name]()
    model = model.clone(encoder=model.encoder.clone(embed_dim=48))
    params = random_params(model, "float32")
    rank, results, sizes = model.encoder.spatial_rank, [], []
    images = np.random.default_rng(0).normal(size=(2, 3, *(24, 32, 16)[:rank]))
    for dtype in ("float32", "float16"):
        graph = export_onnx(model, params, dtype=dtype)
        session = session_of(graph)
        [input_] = session.get_inputs()
        assert input_.type == "tensor(float)"
        results += session.run(None, {"images": images.astype(np.float32)})
        sizes.append(graph.ByteSize())
    whole, half = results
    assert 0 < np.abs(half - whole).max() <= 2e-3 * np.abs(whole).max()
    assert sizes[1] < 0.6 * sizes[0]


def test_small_vectors_are_not_stored_as_halves():
    """Half of the smallest layer scales would be 0."""
    onnx = pytest.importorskip("onnx", reason="it is what is written")
    model = tiny_model(use_layerscale=True)
    params = random_params(model, "float32")
    graph = export_onnx(model, params, dtype="float16").graph
    stored = {c.name: onnx.numpy_helper.to_array(c) for c in graph.initializer}
    for name, leaf in named_leaves(params).items():
        if leaf.ndim == 1:
            np.testing.assert_array_equal(stored[name], leaf)
        else:
            assert stored[f"{name}/float16"].dtype == np.float16
    params["head"]["kernel"] = params["head"]["kernel"] + 1e6
    with pytest.raises(SetupError, match="head/kernel has values too large for float16"):
        export_onnx(model, params, dtype="float16")
    with pytest.raises(ValueError, match="dtype='bfloat16' is none of float32, float16"):
        export_onnx(model, params, dtype="bfloat16")


def test_other_operators_are_not_written():
    pytest.importorskip("onnx", reason="it is what is written")
    model = tiny_model(modulation=lambda **_: None)
    with pytest.raises(SetupError, match="only focal modulation itself"):
        export_onnx(model, {})
