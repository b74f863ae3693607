"""ImageNet-ReaL: sets of right labels for the validation images of ImageNet-1K.

Beyer et al., arXiv 2006.07159. The file `real.json` of google-research's repository
reassessed-imagenet has a list of labels for each image, in the order of the images'
numbers. A list may be empty: then no label is right, and the image does not count.
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from focalnet_jax.data.sources.folder import ImageFolder
from focalnet_jax.data.sources.opening import LABEL_SETS, Source
from focalnet_jax.errors import SetupError, first_line, shown

_CLASSES = 1000
_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.\w+")


class _RealRecords(Sequence):
    """The records of a folder, with sets of labels.

    Args:
      folder: its records.
      labels: the set of each record.
    """

    def __init__(self, folder: ImageFolder, labels: Sequence[Sequence[int]]):
        self._folder, self._labels = folder, labels

    def __len__(self) -> int:
        return len(self._folder)

    # A folder has no slices.
    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        return self._folder[index] | {LABEL_SETS: self._labels[index]}


def with_real_labels(source: Source, path: str | os.PathLike) -> Source:
    """The validation images of ImageNet-1K with the labels of ImageNet-ReaL.

    Args:
      source: an image folder whose files have their official names,
        `ILSVRC2012_val_00000001.JPEG` and so on.
      path: of `real.json`.

    Raises:
      SetupError: the file is not such a list, or is one for other images.
    """
    path = pathlib.Path(path)
    labels = _read(path)
    folder = source.records
    assert isinstance(folder, ImageFolder)  # As the caller has to see to.
    if len(labels) != len(folder):
        raise SetupError(
            f"{path} has {len(labels):,} sets of labels, and {source.name} has "
            f"{len(folder):,} images: both have to be of the whole validation split, "
            "of 50,000 images"
        )
    chosen = []
    for index in range(len(folder)):
        name = os.path.basename(folder.file_name(index))
        number = _IMAGE.fullmatch(name)
        if not number or not 1 <= int(number[1]) <= len(labels):
            raise SetupError(
                f"{source.describe(index)} has no name from ILSVRC2012_val_00000001 to "
                f"ILSVRC2012_val_{len(labels):08}: by its number an image is found in "
                f"{path}"
            )
        chosen.append(labels[int(number[1]) - 1])
    return dataclasses.replace(
        source,
        records=_RealRecords(folder, chosen),
        num_classes=_CLASSES,
        label_feature=LABEL_SETS,
        has_label_sets=True,
    )


def _read(path: pathlib.Path) -> list[list[int]]:
    try:
        labels = json.loads(path.read_bytes())
    except OSError as error:
        raise SetupError(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SetupError(f"{path} is no JSON: {first_line(error)}") from error
    if not isinstance(labels, list):
        raise SetupError(f"{path} is no list of lists of labels, but {shown(labels)}")
    for number, label_set in enumerate(labels, start=1):
        if not isinstance(label_set, list) or not all(map(_is_label, label_set)):
            raise SetupError(
                f"{path} has {shown(label_set)} for image {number}, and not a list of "
                f"labels from 0 to {_CLASSES - 1}"
            )
    return labels


def _is_label(value: Any) -> bool:
    return type(value) is int and 0 <= value < _CLASSES
