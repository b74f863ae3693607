"""The files of MNIST and of data sets in its format, and what is made of them."""

import gzip
import struct

import numpy as np
import pytest

from focalnet_jax.data import EvalTransform, open_source
from focalnet_jax.data.images.decoding import decode
from focalnet_jax.data.prepare.__main__ import main
from focalnet_jax.data.prepare.idx import read_idx
from focalnet_jax.errors import SetupError


def write_idx(path, array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        f"{split}-{kind}": values
        for split, count in (("train", 12), ("t10k", 5))
        for kind, values in (
            (
                "images-idx3-ubyte",
                rng.integers(256, size=(count, 28, 28), dtype=np.uint8),
            ),
            ("labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10),
        )
    }


@pytest.fixture
def directory(arrays, tmp_path):
    (tmp_path / "idx").mkdir()
    for name, array in arrays.items():
        write_idx(tmp_path / "idx" / f"{name}.gz", array)
    return tmp_path / "idx"


def test_prepared_is_what_tfds_calls_by_that_name(arrays, directory, tmp_path, capsys):
    command = [f"idx:{directory}", "--name=fashion_mnist", f"--data-dir={tmp_path}"]
    main(command)
    assert "--config.data.test_split=test" in capsys.readouterr().out
    for split, prefix in (("train", "train"), ("test", "t10k")):
        source = open_source("fashion_mnist", split=split, data_dir=str(tmp_path))
        assert source.num_classes == 10
        images, labels = (
            arrays[f"{prefix}-{kind}"]
            for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
        )
        for record, image, label in zip(source.records, images, labels, strict=True):
            assert record["label"] == label
            pixels = decode(record["image"])
            np.testing.assert_array_equal(pixels, np.repeat(image[..., None], 3, -1))
    assert EvalTransform(28)(record["image"]).shape == (28, 28, 3)
    main(["fashion_mnist", "--verify", f"--data-dir={tmp_path}"])
    main(command)
    assert "3.0.1 is prepared already: --verify" in capsys.readouterr().out


def test_uncompressed_files_are_read(arrays, directory):
    name = "train-images-idx3-ubyte"
    path = directory / name
    path.write_bytes(gzip.decompress((directory / f"{name}.gz").read_bytes()))
    np.testing.assert_array_equal(read_idx(path), arrays[name])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte.gz", b"\x1f\x8b", "no whole IDX file"),
        (
            "t10k-labels-idx1-ubyte.gz",
            gzip.compress(b"\0\0\x08\x01\0\0\0\x05\1", mtime=0),
            "5 val",
        ),
        (
            "t10k-labels-idx1-ubyte.gz",
            gzip.compress(b"\0\0\x0d\x01\0\0\0\0", mtime=0),
            "no IDX fi",
        ),
        (
            "t10k-labels-idx1-ubyte.gz",
            gzip.compress(b"\0\0\x08\x01\0\0\0\0", mtime=0),
            "belong tog",
        ),
        ("train-labels-idx1-ubyte.gz", None, "no train-labels-idx1-ubyte.gz in"),
    ],
)
def test_damaged_files_are_refused(directory, tmp_path, name, content, message):
    (directory / name).unlink()
    if content:
        (directory / name).write_bytes(content)
    with pytest.raises(SetupError, match=message):
        main([f"idx:{directory}", "--name=fashion_mnist", f"--data-dir={tmp_path}"])
    assert not (tmp_path / "fashion_mnist" / "3.0.1").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name=cifar10"], "doesn't hold cifar10"),
        (["--name=fashion_mnst"], "did you mean 'fashion_mnist'"),
        ([], "idx:DIR has the options --name=NAME"),
    ],
)
def test_other_data_sets_are_refused(directory, tmp_path, arguments, message):
    with pytest.raises(SetupError, match=message):
        main([f"idx:{directory}", f"--data-dir={tmp_path}", *arguments])
