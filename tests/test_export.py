"""Programs that run without this package, and the command that writes them."""

import collections
import errno
import json
import os
import pathlib
import re
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest
from tiny import random_params, tiny_backbone, tiny_model

from focalnet_jax import create_model, list_models, load_model
from focalnet_jax.convert import to_torch
from focalnet_jax.convert.__main__ import main as convert
from focalnet_jax.convert.weight_files import read_weights, write_weights
from focalnet_jax.errors import SetupError
from focalnet_jax.export import export_onnx, export_program, onnx_file
from focalnet_jax.export.__main__ import main
from focalnet_jax.models import FocalNet
from focalnet_jax.trees import named_leaves

DOCS = pathlib.Path(__file__).parents[1] / "docs" / "export.md"


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny_model()
    params = random_params(model, "float32")
    write_weights(tmp_path / "net.safetensors", to_torch(params, model, dialect="timm"))
    return model, params


VIDEOS = dict(patch_size=(2, 4, 4), downsample_stride=(1, 2, 2))
# What both graphs and programs are tried with. The extended run has all.
MODELS = {
    "the usual one": tiny_model,
    "a backbone": tiny_backbone,
    "an overlapping stem, padded": lambda: tiny_model(
        use_conv_embed=True, pad_to_patch=True
    ),
    "causal videos": lambda: tiny_model(**VIDEOS, causal=True, causal_window=3),
    "padded videos": lambda: tiny_model(**VIDEOS, pad_to_patch=True),
    "means of rows": lambda: tiny_model(global_axes=(1,)),
    "patches of two sides": lambda: tiny_model(patch_size=(2, 4)),
    "kernels of one position": lambda: tiny_model(
        focal_windows=(1, 1), focal_factor=0, focal_levels=(1, 2)
    ),
    "a norm in the modulation": lambda: tiny_model(use_postln_in_modulation=True),
}


def parameters(models, *default):
    """The names of models, of which those that are no default are in the extended run."""
    extended = pytest.mark.extended
    return [
        pytest.param(name, marks=[] if name in default else extended) for name in models
    ]


# --- StableHLO ---------------------------------------------------------------

PROGRAMS = MODELS | {
    "volumes": lambda: tiny_model(**VIDEOS),
    "rows in bfloat16": lambda: tiny_model(patch_size=(4,), dtype="bfloat16"),
}


@pytest.mark.parametrize(
    "name",
    parameters(
        PROGRAMS,
        *("the usual one", "a backbone", "an overlapping stem, padded", "volumes"),
        "rows in bfloat16",
    ),
)
def test_one_program_computes_all_sizes(name):
    model = PROGRAMS[name]()
    params = random_params(model, "float32")
    exported = jax.export.deserialize(bytearray(export_program(model, params)))
    assert exported.platforms == ("cpu", "tpu", "cuda")
    rng = np.random.default_rng(0)
    for batch, *sizes in ((1, 16, 16, 16), (3, 27, 34, 20)):
        shape = (batch, *sizes[: model.encoder.spatial_rank], 3)
        images = rng.normal(size=shape).astype(np.float32)
        expected, _ = jax.jit(model.apply)({"params": params}, images)
        given = exported.call(named_leaves(params), images)
        # The layers are fused in another way: about ten roundings of float32, or one of
        # bfloat16.
        tolerance = 2e-6 if model.encoder.dtype == np.float32 else 2e-2
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
        chex.assert_trees_all_close(given, expected, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize(
    "options", [dict(), dict(use_conv_embed=True, use_layerscale=True)], ids=str
)
def test_a_program_may_have_a_gradient(options):
    """Of parameters and of images."""
    model = tiny_model(**options)
    params = random_params(model, "float32")
    program = bytearray(export_program(model, params, vjp=True))
    exported = jax.export.deserialize(program)
    images = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)

    def total(params, images):
        return model.apply({"params": params}, images)[0].sum()

    given, of_images = jax.grad(lambda p, x: exported.call(p, x).sum(), argnums=(0, 1))(
        named_leaves(params), images
    )
    expected, of_images_expected = jax.grad(total, argnums=(0, 1))(params, images)
    pairs = [(given[name], leaf) for name, leaf in named_leaves(expected).items()]
    for gradient, leaf in [*pairs, (of_images, of_images_expected)]:
        largest = np.abs(leaf).max()
        assert largest > 0
        np.testing.assert_allclose(gradient, leaf, rtol=0, atol=2e-5 * largest)


