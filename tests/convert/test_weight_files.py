"""Files of weights are read and written, and each bad file gives one clear line."""

import errno
import json
import os
import pathlib
import pickle
import struct
import zipfile

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
        ("weights", b"PK", "is a text, which begins with 'PK'"),
        ("text.pth", b"hello, world", "is a text, which begins with 'hello, world'"),
        ("text.safetensors", b"hello, world, and more", "is a text"),
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
        ("zip.pth", b"PK\x03\x04 and so on", "is damaged: it is cut off, as a download"),
        ("cut.pth", pickle.dumps({"a": 1})[:-3], "is damaged, or no PyTorch file"),
        (
            "noise.pth",
            b"\xa0\x9e\xebGf\x13\x8ap\x00",
            "is damaged, or no file of weights",
        ),
        ("lfs.pth", b"version https://git-lfs.github.com/spec/v1\n", "`git lfs pull`"),
        ("page.pth", b"\n<!DOCTYPE html>\n<html>", "is a web page, not the file itself"),
        ("denied.bin", b"<?xml version='1.0'?><Error>", "is a web page"),
        ("zeros.pth", bytes(600), "is a row of zeros: the download broke off"),
        ("a.pth.gz", b"\x1f\x8b\x08", "is a gzip archive: unpack it"),
        ("a.tar", b"a.pth".ljust(257, b"\0") + b"ustar", "is a tar archive: unpack it"),
        ("keras.h5", b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        ("net.onnx", b"\x08\x07\x12\x07pytorch", "is an ONNX file"),
        ("flax.msgpack", b"\x81\xa6params\x80", "is a msgpack file, as Flax writes it"),
        ("a.lz4", b"\x04\x22\x4d\x18\x64", "is an lz4 archive: unpack it"),
        ("a.Z", b"\x1f\x9d\x90", "is a compress (.Z) archive: unpack it"),
        ("a.lz", b"LZIP\x01", "is an lzip archive: unpack it"),
        ("a.lzma", b"\x5d\x00\x00\x80\x00", "is an lzma archive: unpack it"),
        ("none.zip", b"PK\x05\x06" + bytes(18), "is an empty zip archive"),
        ("a.png", b"\x89PNG\r\n\x1a\n", "is a PNG image"),
        ("a.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF", "is a JPEG image"),
        ("a.gif", b"GIF89a", "is a GIF image"),
        ("a.webp", b"RIFF\x0a\x00\x00\x00WEBPVP8 ", "is a WebP image"),
        ("paper.pth", b"%PDF-1.5\n", "is a PDF document"),
        ("rows.bin", b"PAR1\x15\x04", "is a Parquet table"),
        ("manifest.ocdbt", b"\x0c\xdb:*q\x00", "a part of parameters that Orbax wrote"),
        ("a.pth", b"/annex/objects/SHA256E-s1--a.pth\n", "`git annex get`"),
        ("b.pth", b"../../.git/annex/objects/aa/b.pth", "`git annex get`"),
        ("c.pth", b"..\\.git\\annex\\objects\\aa\\c.pth", "`git annex get`"),
        ("rows.csv", b"class\nfocal\nnet\n", "is a text, which begins with 'class'"),
        ("config.json", b'{"a": 1}', "is a text, which begins with '{\"a\": 1}'"),
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
    check_one_line(path, "is damaged")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a", "a.ckpt", "epoch=3.0"])
def test_the_content_decides_and_not_the_name(name, directory, torch):
    for suffix in (".safetensors", ".pth"):
        write_weights(directory / f"written{suffix}", TENSORS)
        (directory / f"written{suffix}").rename(directory / name)
        assert read_weights(directory / name).tensors.keys() == TENSORS.keys()


def test_archives_of_arrays_and_of_programs_are_named(directory, torch):
    np.savez(directory / "a.npz", **TENSORS)
    check_one_line(directory / "a.npz", "is an archive of numpy arrays: pass dict(")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), directory / "a.pt")
    check_one_line(directory / "a.pt", "is a TorchScript archive")
    with zipfile.ZipFile(directory / "a.zip", "w") as archive:
        archive.writestr("net.pth", b"")
    check_one_line(directory / "a.zip", "is a zip archive: unpack it")
    (directory / "link.pth").symlink_to("nowhere.pth")
    check_one_line(directory / "link.pth", "is a link to nowhere.pth, which is not there")
    (directory / "annexed.pth").symlink_to("../.git/annex/objects/aa/a.pth")
    check_one_line(directory / "annexed.pth", "fetch it by `git annex get`")


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


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([1, 2], "holds list, not named tensors"),
        ({"epoch": 1, "lr": 0.1}, "holds no named tensors, but 'epoch', 'lr'"),
        ({}, "holds no named tensors"),
        ({"model": {}}, "holds no named tensors, but 'model'"),
    ],
)
def test_files_without_named_tensors(content, expected, directory, torch):
    torch.save(content, directory / "a.pth")
    check_one_line(directory / "a.pth", expected)


def test_what_is_among_tensors_must_be_one(directory, torch):
    torch.save({"a": torch.ones(1), "b": "text"}, directory / "a.pth")
    weights = read_weights(directory / "a.pth")
    assert weights.tensors.keys() == {"a"}
    assert weights.notes == ("no tensors, and so left out: 'b (str)'",)
    sparse = torch.ones(2, 2).to_sparse()
    torch.save({"a": sparse}, directory / "a.pth")
    check_one_line(directory / "a.pth", "holds 'a' as torch's sparse_tensor")
    with pytest.raises(SetupError, match="'a' as torch.float32, torch.sparse_coo, on cp"):
        read_weights({"a": sparse})
    torch.save({"a": torch.ones(2).to(torch.float8_e4m3fn)}, directory / "a.pth")
    check_one_line(directory / "a.pth", "holds 'a' as torch.float8_e4m3fn")
    with pytest.raises(SetupError, match="on meta, which is no plain array"):
        read_weights({"a": torch.ones(2, device="meta")})


def test_a_wrapper_that_holds_itself_ends(directory, torch):
    content = {"epoch": 1}
    content["model"] = content
    torch.save(content, directory / "a.pth")
    check_one_line(directory / "a.pth", "holds no named tensors")
    deep = {"a": np.ones(1)}
    for _ in range(8):
        deep = {"model": deep}
    with pytest.raises(SetupError, match="wrappers in wrappers"):
        read_weights(deep)


def test_bfloat16_goes_through_every_file(directory, torch):
    array = np.arange(4, dtype=ml_dtypes.bfloat16)
    for suffix in (".safetensors", ".pth"):
        write_weights(directory / f"a{suffix}", {"a": array})
        back = read_weights(directory / f"a{suffix}").tensors["a"]
        assert back.dtype == array.dtype
        assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_full_disk_is_an_os_error_and_leaves_nothing(
    suffix, directory, monkeypatch, torch
):
    """torch would raise a RuntimeError of its own if it wrote to the file itself."""

    def fail(self, content):
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", fail)
    with pytest.raises(OSError, match="No space left on device"):
        write_weights(directory / "new" / "place" / f"a{suffix}", TENSORS)
    assert os.listdir(directory) == []


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
