"""Opening data sets by name, and what is said when that fails."""

import io
import os
import pathlib
import re
import subprocess
import sys
import types
import unicodedata

import numpy as np
import PIL.Image
import pytest
import sklearn.datasets
import tensorflow_datasets as tfds

from focalnet_jax.data import (
    EvalTransform,
    WrongRecordError,
    eval_batches,
    open_source,
)
from focalnet_jax.data.prepare import __main__ as prepare
from focalnet_jax.data.sources import imagenet
from focalnet_jax.data.sources.digits import TEST_INDICES
from focalnet_jax.errors import SetupError
from focalnet_jax.tasks import classes as classes_of_task
from focalnet_jax.tasks.classes import check_trainable, class_differences
from focalnet_jax.tasks.examples import EvalExample


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


def test_digits_where_the_home_cannot_be_used(data_dir, monkeypatch):
    """They are prepared elsewhere, the same ones, and it is said where."""
    if not pathlib.Path("/proc/self").exists():
        pytest.skip("/proc is where nothing can be written")
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    expected = open_source("digits", split="test", data_dir=data_dir).fingerprint()
    for home, reason in {
        "/proc": r"\(/proc/tensorflow_datasets: No such file or directory\)",
        "": r"\(there is none\)",
    }.items():
        monkeypatch.setenv("HOME", home)
        if not home:  # Nor does the system know one.
            monkeypatch.setattr(os.path, "expanduser", lambda path: path)
        source = open_source("digits", split="test")
        [remark] = source.remarks
        assert re.search(f"{reason}; TFDS_DATA_DIR=DIR names a place that stays", remark)
        assert source.fingerprint() == expected
        assert source.read(0)["label"] in range(10)
    with pytest.raises(SetupError, match="there is no home directory, in which data"):
        open_source("mnist", split="test")
    for place in ("/proc/data", "~/data"):
        message = r"digits can't be prepared in /proc/data \(|no home directory here"
        with pytest.raises(SetupError, match=message):
            open_source("digits", split="test", data_dir=place)


def test_digits_split_is_stratified():
    target = sklearn.datasets.load_digits().target
    in_test = np.bincount(target[sorted(TEST_INDICES)])
    assert (abs(in_test - np.bincount(target) / 5) <= 1).all()


def test_slices_of_splits(data_dir):
    assert len(open_source("digits", split="train[:10%]", data_dir=data_dir)) == 144


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("digit", "train", "'digit' is no data set in .*; did you mean 'digits'"),
        (
            "qqqqqqq",
            "train",
            r"(?s)nor one that TFDS knows.* are digits.*\nData sets lie where data_dir",
        ),
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


@pytest.fixture
def folder(tmp_path):
    """Images of 4 x 4 pixels: 3 + 2 to train with, 1 + 1 to test."""
    names = [f"train/n01440764/{i}.png" for i in range(3)]
    names += [f"train/n15075141/{i}.png" for i in range(2)]
    names += ["val/n01440764/a.png", "val/n15075141/b.png"]
    for level, name in enumerate(names):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (4, 4), (level, 0, 0)).save(path)
    return tmp_path / "pets"


def test_folders_are_sources(folder):
    source = open_source(f"folder:{folder}", split="train")
    assert source.class_names == ("n01440764", "n15075141")
    assert source.num_classes == 2
    assert [source.read(i)["label"] for i in range(5)] == [0, 0, 0, 1, 1]
    assert source.subset is None
    assert source.describe(4) == (
        f"record 4 of folder:{folder}, split 'train' (n15075141/1.png)"
    )
    example = EvalExample(EvalTransform(4), source.labels())
    (batch,) = eval_batches(source, example, batch_size=5)
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], range(5))
    assert len(open_source(f"folder:{folder / 'train'}", split="train")) == 5


def test_folders_may_count_in_imagenets_labels(folder):
    source = open_source(f"folder:{folder}", split="val", classes="imagenet2012")
    assert [source.read(i)["label"] for i in range(2)] == [0, 999]
    assert source.num_classes == 1000
    assert source.subset == (0, 999)
    # The folders of ImageNet-V2 are named after the labels.
    for i, name in enumerate(("n01440764", "n15075141")):
        (folder / "val" / name).rename(folder / "val" / f"{10 - i}")
    source = open_source(f"folder:{folder}", split="val", classes="imagenet2012")
    assert {source.read(i)["label"] for i in range(2)} == {9, 10}


