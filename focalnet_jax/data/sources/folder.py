"""Image folders, `CLASS/xxx.jpg`, as sequences of still-encoded records."""

import bisect
import operator
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from focalnet_jax.errors import SetupError, did_you_mean

EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".ppm",
    ".tif",
    ".tiff",
)


class ImageFolder(Sequence):
    """Records `{"image": encoded bytes, "label": int, "file_name": "CLASS/xxx.jpg"}`.

    They are sorted by class directory, then by file name, as in torchvision's
    `ImageFolder`. Other than there, a directory within a class directory is an error, so
    that splits aren't taken for classes. Files of other kinds, and whatever begins with a
    dot, are passed over. Files are read when they are asked for.

    The listing is one string of all names and the places where they end: some 350 MB for
    the 14 million files of ImageNet-22K, of which every worker process gets a copy.

    Attributes:
      root: the folder.
      class_names: by label.
      labels: that occur, by directory.
    """

    def __init__(self, root: str | os.PathLike, *, classes: Sequence[str] | None = None):
        """Lists the files.

        Args:
          root: the folder. Each directory in it is a class, and needs to hold images: an
            empty one is most likely half a copy (torchvision refuses it, too).
          classes: names in the order of their labels, of which the folder may lack some;
            None for the names of the directories, sorted.

        Raises:
          SetupError: no folder, no classes, a class without images, images that lie
            elsewhere, or a directory that is not in `classes`.
        """
        self.root = pathlib.Path(root)
        self._directories = class_directories(self.root)
        self.class_names = tuple(self._directories if classes is None else classes)
        self.labels = _labels(self.root, self._directories, self.class_names)
        listings = [_image_names(self.root / name) for name in self._directories]
        counts = [len(lengths) for _, lengths in listings]
        if not all(counts):
            empty = [name for name, n in zip(self._directories, counts) if not n]
            raise SetupError(
                f"no images in {some(empty)} of {self.root} (images end in "
                f"{', '.join(EXTENSIONS)}): complete these classes, or delete them"
            )
        # Numbers of images up to and with a class, of bytes up to and with a name.
        self._class_ends = np.cumsum(counts).tolist()
        ends = np.cumsum(np.concatenate([lengths for _, lengths in listings]), dtype=int)
        self._name_ends = ends.astype(np.min_scalar_type(ends[-1]))
        self._names = b"".join(names for names, _ in listings)

    def __len__(self) -> int:
        return len(self._name_ends)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads a file.

        Raises:
          OSError: it can't be read.
        """
        return {
            "image": self.path(index).read_bytes(),
            "label": self.label(index),
            "file_name": self.file_name(index),
        }

    def path(self, index: int) -> pathlib.Path:
        """Where an image lies."""
        return self.root / self.file_name(index)

    def label(self, index: int) -> int:
        """The place of an image's class in `class_names`."""
        return self.labels[self._class(self._position(index))]

    def file_name(self, index: int) -> str:
        """`"CLASS/xxx.jpg"`."""
        position = self._position(index)
        start = self._name_ends[position - 1] if position else 0
        name = os.fsdecode(self._names[start : self._name_ends[position]])
        return f"{self._directories[self._class(position)]}/{name}"

    def _class(self, position: int) -> int:
        return bisect.bisect_right(self._class_ends, position)

    def _position(self, index: int) -> int:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.root} has {len(self)} images, but none at {index}")
        return index % len(self)


def class_directories(root: pathlib.Path) -> list[str]:
    """The sorted names of the directories in a folder.

    Raises:
      SetupError: there are none, or images beside them.
    """
    entries = _scan(root)
    if images := sorted(entry.name for entry in entries if _is_image(entry)):
        raise SetupError(
            f"{some(images)} in {root} belong to no class: images lie in directories "
            "named after their classes, CLASS/xxx.jpg"
        )
    directories = sorted(entry.name for entry in entries if entry.is_dir())
    if not directories:
        raise SetupError(
            f"there are no directories in {root}: images lie in directories named after "
            "their classes, CLASS/xxx.jpg"
        )
    return directories


def has_splits(root: pathlib.Path) -> bool:
    """Whether a folder is `SPLIT/CLASS/xxx.jpg`, by the first directory in it.

    Raises:
      SetupError: as `class_directories`.
    """
    first, *_ = class_directories(root)
    return any(entry.is_dir() for entry in _scan(root / first))


def some(names: Sequence[str]) -> str:
    """The first few of many names, for messages."""
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3:,} more"


def _labels(
    root, directories: list[str], class_names: tuple[str, ...]
) -> tuple[int, ...]:
    """The label of each directory."""
    label_of = {name: label for label, name in enumerate(class_names)}
    if len(label_of) != len(class_names):
        twice = sorted({name for name in class_names if class_names.count(name) > 1})
        raise SetupError(f"two classes of {root} have one name: {some(twice)}")
    for name in directories:
        if name not in label_of:
            hint = did_you_mean(name, class_names)
            # The list of all classes would bury the message.
            hint = hint if len(hint) < 100 else f", one of {some(class_names)}"
            raise SetupError(f"the directory {name!r} of {root} is no class{hint}")
    return tuple(label_of[name] for name in directories)


def _image_names(directory: pathlib.Path) -> tuple[bytes, np.ndarray]:
    """The sorted names of the images in a directory, joined, and the length of each."""
    entries = _scan(directory)
    names = sorted(entry.name for entry in entries if _is_image(entry))
    if inner := sorted(entry.name for entry in entries if entry.is_dir()):
        raise SetupError(
            f"{directory} holds directories ({some(inner)}): images lie directly in "
            "directories named after their classes. If these are the classes, and "
            f"{directory.name!r} is a split, name {directory} as the folder"
        )
    names = [os.fsencode(name) for name in names]
    return b"".join(names), np.fromiter(map(len, names), np.uint16, count=len(names))


def _scan(directory: pathlib.Path) -> list[os.DirEntry]:
    try:
        with os.scandir(directory) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise SetupError(f"the image folder can't be listed: {error}") from error


def _is_image(entry: os.DirEntry) -> bool:
    return entry.name.lower().endswith(EXTENSIONS) and entry.is_file()
