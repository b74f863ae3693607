"""Files of weights are read and written, and each bad file gives one clear line."""

import json
import os
import pickle
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from focalnet_jax.convert.weight_files import read_weights, write_weights
from focalnet_jax.errors import SetupError

TENSORS = {"a": np.arange(1000, dtype=np.float32), "b": np.ones((2, 3), np.float16)}


def safetensors_bytes(header, data=b""):
    header = json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


class Bomb:
    """A pickle that would write a file."""

    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_one_line(path, expected):
    with pytest.raises(SetupError) as error:
        read_weights(path)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert path.name in str(error.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_files_are_read_as_written(suffix, directory, torch):
    path = directory / f"weights{suffix}"
    write_weights(path, TENSORS)
    weights = read_weights(path)
    assert weights.tensors.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        assert weights.tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(weights.tensors[name], array)
    assert weights.origin == path.name
    assert len(weights.sha256) == 64
    assert os.listdir(directory) == [path.name]  # No temporary file is left.
    (directory / "other").touch()  # This file has the usual permissions.
    assert path.stat().st_mode == (directory / "other").stat().st_mode


def test_wrapped_files_open_as_the_official_loader_does(directory, torch):
    write_weights(directory / "a.pth", TENSORS, wrapper="model")
    assert torch.load(directory / "a.pth", weights_only=True)["model"].keys() == {
        "a",
        "b",
    }
    assert read_weights(directory / "a.pth").tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("none.safetensors", None, "there is no file"),
        ("empty.safetensors", b"", "is empty"),
        ("empty.pth", b"", "is empty"),
        ("weights.npz", b"PK", "ends in '.npz', not in .safetensors, .pth"),
        ("weights", b"PK", "ends in '', not in"),
        ("text.pth", b"hello, world", "is damaged, or no PyTorch file"),
        ("text.safetensors", b"hello, world, and more", "is damaged, or no safetensors"),
        ("short.safetensors", safetensors_bytes({})[:9], "is damaged, or no safetensors"),
        (
            "claims.safetensors",
            struct.pack("<Q", 10 * 2**30) + b'{"a":',
            "header too large",
        ),
        (
            "claims_tensor.safetensors",
            safetensors_bytes(
                {
                    "a": {
                        "dtype": "F32",
                        "shape": [2_500_000_000],
                        "data_offsets": [0, 10_000_000_000],
                    }
                }
            ),
            "is damaged, or no safetensors file",
        ),
        (
            "float8.safetensors",
            safetensors_bytes(
                {"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}, b"1234"
            ),
            "float8_e4m3fn",
        ),
        ("safe.pth", safetensors.numpy.save(TENSORS), "rename it to .safetensors"),
        ("zip.safetensors", b"PK\x03\x04 and so on", "rename it to .pth"),
        ("pickle.safetensors", pickle.dumps({}), "rename it to .pth"),
    ],
)
def test_bad_files(name, content, expected, directory, torch):
    path = directory / name
    if content is not None:
        path.write_bytes(content)
    check_one_line(path, expected)


def test_a_directory_is_no_file(directory):
    check_one_line(directory, "is a directory")


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_pytorch_files(zipped, directory, torch):
    path = directory / "cut.pth"
    tensors = {"a": torch.ones(1000)}
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:-900])
    check_one_line(path, "is damaged, or no PyTorch file")


def test_truncated_safetensors(directory):
    path = directory / "cut.safetensors"
    path.write_bytes(safetensors.numpy.save(TENSORS)[:-100])
    check_one_line(path, "is damaged, or no safetensors file")


def test_headers_whose_length_looks_like_a_pickle(directory):
    tensors = {"a": np.zeros(1, np.float32)}
    for padding in range(100):
        content = safetensors.numpy.save(tensors, metadata={"padding": " " * padding})
        if content[0] == 0x80:
            break
    assert content[0] == 0x80
    (directory / "a.safetensors").write_bytes(content)
    assert read_weights(directory / "a.safetensors").tensors.keys() == {"a"}


def test_pickles_that_want_to_run_code_are_refused(directory, torch):
    path = directory / "bomb.pth"
    torch.save({"model": {"a": torch.ones(1), "b": Bomb()}}, path)
    check_one_line(path, "is refused: it holds posix.system")
    path.write_bytes(pickle.dumps(Bomb()))
    check_one_line(path, "is refused: it is a pickle of more than tensors")
    torch.save(torch.nn.Linear(2, 2), path)
    check_one_line(path, "is refused: it holds torch.nn.modules.linear.Linear")
    assert not (directory / "exploded").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([1, 2], "holds list, not named tensors"),
        ({"epoch": 1, "lr": 0.1}, "holds no named tensors, but epoch, lr"),
        ({}, "holds no named tensors"),
        ({"model": {}}, "holds no named tensors, but model"),
    ],
)
def test_files_without_named_tensors(content, expected, directory, torch):
    torch.save(content, directory / "a.pth")
    check_one_line(directory / "a.pth", expected)


def test_what_is_among_tensors_must_be_one(directory, torch):
    torch.save({"a": torch.ones(1), "b": "text"}, directory / "a.pth")
    check_one_line(directory / "a.pth", "holds 'b', str, among its tensors")
    sparse = torch.ones(2, 2).to_sparse()
    torch.save({"a": sparse}, directory / "a.pth")
    check_one_line(directory / "a.pth", "'a' as torch.float32, torch.sparse_coo, on cpu")
    torch.save({"a": torch.ones(2).to(torch.float8_e4m3fn)}, directory / "a.pth")
    check_one_line(directory / "a.pth", "holds 'a' as torch.float8_e4m3fn")
    with pytest.raises(SetupError, match="on meta, which is no plain array"):
        read_weights({"a": torch.ones(2, device="meta")})


def test_a_wrapper_that_holds_itself_ends(directory, torch):
    content = {"epoch": 1}
    content["model"] = content
    torch.save(content, directory / "a.pth")
    check_one_line(directory / "a.pth", "has wrappers in wrappers")


def test_bfloat16_goes_through_every_file(directory, torch):
    array = np.arange(4, dtype=ml_dtypes.bfloat16)
    for suffix in (".safetensors", ".pth"):
        write_weights(directory / f"a{suffix}", {"a": array})
        back = read_weights(directory / f"a{suffix}").tensors["a"]
        assert back.dtype == array.dtype
        assert back.tobytes() == array.tobytes()


def test_what_was_there_stays_when_writing_fails(directory, monkeypatch):
    path = directory / "a.safetensors"
    write_weights(path, TENSORS)
    before = path.read_bytes()

    def fail(*args, **options):
        raise OSError("the disk is full")

    monkeypatch.setattr(safetensors.numpy, "save", fail)
    with pytest.raises(OSError, match="the disk is full"):
        write_weights(path, {"a": np.zeros(1)})
    assert path.read_bytes() == before
    assert os.listdir(directory) == [path.name]