def test_folders_may_count_in_labels_of_a_file(folder, tmp_path):
    classes = tmp_path / "classes.txt"
    classes.write_text("cat\nn15075141\nn01440764\n")
    source = open_source(f"folder:{folder}", split="val", classes=str(classes))
    assert source.class_names == ("cat", "n15075141", "n01440764")
    assert [source.read(i)["label"] for i in range(2)] == [2, 1]
    assert source.subset is None  # an answer may be any class, in the split or not


@pytest.mark.parametrize(
    ("encoding", "message"), [("utf-8-sig", None), ("latin-1", "save it as UTF-8")]
)
def test_files_of_classes_are_text_in_utf8(folder, tmp_path, encoding, message):
    classes = tmp_path / "classes.txt"
    classes.write_text("n01440764\nn15075141\nÜbung\n", encoding)
    if message is None:
        source = open_source(f"folder:{folder}", split="val", classes=str(classes))
        assert source.class_names == ("n01440764", "n15075141", "Übung")
        return
    with pytest.raises(SetupError, match=message):
        open_source(f"folder:{folder}", split="val", classes=str(classes))


def test_classes_have_one_name_however_letters_are_composed(
    folder, tmp_path, monkeypatch
):
    """A copy that macOS has made spells Ü in two characters."""
    composed, apart = "Übung", unicodedata.normalize("NFD", "Übung")
    assert composed != apart
    for split, name in (("train", composed), ("val", apart)):
        (folder / split / "n01440764").rename(folder / split / name)
    classes = tmp_path / "classes.txt"
    for given, names in (
        (None, ("n15075141", composed)),
        (apart, (composed, "n15075141")),
        (composed, (composed, "n15075141")),
    ):
        classes.write_text(f"{given}\nn15075141\n", "utf-8")
        options = {"classes": given and str(classes)}
        name = f"folder:{folder}"
        splits = [open_source(name, split=s, **options) for s in ("train", "val")]
        check_trainable(*splits)
        assert {split.class_names for split in splits} == {names}
        records = [split.read(i) for split in splits for i in range(len(split))]
        for record in records:
            written = unicodedata.normalize("NFC", record["file_name"])
            assert written.startswith(f"{names[record['label']]}/")
    # Both in one split are one class, and a copy is known to be the same data.
    (folder / "train" / apart).mkdir()
    place = folder / "train" / apart / "x.png"
    PIL.Image.new("RGB", (4, 4)).save(place)
    both = open_source(name, split="train")
    assert both.class_names == ("n15075141", composed)
    assert [both.read(i)["label"] for i in range(6)] == [0, 0, 1, 1, 1, 1]
    place.unlink()
    place.parent.rmdir()
    before = open_source(name, split="train").fingerprint()
    (folder / "train" / composed).rename(folder / "train" / apart)
    source = open_source(name, split="train")
    assert source.fingerprint() == before
    # An older program may have written a model's classes as it found them.
    for learnt, is_other in (((apart, "n15075141"), True), (("n15075141", apart), False)):
        description = types.SimpleNamespace(classes=[*learnt])
        monkeypatch.setattr(
            classes_of_task, "find_description", lambda _, found=description: found
        )
        assert bool(class_differences(tmp_path, source)) == is_other


@pytest.fixture
def make_images(tmp_path):
    """A function that makes files by name, which need not be images to be listed."""

    def make(*names):
        for name in names:
            path = tmp_path / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"image")
        return tmp_path / "images"

    return make


DEEP = ["n1/images/0.jpg", "n1/images/1.jpg", "n2/images/2.jpg"]


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_folders_as_tiny_imagenet_is_downloaded(make_images, prefix):
    root = make_images(*(prefix + name for name in DEEP), f"{prefix}n1/n1_boxes.txt")
    source = open_source(f"folder:{root}", split="train")
    assert source.class_names == ("n1", "n2")
    assert [source.records[i]["file_name"] for i in range(3)] == DEEP
    assert source.remarks == ()


def test_the_command_that_sorts_tiny_imagenets_validation_images(make_images):
    root = make_images("val/images/val_0.JPEG", "val/images/val_1.JPEG")
    lines = ["val_0.JPEG\tn2\t0\t32\t44\t62\n", "val_1.JPEG\tn1\t0\t0\t9\t9\n"]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    with pytest.raises(SetupError, match="belong to no class.* val_annotations") as error:
        open_source(f"folder:{root}", split="val")
    command = str(error.value).splitlines()[-1]
    subprocess.run(["sh", "-c", command], check=True)
    source = open_source(f"folder:{root}", split="val")
    assert source.class_names == ("n1", "n2")
    assert source.records[0]["file_name"] == "n1/val_1.JPEG"


