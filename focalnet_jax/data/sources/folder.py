"""Image folders, `CLASS/xxx.jpg`, as sequences of records with encoded images."""

import bisect
import operator
import os
import pathlib
import re
import shlex
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import PIL.features

from focalnet_jax.data.sources.fingerprint import contents_digest, digest
from focalnet_jax.data.sources.left_out import (
    CYCLE,
    DEAD_LINK,
    NOTE,
    SPECIAL,
    TWICE,
    LeftOut,
    kind_of_file,
)
from focalnet_jax.errors import SetupError, first_few, nearest

# What the names of images end in. PIL looks at the first bytes, not at the name.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    *((".avif",) if PIL.features.check("avif") else ()),
    *((".jp2", ".j2k") if PIL.features.check("jpg_2000") else ()),
)

# What an entry of a directory can be, beside what `left_out` knows.
_IMAGE = "image"
_DIRECTORY = "directory"

# Directories that file managers, archives and file systems add by themselves.
_NO_DIRECTORIES = {"__MACOSX", "@eaDir", "lost+found"}

_SPLIT_NAME = re.compile(
    "(train|training|val|valid|validation|test|testing|eval|evaluation|dev)"
    r"([-_ ]?(set|split|data|images|\d+))?",
    re.IGNORECASE,
)


