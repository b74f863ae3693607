"""ImageNet-1K is prepared from the official tar files by the command of docs/data.md."""

import io
import os
import pathlib
import re
import subprocess
import sys
import tarfile

import numpy as np
import PIL.Image
import pytest

from focalnet_jax.data import EvalTransform, open_source
from focalnet_jax.data.sources.imagenet import wordnet_ids

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "data.md"
TRAIN = {"n01440764": 3, "n02123045": 2, "n15075141": 2}  # classes 0, 281 and 999


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def jpeg(level):
    stream = io.BytesIO()
    PIL.Image.new("RGB", (40, 30), (level, level, level)).save(stream, "JPEG")
    return stream.getvalue()


def write_tars(directory):
    """Writes a tar file of a tar file for each class, and one of validation images."""
    with tarfile.open(directory / "ILSVRC2012_img_train.tar", "w") as outer:
        for label, (wnid, count) in enumerate(TRAIN.items()):
            stream = io.BytesIO()
            with tarfile.open(fileobj=stream, mode="w") as inner:
                for i in range(count):
                    add(inner, f"{wnid}_{i}.JPEG", jpeg(50 * label + i))
            add(outer, f"{wnid}.tar", stream.getvalue())
    with tarfile.open(directory / "ILSVRC2012_img_val.tar", "w") as tar:
        for i in range(1, 6):
            add(tar, f"ILSVRC2012_val_{i:08}.JPEG", jpeg(40 * i))


@pytest.mark.extended
def test_official_tars_become_a_source(tmp_path):
    """TFDS as array_record gives the same images as `data.prepare` from tfrecord."""
    for package in ("tensorflow", "apache_beam", "mlcroissant"):
        pytest.importorskip(package, reason="it is of the extra `prepare`")
    write_tars(tmp_path)
    [command] = re.findall(
        r"^tfds (build imagenet2012 .*?)(?:  #|$)", PAGE.read_text(), re.MULTILINE
    )
    program = "from tensorflow_datasets.scripts.cli.main import launch_cli; launch_cli()"
    tfds = [sys.executable, "-c", program, *command.split()]
    tfds = [part.replace("DIR", str(tmp_path)) for part in tfds]
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    for name, arguments in {
        "array": tfds,
        "tf": [part for part in tfds if "file_format" not in part],
    }.items():
        place = tmp_path / name
        subprocess.run([*arguments, f"--data_dir={place}"], check=True, env=quiet)
    prepare = [sys.executable, "-m", "focalnet_jax.data.prepare", "imagenet2012"]
    subprocess.run([*prepare, f"--data-dir={tmp_path / 'tf'}"], check=True)

    ids = wordnet_ids()
    images = []
    for name in ("array", "tf-array_record"):
        place = str(tmp_path / name)
        train = open_source("imagenet2012:5.1.0", split="train", data_dir=place)
        assert train.num_classes == 1000
        labels = [record["label"] for record in train.records]
        counts = {ids[label]: labels.count(label) for label in labels}
        assert counts == TRAIN
        assert re.search(r"\(n\d{8}_\d.JPEG\)$", train.describe(0))
        test = open_source("imagenet2012:5.1.0", split="validation", data_dir=place)
        levels = [EvalTransform(8)(r["image"]).mean().round() for r in test.records]
        np.testing.assert_array_equal(np.sort(levels), [40, 80, 120, 160, 200])
        images.append([record["image"] for record in train.records])
    assert images[0] == images[1]