def test_both_are_overwritten(weights):
    pytest.importorskip("onnx", reason="it is what is written")
    for destination in ("net.onnx", "exported"):
        for more in ([], ["--overwrite"]):
            main(["--weights=net.safetensors", destination, *more])
    main(["--weights=net.safetensors", "exported", "--overwrite", "--vjp"])
    program = bytearray(pathlib.Path("exported/program.stablehlo").read_bytes())
    assert jax.export.deserialize(program).has_vjp()


def test_it_runs_where_only_jax_and_numpy_are(weights, tmp_path, capsys):
    """By the program that the documentation shows, on images of an odd size."""
    model, params = weights
    main(["--weights=net.safetensors", "exported", "--image-size=32"])
    assert "exported: a program of" in capsys.readouterr().out
    about = json.loads(pathlib.Path("exported/model.json").read_text())
    assert about["preprocessing"]["image_size"] == 32
    stored = read_weights("exported/params.safetensors").tensors
    chex.assert_trees_all_equal(stored, named_leaves(params))
    images = np.random.default_rng(0).normal(size=(2, 37, 45, 3)).astype(np.float32)
    np.save("images.npy", images)
    [code] = re.findall(
        r"```python\n(# run_exported\.py\n.*?)```", DOCS.read_text(), re.S
    )
    zeros = "np.zeros((1, 224, 224, 3), np.float32)"
    given = "np.load('images.npy')"
    assert code.count(zeros) == 1
    pathlib.Path("run_exported.py").write_text(
        "import sys\n"
        "for name in ('focalnet_jax', 'flax', 'safetensors', 'onnx'):\n"
        "    sys.modules[name] = None  # An import fails.\n"
        f"{code.replace(zeros, given)}"
        "np.save('logits.npy', logits)\n"
    )
    subprocess.run([sys.executable, "run_exported.py"], check=True)
    expected, _ = jax.jit(model.apply)({"params": params}, images)
    # About ten roundings of float32.
    tolerance = 2e-6 * np.abs(expected).max()
    np.testing.assert_allclose(np.load("logits.npy"), expected, rtol=0, atol=tolerance)


def test_what_writes_programs_is_told(monkeypatch):
    model = tiny_model()
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(SetupError, match="flatbuffers, .* pip install"):
        export_program(model, random_params(model, "float32"))


# --- ONNX --------------------------------------------------------------------

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


def session_of(graph):
    runtime = pytest.importorskip("onnxruntime", reason="it runs the graph")
    return runtime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )


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
        results = model.apply({"params": params}, images)
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
    logits, expected = model.apply({"params": params}, images)
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


def test_the_command_stores_halves(weights, capsys):
    pytest.importorskip("onnx", reason="it is what is written")
    main(["--weights=net.safetensors", "net.onnx", "--dtype=float16"])
    assert "with the parameters in float16" in capsys.readouterr().out


@pytest.fixture
def graphs(monkeypatch, tmp_path):
    """Two graphs whose parameters are too large for their files, by the seed of these."""
    onnx = pytest.importorskip("onnx", reason="it is what is written")
    monkeypatch.setattr(onnx_file, "_LARGEST_FILE", 1000)
    monkeypatch.chdir(tmp_path)
    model = tiny_model()
    params = [random_params(model, "float32", seed) for seed in (0, 1)]
    texts = [export_onnx(model, each).SerializeToString() for each in params]
    return lambda seed: onnx.load_from_string(texts[seed])


def constants_of(graph):
    onnx = pytest.importorskip("onnx", reason="it is what is written")
    return {c.name: onnx.numpy_helper.to_array(c) for c in graph.graph.initializer}


def test_a_graph_too_large_for_a_file_has_its_parameters_beside(graphs, monkeypatch):
    import onnx

    path = pathlib.Path("new/net.onnx")
    for seed in (0, 1):
        onnx_file.write_onnx(path, graphs(seed))
        assert {p.name for p in path.parent.iterdir()} == {"net.onnx", "net.onnx.data"}
        loaded = onnx.load(path)
        onnx.checker.check_model(path)
        chex.assert_trees_all_equal(constants_of(loaded), constants_of(graphs(seed)))
    image = np.ones((1, 3, 16, 16), np.float32)
    runtime = pytest.importorskip("onnxruntime", reason="it runs the graph")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [given], [expected] = (
        each.run(None, {"images": image}) for each in (session, session_of(graphs(1)))
    )
    np.testing.assert_array_equal(given, expected)
    monkeypatch.setattr(onnx_file, "_LARGEST_FILE", 10**9)
    onnx_file.write_onnx(path, graphs(0))
    assert [p.name for p in path.parent.iterdir()] == ["net.onnx"]