class ImageFolder(Sequence):
    """Records `{"image": encoded bytes, "label": int, "file_name": "CLASS/xxx.jpg"}`.

    As in torchvision's `ImageFolder`, every image below a class directory, at any depth,
    is of that class, and links are followed. The records are sorted by class directory,
    then by the directory that they lie in, then by file name. Every name that begins with
    a dot is ignored. A file is read when its record is asked for.

    The listing is kept as one string of all names, and the position at which each ends.
    For the 14 million files of ImageNet-22K it takes about 350 MB, and every worker
    process gets a copy of it.

    Attributes:
      root: the folder.
      class_names: the name of each class, by label.
      labels: the label of each directory in the folder; the directories are sorted.
      remarks: what is left out, as lines for people.
    """

    def __init__(self, root: str | os.PathLike, *, classes: Sequence[str] | None = None):
        """Lists the files.

        Args:
          root: the folder. Each directory in it is a class and has to contain images: an
            empty one is most likely an unfinished copy. torchvision refuses it, too.
          classes: the names of all classes, in the order of their labels; the folder may
            lack some of them. None for the sorted names of the directories.

        Raises:
          SetupError: the folder does not exist or has no directories, a class has no
            images, images lie outside of the class directories, a directory is not in
            `classes`, or a directory can't be listed.
        """
        self.root = pathlib.Path(root)
        self._directories = class_directories(self.root)
        if self._directories == ["images"]:  # That names no class, as in Tiny ImageNet.
            _check_has_no_images(self.root / "images")
        self.class_names = tuple(self._directories if classes is None else classes)
        self.labels = _labels(self.root, self._directories, self.class_names)
        listing = _Listing(self.root, self._directories)
        listings = [listing.images_below(name) for name in self._directories]
        self.remarks = listing.left_out.lines(self.root, extensions=EXTENSIONS)
        counts = [len(lengths) for _, lengths in listings]
        if not all(counts):
            empty = [name for name, n in zip(self._directories, counts) if not n]
            raise SetupError(
                f"no images in {first_few(empty)} of {self.root} (images end in "
                f"{', '.join(EXTENSIONS)}): complete these classes, or delete them"
                + "".join(f"\n{remark}" for remark in self.remarks)
            )
        # The number of images up to the end of each class, and the number of bytes up to
        # the end of each name.
        self._class_ends = np.cumsum(counts).tolist()
        ends = np.cumsum(np.concatenate([lengths for _, lengths in listings]), dtype=int)
        self._name_ends = ends.astype(np.min_scalar_type(ends[-1]))
        self._names = b"".join(names for names, _ in listings)

    def __len__(self) -> int:
        return len(self._name_ends)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads a file and makes it a record.

        Raises:
          OSError: the file can't be read.
        """
        return {
            "image": self.path(index).read_bytes(),
            "label": self.label(index),
            "file_name": self.file_name(index),
        }

    def path(self, index: int) -> pathlib.Path:
        """The path of an image."""
        return self.root / self.file_name(index)

    def label(self, index: int) -> int:
        """The label of an image: the index of its class in `class_names`."""
        return self.labels[self._class(self._position(index))]

    def file_name(self, index: int) -> str:
        """The path of an image within the folder, `"CLASS/xxx.jpg"`."""
        position = self._position(index)
        start = self._name_ends[position - 1] if position else 0
        name = os.fsdecode(self._names[start : self._name_ends[position]])
        return f"{self._directories[self._class(position)]}/{name}"

    def fingerprint(self) -> dict[str, str]:
        """What tells this folder from one with other images, wherever it lies.

        Returns:
          `names`: a digest of all names and classes. `contents`: one of sizes and first
          bytes, as `contents_digest` takes them.
        """
        directories = [os.fsencode(name) for name in self._directories]
        return {
            "names": digest(
                repr((directories, self._class_ends)).encode(),
                self._name_ends.astype("<i8").tobytes(),
                self._names,
            ),
            "contents": contents_digest(len(self), self.path),
        }

    def _class(self, position: int) -> int:
        """The index of the directory of an image."""
        return bisect.bisect_right(self._class_ends, position)

    def _position(self, index: int) -> int:
        """An index from 0 on, for one that may count from the end."""
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.root} has {len(self)} images, but none at {index}")
        return index % len(self)


class _Listing:
    """Lists the images below the class directories of a folder.

    Attributes:
      left_out: what was met and isn't listed.
    """

    def __init__(self, root: pathlib.Path, classes: Sequence[str]):
        self._root = root
        self._above = frozenset(map(_identity, (root.resolve(), *root.resolve().parents)))
        # What is there twice is called by its own name first, then by that of a link.
        self._seen: dict[tuple[int, int] | str, str] = {}
        for name in sorted(classes, key=lambda name: (root / name).is_symlink()):
            self._seen.setdefault(_identity(root / name), name)
        self.left_out = LeftOut()
        self._sorted_entries("")

    def images_below(self, name: str) -> tuple[bytes, np.ndarray]:
        """The names of the images below a directory, joined, and the length of each.

        They are sorted as torchvision sorts them.

        Raises:
          SetupError: a directory can't be listed.
        """
        found = []
        pending = [(name, self._above)]
        while pending:
            place, above = pending.pop()
            if (identities := self._enter(place, above)) is None:
                continue
            images, directories = self._sorted_entries(place)
            found.append((place, images))
            pending += [(f"{place}/{inner}", identities) for inner in directories]
        names = [
            os.fsencode(f"{place}/{image}"[len(name) + 1 :])
            for place, images in sorted(found)
            for image in images
        ]
        return b"".join(names), np.fromiter(map(len, names), np.uint16, count=len(names))

    def _enter(self, place: str, above: frozenset) -> frozenset | None:
        """The identities of a directory and those above it; None if it is one of them."""
        identity = _identity(self._root / place)
        if identity in above:
            self.left_out.add(CYCLE, place)
            return None
        if self._seen.setdefault(identity, place) != place:
            self.left_out.add(TWICE, place)
        return above | {identity}

    def _sorted_entries(self, place: str) -> tuple[list[str], list[str]]:
        """The names of the images and of the directories in a directory."""
        images, directories = [], []
        for entry in _scan(self._root / place):
            kind = _kind(entry)
            if kind == _DIRECTORY:
                directories.append(entry.name)
            elif kind == _IMAGE:
                images.append(entry.name)
            else:
                self.left_out.add(kind, f"{place}/{entry.name}".lstrip("/"))
        return sorted(images), sorted(directories)


def class_directories(root: pathlib.Path) -> list[str]:
    """The sorted names of the directories in a folder.

    Raises:
      SetupError: there are none, or there are images beside them.
    """
    _check_has_no_images(root)
    directories = _images_and_directories(root)[1]
    if not directories:
        raise SetupError(
            f"there are no directories in {root}: images lie in directories named after "
            "their classes, CLASS/xxx.jpg"
        )
    return directories


def folder_layout(root: pathlib.Path, *, classes: Collection[str] = ()) -> str:
    """Says whether the directories in a folder are classes or splits.

    Args:
      root: the folder.
      classes: the names of all classes, if they are known.

    Returns:
      `"splits"`, if one of them has the name of a split and holds directories, or all
      have such names; `"classes"`, if one of them holds images; or `"either"`, if they
      hold directories alone, and have other names.

    Raises:
      SetupError: there are no directories, or there are images beside them.
    """
    directories = class_directories(root)
    if any(name in classes for name in directories):
        return "classes"
    named = [name for name in directories if _SPLIT_NAME.fullmatch(name)]
    if named == directories:
        return "splits"
    if any(_images_and_directories(root / name)[1] for name in named):
        return "splits"
    counts = []
    for name in directories:
        images, inner = _images_and_directories(root / name)
        if images:
            return "classes"
        counts.append(len(inner))
    # A split has several classes, so a single directory is one below a class.
    return "either" if max(counts) > 1 else "classes"


def split_inside(root: pathlib.Path) -> str | None:
    """The name of a directory that looks like a class, and could be a split as well.

    It holds directories and no images, and it has the name of a split or is the only one:
    `train/train/CLASS/xxx.jpg`.

    Args:
      root: whose directories are classes.

    Raises:
      SetupError: there are no directories, or there are images beside them.
    """
    directories = class_directories(root)
    for name in directories:
        is_only = len(directories) == 1
        if is_only or name == root.name or _SPLIT_NAME.fullmatch(name):
            images, inner = _images_and_directories(root / name)
            if not images and len(inner) > is_only:
                return name
    return None


def link_as_split(root: pathlib.Path) -> str:
    """A command after which the folder `NEW` has `root` as its split `train`."""
    return f"mkdir NEW && ln -s {shlex.quote(str(root.resolve()))} NEW/train"


def holds_images(directory: pathlib.Path) -> bool:
    """Whether there are images directly in a directory."""
    return bool(_images_and_directories(directory)[0])


def _images_and_directories(directory: pathlib.Path) -> tuple[list[str], list[str]]:
    """The sorted names of the images and of the directories in a directory."""
    names = {_IMAGE: [], _DIRECTORY: []}
    for entry in _scan(directory):
        names.setdefault(_kind(entry), []).append(entry.name)
    return sorted(names[_IMAGE]), sorted(names[_DIRECTORY])


def _check_has_no_images(directory: pathlib.Path) -> None:
    """Raises SetupError for images directly in a directory that isn't a class."""
    images, _ = _images_and_directories(directory)
    if not images:
        return
    text = (
        f"{first_few(images)} in {directory} belong to no class: images lie in "
        "directories named after their classes, CLASS/xxx.jpg"
    )
    annotations = directory.parent / "val_annotations.txt"
    if directory.name == "images" and annotations.exists():  # as in Tiny ImageNet
        place = shlex.quote(str(directory.parent))
        text += (
            f". This sorts them by {annotations.name}:\n  cd {place} && while read "
            'f c rest; do mkdir -p "$c" && mv "images/$f" "$c/"; done < '
            f"{annotations.name} && rmdir images"
        )
    elif images[0].startswith("ILSVRC2012_val_"):
        text += (
            ". Those of ImageNet's validation are sorted by the script valprep.sh "
            "of https://github.com/soumith/imagenetloader.torch"
        )
    else:
        text += (
            ". Sort them by the list of labels that came with them, or move them away if "
            "there is none"
        )
    raise SetupError(text)


