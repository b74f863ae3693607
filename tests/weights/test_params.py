"""Parameters on disk, and what is said if they do not fit."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from focalnet_jax.errors import SetupError
from focalnet_jax.trees import named_leaves, nested
from focalnet_jax.weights import releases
from focalnet_jax.weights.params import (
    find_params,
    load_params,
    read_arrays,
    save_params,
)


@pytest.fixture
def path(tmp_path):
    """Parameters of an encoder, a norm and a head."""
    params = {
        "layers_0": {"kernel": np.ones((2, 3), np.float32)},
        "norm": {"scale": np.full(3, 2, np.float32)},
        "head": {"kernel": np.zeros((3, 5), np.float32), "bias": np.zeros(5, np.float32)},
    }
    path = epath.Path(tmp_path) / "params"
    save_params(path, params)
    return path


def abstract(**shapes):
    """A tree of `{name: {"kernel": shape}}`, on one device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {
        module: {
            name: jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)
            for name, shape in leaves.items()
        }
        for module, leaves in shapes.items()
    }


@pytest.mark.parametrize("is_seen_before", [True, False])
def test_a_full_disk_is_an_os_error(is_seen_before, tmp_path):
    """A limit on the size of files stands for the disk, in a process of its own."""
    program = "" if is_seen_before else "params._check_room = lambda *args: None\n"
    program = (
        "from focalnet_jax.weights import params\n"
        f"{program}"
        "import pathlib, resource, signal, sys, numpy as np\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "numbers = np.random.default_rng(0).normal(size=10_000)\n"
        "try:\n"
        "    params.save_params(pathlib.Path(sys.argv[1]), {'a': numbers})\n"
        "except OSError as error:\n"
        "    print(error.errno == 27, error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "params")],
        capture_output=True,
        text=True,
    )
    assert result.stdout == "True [Errno 27] File too large\n"


LAYER = {"kernel": (2, 3)}
NORM = {"scale": (3,)}
HEAD = {"kernel": (3, 5), "bias": (5,)}


def test_parameters_are_read_as_they_were_written(path):
    params = load_params(path, abstract(layers_0=LAYER, norm=NORM, head=HEAD))
    arrays = read_arrays(path)
    assert arrays.keys() == {"layers_0/kernel", "norm/scale", "head/kernel", "head/bias"}
    np.testing.assert_array_equal(params["norm"]["scale"], arrays["norm/scale"])


def test_new_parameters_are_neither_read_nor_checked(path):
    other_head = {"kernel": (3, 7)}
    params = load_params(
        path, abstract(layers_0=LAYER, norm=NORM, head=other_head), new=("head/",)
    )
    assert params.keys() == {"layers_0", "norm"}
    params = load_params(path, abstract(layers_0=LAYER), new=("head/", "norm/"))
    assert params.keys() == {"layers_0"}


