"""Files of ONNX graphs, and of parameters that are too large for these."""

import errno
import os
import pathlib

import chex
import numpy as np
import pytest
from exported_models import session_of
from tiny import random_params, tiny_model

from focalnet_jax.errors import SetupError
from focalnet_jax.export import export_onnx, onnx_file


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