def _labels(
    root: pathlib.Path, directories: list[str], class_names: tuple[str, ...]
) -> tuple[int, ...]:
    """The label of each directory."""
    label_of = {name: label for label, name in enumerate(class_names)}
    if len(label_of) != len(class_names):
        repeated = sorted({name for name in class_names if class_names.count(name) > 1})
        raise SetupError(f"two classes of {root} have one name: {first_few(repeated)}")
    for name in directories:
        if name not in label_of:
            near = nearest(name, class_names)
            hint = f", one of {first_few(class_names)}"
            hint = f"; did you mean {near!r}?" if near else hint
            raise SetupError(f"the directory {name!r} of {root} is no class{hint}")
    return tuple(label_of[name] for name in directories)


def _identity(directory: pathlib.Path) -> tuple[int, int] | str:
    """By what a directory is known, whatever its path: its device and its inode.

    If they may not be known, it is the path.
    """
    try:
        status = directory.stat()
    except OSError:  # Listing it says what is wrong.
        return str(directory)
    return status.st_dev, status.st_ino


def _scan(directory: pathlib.Path) -> list[os.DirEntry]:
    """The entries of a directory, but for hidden ones."""
    try:
        with os.scandir(directory) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise SetupError(f"the image folder can't be listed: {error}") from error


def _kind(entry: os.DirEntry) -> str:
    """What an entry is: an image, a directory, or something that is left out."""
    try:
        if entry.is_dir():
            return NOTE if entry.name in _NO_DIRECTORIES else _DIRECTORY
        if entry.is_file():
            is_image = entry.name.lower().endswith(EXTENSIONS)
            return _IMAGE if is_image else kind_of_file(entry.name)
    except OSError:  # a link to itself, or into a directory that may not be entered
        pass
    if kind_of_file(entry.name) == NOTE:
        return NOTE
    return DEAD_LINK if entry.is_symlink() else SPECIAL
