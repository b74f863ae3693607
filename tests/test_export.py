"""The command that exports programs, graphs and files of weights."""

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
from tiny import random_params, tiny_model

from focalnet_jax import load_model
from focalnet_jax.convert import to_torch
from focalnet_jax.convert.__main__ import main as convert
from focalnet_jax.convert.weight_files import read_weights, write_weights
from focalnet_jax.errors import SetupError
from focalnet_jax.export.__main__ import main
from focalnet_jax.trees import named_leaves

DOCS = pathlib.Path(__file__).parents[1] / "docs" / "export.md"


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny_model()
    params = random_params(model, "float32")
    write_weights(tmp_path / "net.safetensors", to_torch(params, model, dialect="timm"))
    return model, params


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


def test_the_command_stores_halves(weights, capsys):
    pytest.importorskip("onnx", reason="it is what is written")
    main(["--weights=net.safetensors", "net.onnx", "--dtype=float16"])
    assert "with the parameters in float16" in capsys.readouterr().out


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