@pytest.mark.parametrize(
    ("shapes", "problem", "may_be_new", "is_hinted"),
    [
        (dict(head={"kernel": (3, 7)}), r"head/bias \(5,\) is not in", ["head/"], True),
        (
            dict(norm=NORM | {"bias": (3,)}),
            r"norm/bias \(3,\) is not st",
            ["head/"],
            False,
        ),
        (dict(norm={"scale": (4,)}), r"has \(4,\)", ["head/"], False),
        (dict(norm={"scale": (4,)}), r"has \(4,\)", ["head/", "norm/"], True),
        (dict(head={"kernel": (3, 7)}), "head/kernel is stored as", [], False),
    ],
)
def test_misfits_are_listed_with_a_hint_if_they_may_be_new(
    path, shapes, problem, may_be_new, is_hinted
):
    expected = abstract(**dict(layers_0=LAYER, norm=NORM, head=HEAD) | shapes)
    with pytest.raises(SetupError, match=problem) as error:
        load_params(path, expected, may_be_new=may_be_new)
    assert ("reset_head=True" in str(error.value)) is is_hinted
    spelt = error.value.spelt(lambda name: f"--config.{name}")
    assert ("--config.reset_head=True" in spelt) is is_hinted


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf:a/b", "names published weights: convert them first, .*convert hf:a/b DIREC"),
        ("focalnet_tiny_srf", "focalnet_jax.convert focalnet_tiny_srf DIRECTORY"),
        ("https://huggingface.co/a/b", "focalnet_jax.convert hf:a/b DIRECTORY"),
        (f"{releases._GITHUB}/focalnet_tiny_srf.pth", r"convert https:.*srf.pth DIREC"),
        ("https://x/focalnet_tiny_srf.pth", "convert focalnet_tiny_srf DIRECTORY"),
        ("https://x/y.pth", "is an address, of which .*: download the file, and convert"),
        ("hub", "holds no checkpoint, but 'model.safetensors'.*convert .*/hub DIRECTORY"),
        ("mine", "holds no checkpoint, but 'a b.pth'.*convert '.*/mine/a b.pth' DIRECT"),
        ("mine/a b.pth", "is a file: .*convert '.*/mine/a b.pth' DIRECTORY"),
        ("empty", "there is no checkpoint in .*/empty"),
        ("nothing", "there is no .*/nothing"),
    ],
)
def test_where_there_are_none_the_conversion_is_named(
    source, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("hub", "mine", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "hub" / "model.safetensors").touch()
    (tmp_path / "mine" / "a b.pth").touch()
    with pytest.raises(SetupError, match=message) as error:
        find_params(source)
    assert "\n" not in str(error.value)


def test_what_is_there_is_no_name(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf:a").mkdir()
    (tmp_path / "hf:a" / "b").symlink_to(tmp_path)
    assert os.path.samefile(find_params("hf:a/b"), path)
    assert find_params(f"file://{tmp_path}") == path


KERNEL = "layers_0/blocks_0/modulation/focal_layers_0/kernel"


@pytest.mark.parametrize(("size", "causal"), [(5, False), (5, True), (1, False)])
def test_kernels_are_resized_around_their_centre(size, causal, tmp_path):
    """On several devices, each of which has a part of the result."""
    path = epath.Path(tmp_path) / "params"
    kernel = np.arange(1.0, 3 * 3 * 8 + 1, dtype=np.float32).reshape(3, 3, 1, 8)
    save_params(path, nested({KERNEL: kernel, "norm/scale": np.ones(8, np.float32)}))
    mesh = jax.sharding.Mesh(jax.devices(), ("fsdp",))
    shapes = {
        KERNEL: ((size, size, 1, 8), PartitionSpec(None, None, None, "fsdp")),
        "norm/scale": ((8,), PartitionSpec()),
    }
    expected = nested(
        {
            name: jax.ShapeDtypeStruct(shape, np.float32, sharding=NamedSharding(mesh, p))
            for name, (shape, p) in shapes.items()
        }
    )
    params = load_params(path, expected, resize_kernels=True, causal=causal)
    given = named_leaves(params)[KERNEL]
    assert given.sharding.spec == shapes[KERNEL][1]
    before, after = {(5, False): (1, 1), (5, True): (2, 0), (1, False): (0, 0)}[
        size, causal
    ]
    padded = np.pad(kernel, [(before, after), (size // 4, size // 4), (0, 0), (0, 0)])
    np.testing.assert_array_equal(given, padded if size == 5 else kernel[1:2, 1:2])
    with pytest.raises(SetupError, match="resize_kernels=True zero-pads or crops them$"):
        load_params(path, expected)
    del expected["norm"]
    with pytest.raises(SetupError, match=r"crops them\n.*reset_head=True starts it anew"):
        load_params(path, expected, may_be_new=["norm"])


def test_rgb_weights_for_other_channels_are_hinted_at(tmp_path):
    path = epath.Path(tmp_path) / "params"
    save_params(path, {"patch_embed": {"proj": {"kernel": np.ones((4, 4, 3, 8))}}})
    shape = jax.ShapeDtypeStruct((4, 4, 1, 8), np.float32)
    with pytest.raises(SetupError, match="convert .* DIRECTORY --set=in_channels=1 "):
        load_params(path, {"patch_embed": {"proj": {"kernel": shape}}})
