"""Image folders: the files that are listed, their order, and what is refused."""

import pickle

import pytest

from focalnet_jax.data.sources.folder import ImageFolder
from focalnet_jax.errors import SetupError


@pytest.fixture
def make_folder(tmp_path):
    """A function that makes a folder of files, each of which contains its own name."""

    def make(*names):
        root = tmp_path / "folder"
        root.mkdir()
        for name in names:
            path = root / name
            if name.endswith("/"):
                path.mkdir()
                continue
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_bytes(name.encode())
        return root

    return make


def test_records_are_sorted_by_class_and_name(make_folder):
    names = ["dog/b.JPEG", "cat/10.png", "cat/9.jpg", "dog/a.webp", "emu/ü.tif"]
    folder = ImageFolder(make_folder(*names, "cat/notes.txt", "cat/.x.jpg", ".git/x.jpg"))
    assert folder.class_names == ("cat", "dog", "emu")
    records = [("cat/10.png", 0), ("cat/9.jpg", 0), ("dog/a.webp", 1), ("dog/b.JPEG", 1)]
    records.append(("emu/ü.tif", 2))
    assert list(folder) == [
        {"image": name.encode(), "label": label, "file_name": name}
        for name, label in records
    ]
    assert folder[-1] == folder[4]
    for index in (5, -6):
        with pytest.raises(IndexError, match=f"has 5 images, but none at {index}"):
            folder[index]


def test_labels_are_places_in_the_given_classes(make_folder):
    root = make_folder("cat/1.jpg", "dog/1.jpg")
    folder = ImageFolder(root, classes=["dog", "emu", "cat"])
    assert folder.class_names == ("dog", "emu", "cat")
    assert [(r["file_name"], r["label"]) for r in folder] == [
        ("cat/1.jpg", 2),
        ("dog/1.jpg", 0),
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no directories in .*CLASS/xxx.jpg"),
        (["1.jpg"], "'1.jpg' in .* belong to no class: .*CLASS/xxx.jpg"),
        (["cat/1.jpg", "1.jpg"], "'1.jpg' in .* belong to no class"),
        (["cat/1.jpg", "dog/"], "no images in 'dog' of .*images end in .jpg.*delete"),
        (["cat/1.txt", "dog/1.jpg"], "no images in 'cat'"),
        ([f"{n}/1.txt" for n in range(9)], "no images in '0', '1', '2' and 6 more of"),
        (["train/cat/1.jpg"], r"train holds directories \('cat'\).*'train' is a split"),
    ],
)
def test_what_is_no_image_folder_is_refused(make_folder, names, message):
    with pytest.raises(SetupError, match=message):
        ImageFolder(make_folder(*names))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (
            ["n01440764", "n01443537"],
            "'n0144076' of .* no class; did you mean 'n01440764",
        ),
        (list("abcdefgh") * 50, "two classes of .* have one name"),
        (
            ["q" * n for n in range(1, 100)],
            "no class, one of 'q', 'qq', 'qqq' and 96 more",
        ),
    ],
)
def test_directories_that_are_no_classes_are_refused(make_folder, classes, message):
    with pytest.raises(SetupError, match=message):
        ImageFolder(make_folder("n0144076/1.jpg"), classes=classes)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(SetupError, match="can't be listed: .*No such file.*nowhere"):
        ImageFolder(tmp_path / "nowhere")


def test_a_file_that_vanishes_is_named(make_folder):
    root = make_folder("cat/1.jpg", "cat/2.jpg")
    folder = ImageFolder(root)
    (root / "cat/2.jpg").unlink()
    assert folder[0]["image"] == b"cat/1.jpg"
    with pytest.raises(FileNotFoundError, match="cat/2.jpg"):
        folder[1]


def test_a_folder_takes_little_memory_and_is_pickled_small(make_folder):
    names = [f"n{c:08}/n{c:08}_{i}.JPEG" for c in range(4) for i in range(1000)]
    folder = ImageFolder(make_folder(*names))
    pickled = pickle.dumps(folder)
    # A name has 18 characters at most, and 4 bytes for the position at which it ends.
    assert len(pickled) < 23 * len(folder) + 1000
    copy = pickle.loads(pickled)
    assert [copy[i] for i in range(0, 4000, 37)] == [
        folder[i] for i in range(0, 4000, 37)
    ]


@pytest.mark.extended
def test_order_is_torchvisions(make_folder, torch):
    datasets = pytest.importorskip("torchvision.datasets", reason="it is the reference")
    names = ["b/2.jpg", "b/10.PNG", "b/a.webp", "B/x.jpg", "a b/ü.tif", "a/_.bmp"]
    root = make_folder(*names, "a/readme.txt")
    theirs = datasets.ImageFolder(root)
    ours = ImageFolder(root)
    assert list(ours.class_names) == theirs.classes
    assert [(str(ours.path(i)), ours.label(i)) for i in range(len(ours))] == theirs.imgs
