"""What lies in a folder of photographs: its images, their classes and splits, and faults.

The folder is `DIR/CLASS/xxx.jpg`, or `DIR/train/CLASS/xxx.jpg` with `val` or `test`
beside `train`.
"""

import concurrent.futures
import hashlib
import os
import pathlib
import sys
from typing import NamedTuple

from tqdm import tqdm

from focalnet_jax.data import BadRecordError
from focalnet_jax.data.images.decoding import decode
from focalnet_jax.data.sources.folder import ImageFolder
from focalnet_jax.data.sources.layout import (
    class_directories,
    folder_layout,
    link_as_split,
    use_of_split,
)
from focalnet_jax.errors import SetupError, first_few, first_line, nearest

# So many images are looked at without a bar.
_FEW = 200


class Image(NamedTuple):
    """An image of a folder.

    Attributes:
      file: its path within the folder.
      class_name: the name of its class.
      split: `"train"`, `"val"` or `"test"`; None where the folder has no splits.
    """

    file: str
    class_name: str
    split: str | None


class Contents(NamedTuple):
    """The images of a folder, sorted, and what is left out, as lines for people."""

    images: list[Image]
    remarks: tuple[str, ...]

    @property
    def classes(self) -> set[str]:
        """The names of the classes."""
        return {image.class_name for image in self.images}


class Inspection(NamedTuple):
    """What decoding all images has shown.

    Attributes:
      faults: what is wrong with an image that can't be used, by its file.
      digests: of the bytes of all others, by file: equal ones are copies.
    """

    faults: dict[str, str]
    digests: dict[str, bytes]


def list_images(root: pathlib.Path) -> Contents:
    """Lists the images of a folder, without reading them.

    Raises:
      SetupError: there is no such folder, no image in it, or a single class; images lie
        beside the classes; or directories can be taken for splits as well as for classes.
    """
    if not root.is_dir():
        if root.exists():
            raise SetupError(f"{root} is a file: DIR is a directory with one per class")
        raise SetupError(f"there is no directory {root}{_nearest_beside(root)}")
    directories = _directories_of_splits(root)
    images, remarks = [], ()
    for split, directory in directories.items():
        folder = ImageFolder(directory)
        remarks += folder.remarks
        below = directory.relative_to(root)
        images += [
            Image(
                str(below / folder.file_name(index)),
                folder.class_names[folder.label(index)],
                split,
            )
            for index in range(len(folder))
        ]
    names = {directory.name for directory in directories.values()}
    if None not in directories and (unused := {*class_directories(root)} - names):
        remarks += (f"no splits, and left out of {root}: {first_few(sorted(unused))}",)
    contents = Contents(images, remarks)
    if len(contents.classes) == 1:
        raise SetupError(
            f"all images in {root} are of one class, {contents.classes.pop()!r}: a net "
            "learns to tell at least two from each other, each in a directory of its own"
        )
    return contents


def _nearest_beside(root: pathlib.Path) -> str:
    try:
        near = nearest(root.name, os.listdir(root.parent))
    except OSError:
        return ""
    return f"; did you mean {root.parent / near}?" if near else ""


def _directories_of_splits(root: pathlib.Path) -> dict[str | None, pathlib.Path]:
    """The directory of each split by its use; the folder itself for None if it has none.

    A folder whose only split is the one for training is as that one.
    """
    layout = folder_layout(root)
    if layout == "classes":
        return {None: root}
    inner = class_directories(root)
    if layout == "either":
        if len(inner) == 1:
            raise SetupError(
                f"{root} has one directory, {inner[0]!r}, which holds directories and no "
                f"images: if these are the classes, give {root / inner[0]}"
            )
        raise SetupError(
            f"{first_few(inner)} in {root} can be taken for splits or for classes: they "
            "hold directories and no images.\n"
            "  If they are splits, name them train and val, or train and test.\n"
            f"  If they are classes: {link_as_split(root)}, and give NEW"
        )
    uses: dict[str | None, pathlib.Path] = {}
    for name in inner:
        if (use := use_of_split(name)) is None:
            continue
        if use in uses:
            raise SetupError(
                f"{uses[use].name!r} and {name!r} in {root} are both for {_FOR[use]}: "
                "leave one of them there, or put all images into one"
            )
        uses[use] = root / name
    if "train" not in uses:
        raise SetupError(
            f"{root} has the splits {first_few(inner)}, and none to train on: name one "
            "of them train"
        )
    return {None: uses["train"]} if len(uses) == 1 else uses


_FOR = {"train": "training", "val": "choosing the best model", "test": "testing"}


def inspect_images(root: pathlib.Path, images: list[Image]) -> Inspection:
    """Reads and decodes all images, with a bar on a terminal if they are many."""

    def inspect(image):
        try:
            encoded = (root / image.file).read_bytes()
            decode(encoded)
        except BadRecordError as error:
            return str(error)
        except OSError as error:
            return error.strerror or first_line(error)
        return hashlib.sha256(encoded).digest()

    faults: dict[str, str] = {}
    digests: dict[str, bytes] = {}
    # One more than there are cores, since one may wait for a disk.
    with concurrent.futures.ThreadPoolExecutor((os.cpu_count() or 1) + 1) as pool:
        found = tqdm(
            pool.map(inspect, images),
            desc="looking at the images",
            total=len(images),
            leave=False,
            disable=len(images) <= _FEW or not sys.stderr.isatty(),
        )
        for image, result in zip(images, found):
            (faults if isinstance(result, str) else digests)[image.file] = result
    return Inspection(faults, digests)