def test_folders_that_can_be_read_in_two_ways_are_not_guessed(make_images, tmp_path):
    inside = [f"train/train/{c}/0.jpg" for c in ("cat", "dog")]
    root = make_images(*inside, *(f"train/val/{c}/0.jpg" for c in ("cat", "dog")))
    with pytest.raises(SetupError) as error:
        open_source(f"folder:{root}", split="train")
    _, as_splits, as_classes = str(error.value).splitlines()
    assert as_splits.endswith(f" --name=folder:{root}/train --split=train")
    assert open_source(f"folder:{root}/train", split="train").class_names == (
        *("cat", "dog"),
    )
    *_, command = as_classes.split(" of ")
    classes = tmp_path / "classes.txt"
    subprocess.run(["sh", "-c", command.replace("FILE", str(classes))], check=True)
    source = open_source(f"folder:{root}", split="train", classes=str(classes))
    assert source.class_names == ("train", "val")
    assert len(source) == 4


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        (["x/cat/0.jpg", "x/dog/0.jpg"], "train", "'x' in .*images can be taken for"),
        (["x/cat/0.jpg", "y/a/0.jpg", "y/b/0.jpg"], "train", "'x', 'y' in .* taken for"),
        (["x/cat/0.jpg", "y/a/0.jpg", "y/b/0.jpg"], "z", "no split 'z'; there are x, y"),
        (["training/a/0.jpg", "val/a/0.jpg"], "train", "did you mean 'training'"),
        (["train/x/a/0.jpg", "train/x/b/0.jpg"], "train", "'x' in .*train can be taken"),
        (["train/0.jpg", "bus/0.jpg"], "train", "(?s)as do 'bus' beside it.*ln -s"),
        (["train/a/0.jpg", "train/1.jpg"], "train", "'1.jpg' in .* belong to no class"),
    ],
)
def test_layouts_that_are_asked_about(make_images, names, split, message):
    with pytest.raises(SetupError, match=message):
        open_source(f"folder:{make_images(*names)}", split=split)


def test_what_is_left_out_is_a_remark(make_images):
    root = make_images("train/a/0.jpg", "train/a/1.heic", "train/b/0.jpg")
    [remark] = open_source(f"folder:{root}", split="train").remarks
    assert "1 ending in .heic" in remark


def test_prepared_data_sets_are_known_again(make_images, tmp_path):
    root = make_images("a/0.jpg", "a/1.jpg", "b/0.jpg")

    def prepared(place):
        prepare.main([f"folder:{root}", "--name=pets", f"--data-dir={tmp_path / place}"])
        source = open_source("pets", split="train", data_dir=str(tmp_path / place))
        return source.fingerprint()

    before = prepared("first")
    assert before.keys() == {"names", "contents", "checksums"}
    assert prepared("second") == before
    (root / "a/0.jpg").write_bytes(b"other")  # as many bytes
    after = prepared("third")
    assert after["names"] == before["names"]
    assert after["contents"] != before["contents"]
    assert after["checksums"] != before["checksums"]


@pytest.mark.parametrize(
    ("path", "split", "classes", "message"),
    [
        ("pets", "vla", None, "has no split 'vla'; did you mean 'val'"),
        ("pts", "train", None, "can't be listed.*No such file"),
        ("pets/val", "test", None, r" name=folder:.*pets and 'val'"),
        ("pets", "val", "imagenet", "neither 'imagenet2012' nor a file of classes"),
    ],
)
def test_errors_of_folders_say_what_to_do(folder, path, split, classes, message):
    name = f"folder:{folder.parent / path}"
    with pytest.raises(SetupError, match=message):
        open_source(name, split=split, classes=classes)


def test_a_folder_without_its_prefix_is_recognised(folder):
    with pytest.raises(SetupError, match="an image folder is written folder:/.*pets"):
        open_source(str(folder), split="train")


def test_labels_that_are_plain_integers(tmp_path):
    """Of data sets that don't say how many classes they have."""
    Integers(data_dir=tmp_path).download_and_prepare(file_format="array_record")
    source = open_source("integers", split="train", data_dir=str(tmp_path))
    assert source.num_classes is None
    assert source.read(0)["label"] == 7


def test_labels_outside_of_the_subset_are_refused(folder):
    source = open_source(f"folder:{folder}", split="val", classes="imagenet2012")
    source.labels(1000).check(999)
    with pytest.raises(WrongRecordError, match=r"has label 1, .* the 2 classes"):
        source.labels(1000).check(1)


