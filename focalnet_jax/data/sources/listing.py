"""Lists the files of an image folder, and tells images from what else lies there."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np
import PIL.features

from focalnet_jax.data.sources.left_out import (
    CYCLE,
    DEAD_LINK,
    NOTE,
    SPECIAL,
    TWICE,
    LeftOut,
    kind_of_file,
)
from focalnet_jax.errors import SetupError

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


class Listing:
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


def images_and_directories(directory: pathlib.Path) -> tuple[list[str], list[str]]:
    """The sorted names of the images and of the directories in a directory."""
    names: dict[str, list[str]] = {_IMAGE: [], _DIRECTORY: []}
    for entry in _scan(directory):
        names.setdefault(_kind(entry), []).append(entry.name)
    return sorted(names[_IMAGE]), sorted(names[_DIRECTORY])


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