def test_a_graph_through_a_link_has_its_parameters_where_it_lies(graphs):
    import onnx

    pathlib.Path("there").mkdir()
    pathlib.Path("link.onnx").symlink_to("there/net.onnx")
    for seed in (0, 1):
        onnx_file.write_onnx(pathlib.Path("link.onnx"), graphs(seed))
        loaded = onnx.load("there/net.onnx")
        chex.assert_trees_all_equal(constants_of(loaded), constants_of(graphs(seed)))
    assert sorted(os.listdir()) == ["link.onnx", "there"]
    assert sorted(os.listdir("there")) == ["net.onnx", "net.onnx.data"]


def test_a_directory_is_not_replaced_by_parameters(graphs):
    path = pathlib.Path("net.onnx")
    onnx_file.write_onnx(path, graphs(0))
    pathlib.Path("net.onnx.data").unlink()
    pathlib.Path("net.onnx.data").mkdir()
    before = path.read_bytes()
    with pytest.raises(SetupError, match=r"net.onnx.data .* and is a directory"):
        onnx_file.write_onnx(path, graphs(1))
    assert path.read_bytes() == before
    assert sorted(os.listdir()) == ["net.onnx", "net.onnx.data"]


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_graph_with_its_own_parameters(
    graphs, monkeypatch, number, kind
):
    """Whichever step of writing and renaming fails."""
    import onnx

    path = pathlib.Path("net.onnx")
    onnx_file.write_onnx(path, graphs(0))
    steps = 0

    def fail_at(function):
        def step(*arguments, **options):
            nonlocal steps
            steps += 1
            if steps == number + 1:
                raise kind(errno.ENOSPC, "No space left on device")
            return function(*arguments, **options)

        return step

    with monkeypatch.context() as patch:
        for name in ("open", "write_bytes", "rename", "replace"):
            patch.setattr(pathlib.Path, name, fail_at(getattr(pathlib.Path, name)))
        with pytest.raises(kind, match="No space left"):
            onnx_file.write_onnx(path, graphs(1))
    # The parameters are renamed before the graph: without one they are of no use.
    if path.exists():
        chex.assert_trees_all_equal(
            constants_of(onnx.load(path)), constants_of(graphs(0))
        )
        assert sorted(os.listdir()) == ["net.onnx", "net.onnx.data"]
    else:
        assert os.listdir() == ["net.onnx.data"]
        assert steps == 5


def test_other_operators_are_not_written():
    pytest.importorskip("onnx", reason="it is what is written")
    model = tiny_model(modulation=lambda **_: None)
    with pytest.raises(SetupError, match="only focal modulation itself"):
        export_onnx(model, {})


# --- The command -------------------------------------------------------------


def test_a_file_that_ends_in_onnx_is_a_graph(weights, capsys):
    onnx = pytest.importorskip("onnx", reason="it is what is written")
    main(["--weights=net.safetensors", "net.onnx", "--image-size=64"])
    assert "nodes, with the parameters" in capsys.readouterr().out
    texts = {p.key: json.loads(p.value) for p in onnx.load("net.onnx").metadata_props}
    assert texts["preprocessing"]["image_size"] == 64
    assert texts["smallest_image"] == [8, 8]
    assert texts["classes"] is None
    assert sorted(pathlib.Path().iterdir()) == [
        pathlib.Path("net.onnx"),
        pathlib.Path("net.safetensors"),
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["net.onnx", "--vjp"], "--vjp is for --format=stablehlo, and net.onnx is wri"),
        (["new", "--vjp", "--format=hf"], "--vjp is for .* new is written as hf"),
        (["new", "--dtype=float16"], "--dtype is for --format=onnx, and new is written"),
        (["net.onnx", "--dialect=timm"], "--dialect is for --format=safetensors, and"),
        (["net.pb"], "DST is a file that ends in .onnx or .safetensors, or a directory"),
        (["net.pth"], "Files of PyTorch are written by python -m focalnet_jax.convert"),
        (["new", "--format=onnx"], "--format=onnx makes a file that ends in .onnx, and"),
        (["new.onnx", "--format=hf"], "makes a directory, .* and new.onnx ends in .onnx"),
        (["net.onnx", "--format=safetensors"], "ends in .safetensors, and net.onnx ends"),
        ([""], "DST is empty"),
        (["/"], "^/ is there already; overwrite=True replaces it"),
        (["/", "--format=hf", "--overwrite"], "^/ holds .*, which is not written there"),
        (["dangling.onnx"], "dangling.onnx is there already; overwrite=True"),
        (["dangling"], "dangling is there already; overwrite=True"),
        (["new", "--image-size=3"], "3.* 8 x 8"),
        (["net.onnx", "--image-size=3"], "3.* 8 x 8"),
        (["new.safetensors", "--image-size=3"], "3.* 8 x 8"),
    ],
)
def test_a_wrong_destination_is_told(weights, arguments, said):
    for name in ("dangling", "dangling.onnx"):
        pathlib.Path(name).symlink_to("nothing")
    before = sorted(os.listdir())
    with pytest.raises(SetupError, match=said):
        main(["--weights=net.safetensors", *arguments])
    assert sorted(os.listdir()) == before