def test_classes_are_for_folders(data_dir):
    with pytest.raises(SetupError, match="^classes='imagenet2012' is for image fold"):
        open_source("digits", split="test", data_dir=data_dir, classes="imagenet2012")


def test_tfrecord_is_recognised_and_the_command_given_works(as_tfrecord, tmp_path):
    as_tfrecord()
    data_dir = str(tmp_path / "tfrecord")
    with pytest.raises(SetupError, match="as tfrecord, which has no random") as error:
        open_source("digits", split="test", data_dir=data_dir)
    *_, command = str(error.value).splitlines()
    python, arguments = command.split(" -m focalnet_jax.data.prepare ")
    assert python == "  python"
    prepare.main(arguments.split())
    source = open_source(
        "digits:1.0.0", split="test", data_dir=f"{data_dir}-array_record"
    )
    assert len(source) == 360


def test_missing_and_truncated_files_are_named_at_the_door(tmp_path, data_dir):
    import shutil

    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    [shard] = tmp_path.glob("digits/*/digits-test.array_record*")
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(SetupError, match=rf"{shard.name} is cut off or damaged"):
        open_source("digits", split="test", data_dir=str(tmp_path))
    shard.unlink()
    with pytest.raises(SetupError, match=rf"{shard.name} is missing"):
        open_source("digits", split="test", data_dir=str(tmp_path))
    assert len(open_source("digits", split="train", data_dir=str(tmp_path))) == 1437


@pytest.mark.parametrize(("name", "letter"), [("imagenet_a", "a"), ("imagenet_r", "r")])
def test_evaluation_sets_have_their_subsets(as_tfrecord, tmp_path, name, letter, torch):
    """As timm lists them, by label and by WordNet id."""
    timm = pytest.importorskip("timm", reason="it lists the classes")
    directory = as_tfrecord(name, version="0.1.0")
    ids = imagenet.wordnet_ids()
    (directory / "label.labels.txt").write_text("\n".join(ids))
    features = (directory / "features.json").read_text()
    assert '"numClasses": "10"' in features
    features = features.replace('"numClasses": "10"', '"numClasses": "1000"')
    (directory / "features.json").write_text(features)
    prepare.main([f"{name}:0.1.0", f"--data-dir={tmp_path / 'tfrecord'}"])
    place = str(tmp_path / "tfrecord-array_record")
    source = open_source(f"{name}:0.1.0", split="test", data_dir=place)
    info = pathlib.Path(timm.__file__).parent / "data" / "_info"
    indices = (info / f"imagenet_{letter}_indices.txt").read_text().split()
    assert source.subset == tuple(map(int, indices))
    assert ids == (info / "imagenet_synsets.txt").read_text().split()
    synsets = (info / f"imagenet_{letter}_synsets.txt").read_text().split()
    assert [ids[i] for i in source.subset] == synsets


class Integers(tfds.core.GeneratorBasedBuilder):
    """A label that is a number without names."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.Scalar(np.int64),
        }
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"image": PIL.Image.new("RGB", (8, 8)), "label": 7}


class LabelSets(tfds.core.GeneratorBasedBuilder):
    """As ImageNet-ReaL: several labels, or none, for each image."""

    VERSION = tfds.core.Version("1.0.0")
    SETS = ((0, 2), (), (4,))

    def _info(self):
        label = tfds.features.ClassLabel(num_classes=5)
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "original_label": label,
                    "real_label": tfds.features.Sequence(label),
                    "file_name": tfds.features.Text(),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {"validation": self._generate_examples()}

    def _generate_examples(self):
        for i, labels in enumerate(self.SETS):
            stream = io.BytesIO()
            PIL.Image.new("RGB", (8, 8)).save(stream, "JPEG")
            stream.seek(0)
            yield (
                i,
                {
                    "image": stream,
                    "original_label": 1,
                    "real_label": labels,
                    "file_name": f"{i}.JPEG",
                },
            )


def test_sets_of_labels_become_masks_over_the_classes(tmp_path):
    LabelSets(data_dir=tmp_path).download_and_prepare(file_format="array_record")
    source = open_source("label_sets", split="validation", data_dir=str(tmp_path))
    assert source.has_label_sets
    assert source.num_classes == 5
    assert "(2.JPEG)" in source.describe(2)
    example = EvalExample(EvalTransform(8), source.labels(1000))
    (batch,) = eval_batches(source, example, batch_size=4)
    assert "label" not in batch
    assert [tuple(np.flatnonzero(row)) for row in batch["labels"]] == [
        *LabelSets.SETS,
        (),  # fills up the batch
    ]
    np.testing.assert_array_equal(batch["mask"], [True, True, True, False])
