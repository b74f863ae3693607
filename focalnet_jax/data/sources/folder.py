"""Image folders, `CLASS/xxx.jpg`, as sequences of records with encoded images."""

import bisect
import operator
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from focalnet_jax.data.sources.fingerprint import contents_digest, digest
from focalnet_jax.data.sources.layout import (
    check_has_no_images,
    class_directories,
    class_name,
)
from focalnet_jax.data.sources.listing import EXTENSIONS, Listing
from focalnet_jax.errors import SetupError, first_few, nearest


class ImageFolder(Sequence):
    """Records `{"image": encoded bytes, "label": int, "file_name": "CLASS/xxx.jpg"}`.

    As in torchvision's `ImageFolder`, every image below a class directory, at any depth,
    is of that class, and links are followed. The records are sorted by class directory,
    then by the directory that they lie in, then by file name. Every name that begins with
    a dot is ignored. A file is read when its record is asked for. Directories whose names
    differ only in how letters are composed, as those of macOS may, are one class.

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
            check_has_no_images(self.root / "images")
        if classes is None:
            classes = dict.fromkeys(map(class_name, self._directories))
        self.class_names = tuple(map(class_name, classes))
        self.labels = labels_of(
            [*map(class_name, self._directories)],
            self.class_names,
            of=f"the directories in {self.root}",
        )
        listing = Listing(self.root, self._directories)
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

    # A folder has no slices.
    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        """Reads a file and makes it a record.

        Raises:
          OSError: the file can't be read.
        """
        file_name = self.file_name(index)
        # By pathlib, it would take almost twice as long.
        with open(f"{self.root}/{file_name}", "rb") as file:
            image = file.read()
        return {"image": image, "label": self.label(index), "file_name": file_name}

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
        directories = [os.fsencode(class_name(name)) for name in self._directories]
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


def labels_of(
    names: Sequence[str], class_names: tuple[str, ...], *, of: str
) -> tuple[int, ...]:
    """The label of each of some classes.

    Args:
      names: of the classes.
      class_names: of all classes, by label.
      of: where the names stand, for messages.

    Raises:
      SetupError: one of them is not among all classes, or two classes have one name.
    """
    label_of = {name: label for label, name in enumerate(class_names)}
    if len(label_of) != len(class_names):
        repeated = sorted({name for name in class_names if class_names.count(name) > 1})
        raise SetupError(f"two classes of {of} have one name: {first_few(repeated)}")
    for name in names:
        if name not in label_of:
            near = nearest(name, class_names)
            hint = f", one of {first_few(class_names)}"
            hint = f"; did you mean {near!r}?" if near else hint
            raise SetupError(f"{name!r} of {of} is no class{hint}")
    return tuple(label_of[name] for name in names)