FORMATS = {
    "new/net.onnx": [],
    "new/net.safetensors": [],
    "new/net": [],
    "new/hub": ["--format=hf"],
}


@pytest.mark.parametrize("destination", FORMATS)
def test_a_full_disk_leaves_nothing(weights, monkeypatch, destination):
    if destination.endswith(".onnx"):
        pytest.importorskip("onnx", reason="it is what is written")

    def full(self, *_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("write_bytes", "write_text"):
        monkeypatch.setattr(pathlib.Path, name, full)
    said = f"{destination} can't be written: No space left on device$"
    with pytest.raises(SetupError, match=said):
        main(["--weights=net.safetensors", destination, *FORMATS[destination]])
    assert os.listdir() == ["net.safetensors"]


@pytest.mark.parametrize("place", ["net", "net.onnx", "below/net"])
def test_a_missing_permission_names_what_was_meant(weights, monkeypatch, place):
    """The disk says no to the temporary files; whoever is root may write anywhere."""
    if place.endswith(".onnx"):
        pytest.importorskip("onnx", reason="it is what is written")

    def refuse(self, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    for name in ("mkdir", "write_bytes"):
        monkeypatch.setattr(pathlib.Path, name, refuse)
    with pytest.raises(SetupError, match=f"{place} can't be written: Permission denied$"):
        main(["--weights=net.safetensors", place])


@pytest.mark.parametrize("destination", FORMATS)
def test_notes_look_the_same_in_all_formats(weights, capsys, destination):
    if destination.endswith(".onnx"):
        pytest.importorskip("onnx", reason="it is what is written")
    main(["--weights=net.safetensors", destination, *FORMATS[destination]])
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert lines[0].startswith("read net.safetensors: ")
    assert lines[1].startswith("model: focalnet_tiny_srf")
    assert lines[2].startswith("note: not visible in the weights")
    assert lines[-1].startswith("wrote ")
    assert output.err == ""


def test_a_file_of_weights_is_what_convert_writes(weights, capsys):
    for dialect in ([], ["--dialect=microsoft"], ["--dialect=transformers"]):
        main(["--weights=net.safetensors", "ours.safetensors", "--overwrite", *dialect])
        told = capsys.readouterr().out
        convert(["net.safetensors", "theirs.safetensors", "--overwrite", *dialect])
        assert told == capsys.readouterr().out.replace("theirs", "ours")
        # The library writes the entries of the metadata in any order.
        ours, theirs = map(read_weights, ("ours.safetensors", "theirs.safetensors"))
        assert ours.metadata == theirs.metadata
        assert [*ours.tensors] == [*theirs.tensors]
        chex.assert_trees_all_equal(ours.tensors, theirs.tensors)
    assert load_model("ours.safetensors").model == weights[0]


def test_a_dot_in_the_name_of_a_directory_is_no_ending(weights):
    main(["--weights=net.safetensors", "net-1.5"])
    assert pathlib.Path("net-1.5/program.stablehlo").exists()


def test_what_is_there_is_kept(weights):
    pathlib.Path("notes").mkdir()
    pathlib.Path("notes/mine.txt").write_text("mine")
    with pytest.raises(SetupError, match="is there already; overwrite=True replaces it"):
        main(["--weights=net.safetensors", "notes"])
    with pytest.raises(SetupError, match="holds mine.txt, which is not written"):
        main(["--weights=net.safetensors", "notes", "--overwrite"])
    assert pathlib.Path("notes/mine.txt").read_text() == "mine"
    with pytest.raises(SetupError, match="net.safetensors is a file"):
        main(["--weights=net.safetensors", "net.safetensors/net.onnx"])
    pathlib.Path("net.onnx.data").write_text("mine")
    with pytest.raises(SetupError, match=r"net.onnx.data is there already"):
        main(["--weights=net.safetensors", "net.onnx"])
    with pytest.raises(SetupError, match="no file, directory or release"):
        main(["--weights=nothing.safetensors", "new"])
    assert not pathlib.Path("new").exists()
