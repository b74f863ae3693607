"""Image folders: the files that are listed, their order, and what is refused."""

import os
import pickle

import pytest

from focalnet_jax.data.sources import fingerprint
from focalnet_jax.data.sources.folder import ImageFolder
from focalnet_jax.errors import SetupError


@pytest.fixture
def make_folder(tmp_path):
    """A function that makes a folder of files, each of which contains its own name."""

    def make(*names, place="folder"):
        root = tmp_path / place
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
        (["cat/1.heic", "dog/1.jpg"], "(?s)in 'cat' .*left out of .*: 1 ending in .heic"),
        (["images/1.jpg"], "'1.jpg' in .*images belong to no class.* or move them away"),
        (["ILSVRC2012_val_00000001.JPEG"], "belong to no class.*valprep.sh"),
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


def test_images_at_any_depth_are_of_the_class(make_folder):
    names = ["cat/images/1.jpg", "cat/0.jpg", "cat/a-b/2.jpg", "cat/a/3/4.jpg"]
    folder = ImageFolder(make_folder(*names, "cat/cat_boxes.txt", "dog/x/y/5.jpg"))
    assert folder.class_names == ("cat", "dog")
    assert [(r["file_name"], r["label"]) for r in folder] == [
        ("cat/0.jpg", 0),
        ("cat/a-b/2.jpg", 0),
        ("cat/a/3/4.jpg", 0),
        ("cat/images/1.jpg", 0),
        ("dog/x/y/5.jpg", 1),
    ]
    assert folder[4]["image"] == b"dog/x/y/5.jpg"
    assert folder.remarks == ()


def test_what_is_left_out_is_counted_by_its_ending(make_folder):
    kept = [f"cat/{i}{e}" for i, e in enumerate((".jfif", ".JPE", ".tif", ".webp"))]
    dropped = ["cat/1.HEIC", "cat/2.heic", "cat/in/3.mp4", "cat/4", "out.zip"]
    silent = ["cat/.DS_Store", "cat/Thumbs.db", "cat/boxes.txt", "README", "cat/._1.jpg"]
    silent += ["__MACOSX/cat/1.jpg", "cat/@eaDir/1.jpg", "cat/.cache/1.jpg", "1.json"]
    folder = ImageFolder(make_folder(*kept, *dropped, *silent))
    assert folder.class_names == ("cat",)
    assert len(folder) == len(kept)
    [remark] = folder.remarks
    assert remark.startswith(
        f"files left out of {folder.root}: 2 ending in .heic, 1 without an ending, "
        "1 ending in .mp4, 1 ending in .zip, such as 'cat/1.HEIC'. Images end in .jpg, "
    )
    assert remark.endswith("magick mogrify -format jpg *.HEIC")
    other = ImageFolder(make_folder("cat/1.jpg", "cat/2.mp4", place="other"))
    assert "magick" not in other.remarks[0]


def test_links_are_followed_and_those_that_lead_nowhere_are_counted(make_folder):
    root = make_folder("cat/1.jpg", "dog/2.jpg", "dog/in/3.jpg")
    os.symlink(root / "cat/1.jpg", root / "dog/4.jpg")
    os.symlink("nowhere.jpg", root / "dog/5.jpg")
    os.symlink("itself", root / "dog/itself")
    os.symlink("nowhere", root / "emu")
    os.mkfifo(root / "dog/6.jpg")
    folder = ImageFolder(root)
    assert [r["file_name"] for r in folder] == [
        *("cat/1.jpg", "dog/2.jpg", "dog/4.jpg", "dog/in/3.jpg")
    ]
    assert folder.remarks == (
        f"links left out of {root}, which can't be followed: 3, such as 'dog/5.jpg'",
        f"left out of {root}, since they are no regular files: 1, such as 'dog/6.jpg'",
    )


def test_links_in_a_circle_end_and_directories_there_twice_are_said(make_folder):
    root = make_folder("cat/1.jpg", "dog/in/2.jpg")
    os.symlink(".", root / "dog/in/same")
    os.symlink("../..", root / "dog/root")
    os.symlink(root.parent.parent, root / "dog/far_above")
    os.symlink("../cat", root / "dog/cats")
    folder = ImageFolder(root)
    assert [r["file_name"] for r in folder] == [
        *("cat/1.jpg", "dog/cats/1.jpg", "dog/in/2.jpg")
    ]
    circles, twice = folder.remarks
    assert "which lead to a directory above them: 3, such as 'dog/far_above'" in circles
    assert "twice, by links, and count twice: 1, such as 'dog/cats'" in twice


def test_directories_that_cannot_be_listed_are_named(make_folder, monkeypatch):
    root = make_folder("cat/in/1.jpg", "cat/2.jpg")
    scandir = os.scandir

    def without_rights(path):
        if os.fspath(path).endswith("in"):  # root, who runs tests, may list everything
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", without_rights)
    with pytest.raises(SetupError, match="can't be listed: .*Permission denied.*cat/in"):
        ImageFolder(root)


def test_a_folder_is_known_again_by_its_fingerprint(make_folder):
    names = ["cat/1.jpg", "cat/in/2.jpg", "dog/3.jpg"]
    prints = [ImageFolder(make_folder(*names)).fingerprint()]
    moved = make_folder(*names, place="moved")
    prints.append(ImageFolder(moved).fingerprint())
    assert prints[0] == prints[1]
    (moved / "dog/3.jpg").write_bytes(b"dog/4.jpg")  # other bytes, as many of them
    changed = ImageFolder(moved).fingerprint()
    assert changed["names"] == prints[0]["names"]
    assert changed["contents"] != prints[0]["contents"]
    (moved / "dog/3.jpg").rename(moved / "dog/5.jpg")
    renamed = ImageFolder(moved).fingerprint()
    assert renamed["contents"] == changed["contents"]
    assert renamed["names"] != changed["names"]
    (moved / "dog/5.jpg").rename(moved / "cat/5.jpg")
    (moved / "cat/1.jpg").rename(moved / "dog/1.jpg")
    assert ImageFolder(moved).fingerprint()["names"] != renamed["names"]


def test_the_fingerprint_of_many_files_opens_few(make_folder, monkeypatch):
    folder = ImageFolder(make_folder(*(f"cat/{i:02}.jpg" for i in range(20))))
    monkeypatch.setattr(fingerprint, "_SIZES", 10)
    monkeypatch.setattr(fingerprint, "_OPENED", 4)
    before = folder.fingerprint()
    for name in ("cat/01.jpg", "cat/19.jpg"):
        folder.root.joinpath(name).write_bytes(b"")
    assert folder.fingerprint() == before
    (folder.root / "cat/02.jpg").write_bytes(b"12")  # its size is looked at
    sized = folder.fingerprint()
    assert sized["contents"] != before["contents"]
    (folder.root / "cat/05.jpg").write_bytes(b"cat/50.jpg")  # it is opened
    assert folder.fingerprint()["contents"] != sized["contents"]


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
    names += ["b/in/1.jpg", "b/in-between/1.jpg", "b/in/side/0.jpg", "b/in/10.jpg"]
    root = make_folder(*names, "a/readme.txt")
    theirs = datasets.ImageFolder(root)
    ours = ImageFolder(root)
    assert list(ours.class_names) == theirs.classes
    assert [(str(ours.path(i)), ours.label(i)) for i in range(len(ours))] == theirs.imgs
