"""Image folders with a written list of their classes and splits."""

import pathlib
import pickle

import numpy as np
import PIL.Image
import pytest

from focalnet_jax.data import open_source
from focalnet_jax.data.sources.listed import (
    Listed,
    ListedImages,
    read_list,
    write_list,
)
from focalnet_jax.errors import SetupError

ROWS = [
    Listed("b/2.jpg", "Bär", "train"),
    Listed("a, b/1.jpg", 'a "x"', "train"),
    Listed("b/3.jpg", "Bär", "test"),
    Listed("b/bad.jpg", "Bär", "", "zero bytes"),
    Listed("b/\udcff.jpg", "Bär", "train"),  # no UTF-8
    Listed("b/\r \n.jpg", "Bär", "test", sha256="ab"),
]


@pytest.fixture
def folder(tmp_path):
    """A folder with the files of ROWS, each of which contains its number."""
    for number, row in enumerate(ROWS):
        path = tmp_path / "folder" / row.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number)
    write_list(tmp_path / "list.csv", ROWS)
    return tmp_path / "folder"


def test_a_list_comes_back_as_it_was_written(folder, tmp_path):
    assert read_list(tmp_path / "list.csv") == ROWS


def test_images_are_those_of_the_split(folder, tmp_path):
    train = ListedImages(folder, tmp_path / "list.csv", split="train")
    test = ListedImages(folder, tmp_path / "list.csv", split="test")
    assert train.class_names == test.class_names == ("Bär", 'a "x"')
    assert (train.labels, test.labels) == ((0, 1), (0,))
    assert [*train] == [
        {"image": b"0", "label": 0, "file_name": "b/2.jpg"},
        {"image": b"1", "label": 1, "file_name": "a, b/1.jpg"},
        {"image": b"4", "label": 0, "file_name": "b/\udcff.jpg"},
    ]
    assert pickle.loads(pickle.dumps(train))[-1]["image"] == b"4"
    with pytest.raises(IndexError, match="has 3 images, but none at 3"):
        train[3]


def test_labels_are_places_in_the_given_classes(folder, tmp_path):
    path = tmp_path / "list.csv"
    names = ("z", 'a "x"', "Bär")
    assert [
        r["label"] for r in ListedImages(folder, path, split="train", classes=names)
    ] == [2, 1, 2]
    with pytest.raises(SetupError, match="'Bär' of the list .* is no class; did you m"):
        ListedImages(folder, path, split="test", classes=("Bärt", 'a "x"'))


def test_the_fingerprint_is_of_names_classes_and_contents(folder, tmp_path):
    def prints():
        return ListedImages(folder, tmp_path / "list.csv", split="train").fingerprint()

    before = prints()
    (folder / "b/2.jpg").write_bytes(b"other")
    assert prints()["names"] == before["names"]
    assert prints()["contents"] != before["contents"]
    write_list(tmp_path / "list.csv", [*ROWS[:1], ROWS[1]._replace(class_name="c")])
    assert prints()["names"] != before["names"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,class\na,b\n", "lacks the column 'split': .* file, class, split"),
        ("", "lacks the column 'file'"),
        ("file,class,split\na,,train\n", "line 2: there is no class"),
        ("file,class,split\n,b,train\n", "line 2: there is no file"),
        ("file,class,split\na\n", "line 2: there is no class"),
        ("file,class,split\na,b,train\na,b,test\n", "line 3: 'a' is there twice"),
        ('file,class,split\n"a', "is no CSV file: unexpected end of data"),
        ("file,class,split\n", "has no split 'train'; it has no splits at all"),
        ("file,class,split\na,b,trian\n", "no split 'train'; did you mean 'trian'"),
        ("file,class,split\na,b,train\n", "1 of 1 images .* are not in .*: 'a'"),
    ],
)
def test_what_is_no_list_is_refused(text, message, tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(SetupError, match=message):
        ListedImages(tmp_path, path, split="train")


def test_a_list_that_is_not_there_is_told(tmp_path):
    with pytest.raises(SetupError, match=r"the list .*x.csv can't be read: No such file"):
        read_list(tmp_path / "x.csv")


@pytest.mark.parametrize(
    "text", ["\ufefffile;class;split\na;b;t\n", "split\tclass\tfile\nt\tb\ta"]
)
def test_lists_of_spreadsheets_are_read(text, tmp_path):
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    assert read_list(tmp_path / "list.csv") == [Listed("a", "b", "t")]


def test_a_source_of_a_list(tmp_path):
    """All files may lie in one directory, as labels in a table often have them."""
    for name in ("1.png", "2.png"):
        PIL.Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / name)
    rows = [Listed("1.png", "n01440764", "train"), Listed("2.png", "n01443537", "test")]
    write_list(tmp_path / "list.csv", rows)
    options = dict(split="test", files=str(tmp_path / "list.csv"))
    source = open_source(f"folder:{tmp_path}", **options)
    assert source.class_names == ("n01440764", "n01443537")
    assert source.read(0)["label"] == 1
    assert "(2.png)" in source.describe(0)
    assert source.fingerprint().keys() == {"names", "contents"}
    source = open_source(f"folder:{tmp_path}", classes="imagenet2012", **options)
    assert (source.num_classes, source.subset) == (1000, (1,))
    with pytest.raises(SetupError, match="files='.*' is for image folders"):
        open_source("digits", **options)
    assert pathlib.Path(options["files"]).exists()
