"""Opening data sets by name, and what is said when that fails."""

import io
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import sklearn.datasets

from focalnet_jax.data import open_source
from focalnet_jax.data.digits import TEST_INDICES
from focalnet_jax.errors import SetupError


def test_digits_are_scikit_learns_images(data_dir):
    digits = sklearn.datasets.load_digits()
    test = open_source("digits", split="test", data_dir=data_dir)
    train = open_source("digits", split="train", data_dir=data_dir)
    assert (len(train), len(test)) == (1437, 360)
    assert test.num_classes == 10
    assert test.class_names == tuple("0123456789")
    for record, index in zip(test.records, sorted(TEST_INDICES)):
        pixels = np.asarray(PIL.Image.open(io.BytesIO(record["image"])))
        np.testing.assert_array_equal(pixels, np.round(digits.images[index] * 255 / 16))
        assert record["label"] == digits.target[index]


def test_digits_split_is_stratified():
    target = sklearn.datasets.load_digits().target
    in_test = np.bincount(target[sorted(TEST_INDICES)])
    assert (abs(in_test - np.bincount(target) / 5) <= 1).all()


def test_slices_of_splits(data_dir):
    assert len(open_source("digits", split="train[:10%]", data_dir=data_dir)) == 144


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("digit", "train", "'digit' is no TFDS data set; did you mean 'digits'"),
        ("qqqqqqq", "train", "is no TFDS data set; see https"),
        ("digits", "trian", "no split 'trian'; did you mean 'train'"),
        ("digits", "train[:0]", r"split 'train\[:0\]' of digits is empty"),
        (
            "cifar10",
            "train",
            r"(?s)is not prepared in .*tfds build cifar10 --file_format=array_record "
            "--data_dir=",
        ),
        (
            "imagenet2012",
            "train",
            r"(?s)tfds build imagenet2012 .*into .*downloads.manual.*ILSVRC2012_img",
        ),
    ],
)
def test_errors_say_what_to_do(data_dir, name, split, message):
    with pytest.raises(SetupError, match=message):
        open_source(name, split=split, data_dir=data_dir)


def test_two_processes_may_prepare_at_once(tmp_path):
    program = (
        "import sys; from focalnet_jax.data import open_source\n"
        "print(len(open_source('digits', split='train', data_dir=sys.argv[1])))"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in processes:
        output, errors = process.communicate()
        assert output.split()[-1:] == [b"1437"], errors.decode()
