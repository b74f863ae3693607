"""What lies in a folder of photographs: its images, their classes and splits, and faults.

The folder is `DIR/CLASS/xxx.jpg`, or `DIR/train/CLASS/xxx.jpg` with `val` or `test`
beside `train`.
"""

import concurrent.futures
import hashlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

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
from focalnet_jax.errors import SetupError, first_few, first_line
from focalnet_jax.paths import did_you_mean_beside

T = TypeVar("T")
R = TypeVar("R")

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
      digests: the SHA-256 of all others, by file: equal ones are copies.
    """

    faults: dict[str, str]
    digests: dict[str, str]


def list_images(root: pathlib.Path) -> Contents:
    """Lists the images of a folder, without reading them.

    Raises:
      SetupError: there is no such folder, no image in it, or a single class; images lie
        beside the classes; or directories can be taken for splits as well as for classes.
    """
    if not root.is_dir():
        if root.exists():
            raise SetupError(f"{root} is a file: DIR is a directory with one per class")
        raise SetupError(f"there is no directory {root}{did_you_mean_beside(root)}")
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
            f"  If they are classes: {link_as_split(root)}, and give NEW\n"
            f"  If one of them is the folder of classes, give it: {root / inner[0]}"
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


class _Found(NamedTuple):
    """The digest of an image that can be used, or what is wrong with another one."""

    digest: str = ""
    fault: str = ""


def inspect_images(root: pathlib.Path, images: Sequence[Image]) -> Inspection:
    """Reads and decodes all images, with a bar on a terminal if they are many."""

    def inspect(image: Image) -> _Found:
        try:
            encoded = (root / image.file).read_bytes()
            decode(encoded)
        except BadRecordError as error:
            return _Found(fault=str(error))
        except OSError as error:
            return _Found(fault=error.strerror or first_line(error))
        return _Found(digest=_digest(encoded))

    results = _in_threads(inspect, images, title="looking at the images")
    found = {image.file: result for image, result in zip(images, results)}
    return Inspection(
        faults={file: each.fault for file, each in found.items() if not each.digest},
        digests={file: each.digest for file, each in found.items() if each.digest},
    )


def first_changed(root: pathlib.Path, digests: Mapping[str, str]) -> str | None:
    """The first of some files whose contents are not those that it had; None if all are.

    Args:
      root: the folder that they lie in.
      digests: the digest that `inspect_images` has found of each; an empty one fits all.
    """

    def is_same(file: str) -> bool:
        try:
            return digests[file] in ("", _digest((root / file).read_bytes()))
        except OSError:
            return False

    results = _in_threads(is_same, [*digests], title="comparing the images")
    return next((file for file, same in zip(digests, results) if not same), None)


def _digest(encoded: bytes) -> str:
    return hashlib.sha256(encoded).hexdigest()


def _in_threads(
    function: Callable[[T], R], items: Sequence[T], *, title: str
) -> Iterator[R]:
    """The results for all items, in their order; with a bar if they are many."""
    # One more than there are cores, since one may wait for a disk.
    with concurrent.futures.ThreadPoolExecutor((os.cpu_count() or 1) + 1) as pool:
        yield from tqdm(
            pool.map(function, items),
            desc=title,
            total=len(items),
            leave=False,
            disable=len(items) <= _FEW or not sys.stderr.isatty(),
        )
