"""Programs that run without this package, and the command that writes them."""

import json
import pathlib
import re
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest
from tiny import random_params, tiny_backbone, tiny_model

from focalnet_jax.convert import to_torch
from focalnet_jax.convert.weight_files import read_weights, write_weights
from focalnet_jax.errors import SetupError
from focalnet_jax.export import export_program
from focalnet_jax.export.__main__ import main
from focalnet_jax.trees import named_leaves

pytest.importorskip("flatbuffers", reason="JAX writes programs with it")

DOCS = pathlib.Path(__file__).parents[1] / "docs" / "export.md"


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny_model()
    params = random_params(model, "float32")
    write_weights(tmp_path / "net.safetensors", to_torch(params, model, dialect="timm"))
    return model, params


@pytest.mark.parametrize(
    "make",
    [
        tiny_model,
        tiny_backbone,
        lambda: tiny_model(use_conv_embed=True, global_axes=(1,)),
        lambda: tiny_model(patch_size=(2, 4, 4), downsample_stride=(1, 2, 2)),
        lambda: tiny_model(patch_size=(4,), dtype="bfloat16"),
    ],
    ids=["classifier", "backbone", "overlapping stem", "volumes", "rows in bfloat16"],
)
def test_one_program_computes_all_sizes(make):
    model = make()
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


def test_a_program_may_have_a_gradient():
    model = tiny_model()
    params = random_params(model, "float32")
    program = bytearray(export_program(model, params, vjp=True))
    exported = jax.export.deserialize(program)
    images = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)
    named = named_leaves(params)
    given = jax.grad(lambda p: exported.call(p, images).sum())(named)
    expected = jax.grad(lambda p: model.apply({"params": p}, images)[0].sum())(params)
    for name, gradient in named_leaves(expected).items():
        largest = np.abs(gradient).max()
        np.testing.assert_allclose(given[name], gradient, rtol=0, atol=2e-5 * largest)


def test_it_runs_where_only_jax_and_numpy_are(weights, tmp_path, capsys):
    """By the program that the documentation shows."""
    _, params = weights
    main(["--weights=net.safetensors", "exported", "--image-size=32"])
    assert "exported: a program of" in capsys.readouterr().out
    about = json.loads(pathlib.Path("exported/model.json").read_text())
    assert about["preprocessing"]["image_size"] == 32
    stored = read_weights("exported/params.safetensors").tensors
    chex.assert_trees_all_equal(stored, named_leaves(params))
    [code] = re.findall(
        r"```python\n(# run_exported\.py\n.*?)```", DOCS.read_text(), re.S
    )
    pathlib.Path("run_exported.py").write_text(
        code + "import sys\nassert 'focalnet_jax' not in sys.modules\n"
        "np.save('logits.npy', logits)\n"
    )
    subprocess.run([sys.executable, "run_exported.py"], check=True)
    program = bytearray(pathlib.Path("exported/program.stablehlo").read_bytes())
    images = np.zeros((1, 224, 224, 3), np.float32)
    here = jax.export.deserialize(program).call(named_leaves(params), images)
    np.testing.assert_array_equal(np.load("logits.npy"), here)


def test_what_is_there_is_kept(weights):
    pathlib.Path("notes").mkdir()
    pathlib.Path("notes/mine.txt").write_text("mine")
    with pytest.raises(SetupError, match="is there already; --overwrite replaces it"):
        main(["--weights=net.safetensors", "notes"])
    with pytest.raises(SetupError, match="is no exported directory"):
        main(["--weights=net.safetensors", "notes", "--overwrite"])
    assert pathlib.Path("notes/mine.txt").read_text() == "mine"
    with pytest.raises(SetupError, match="no file, directory or release"):
        main(["--weights=nothing.safetensors", "new"])
    assert not pathlib.Path("new").exists()


def test_what_writes_programs_is_told(monkeypatch):
    model = tiny_model()
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(SetupError, match="pip install flatbuffers"):
        export_program(model, random_params(model, "float32"))
