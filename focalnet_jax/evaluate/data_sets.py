"""The evaluation sets of ImageNet-1K, and where they lie.

They are data sets of TFDS, or the folders that their authors publish. All count the
1,000 classes of ImageNet-1K.
"""

import dataclasses
import os
import pathlib
import re
from typing import NamedTuple

from focalnet_jax.data import Source, open_source
from focalnet_jax.data.sources.builders import open_builder
from focalnet_jax.data.sources.imagenet import SUBSETS
from focalnet_jax.data.sources.layout import FOLDER
from focalnet_jax.data.sources.real import with_real_labels
from focalnet_jax.errors import (
    SetupError,
    argument,
    counted,
    did_you_mean,
    first_few,
)
from focalnet_jax.paths import (
    absolute_path,
    did_you_mean_beside,
    is_remote,
    with_home,
)

REAL = "imagenet2012_real"
_REAL_FILE = "real.json"


class DataSet(NamedTuple):
    """An evaluation set.

    Attributes:
      title: for people.
      split: in TFDS.
      images: how many it has, all of them.
      folder: names of folders that hold it, as a pattern of lower-case letters and
        digits, which are all that is compared.
      archive: where the folder is published.
    """

    title: str
    split: str
    images: int
    folder: str
    archive: str


DATA_SETS = {
    "imagenet2012": DataSet(
        "ImageNet-1K",
        "validation",
        50_000,
        "(imagenet|ilsvrc|imagenet1k|imagenet2012|ilsvrc2012)?(img)?(val|validation)?",
        "https://image-net.org",
    ),
    REAL: DataSet(
        "ReaL",
        "validation",
        50_000,
        "(imagenet|imagenet2012)?real",
        "https://github.com/google-research/reassessed-imagenet, whose real.json is for "
        "the validation images of ImageNet-1K",
    ),
    "imagenet_v2": DataSet(
        "V2",
        "test",
        10_000,
        "imagenetv2(matchedfrequency(formatval)?)?",
        "https://huggingface.co/datasets/vaishaal/ImageNetV2",
    ),
    "imagenet_a": DataSet(
        "A",
        "test",
        7_500,
        "imageneta",
        "https://github.com/hendrycks/natural-adv-examples",
    ),
    "imagenet_r": DataSet(
        "R",
        "test",
        30_000,
        "imagenetr(endition)?",
        "https://github.com/hendrycks/imagenet-r",
    ),
    "imagenet_sketch": DataSet(
        "Sketch",
        "test",
        50_889,
        "(imagenet)?sketch",
        "https://github.com/HaohanWang/ImageNet-Sketch",
    ),
}


class Asked(NamedTuple):
    """What is to be evaluated on.

    Attributes:
      name: in `DATA_SETS`.
      folder: where its images lie; None for TFDS's own place.
    """

    name: str
    folder: pathlib.Path | None = None


class Opened(NamedTuple):
    """A data set as it is found.

    Attributes:
      name: in `DATA_SETS`.
      source: its records; None if it is not here.
      how: the end of a sentence on why it is not here, and how to get it.
      remarks: lines for people on what is left out, or missing.
    """

    name: str
    source: Source | None
    how: str = ""
    remarks: tuple[str, ...] = ()


def read_data(text: str) -> Asked:
    """Reads a value of `--data`: NAME, NAME=DIR or DIR.

    Raises:
      SetupError: there is no data set of this name, or no such folder.
    """
    name, equals, place = text.partition("=")
    if equals:
        if name not in DATA_SETS:
            raise _unknown(name)
        if not place:
            raise SetupError(f"--data={text} names no folder: it is --data={name}=DIR")
        return Asked(name, _folder(place))
    if text in DATA_SETS:
        return Asked(text)
    if not os.path.isdir(with_home(text)):
        raise _unknown(text)
    folder = _folder(text)
    letters = re.sub(r"[^a-z0-9]", "", folder.name.lower())
    fitting = [n for n, d in DATA_SETS.items() if re.fullmatch(d.folder, letters)]
    if not fitting or not letters:
        raise SetupError(
            f"the name of {text} does not say which data set it is: give it as "
            f"NAME={text}, where NAME is one of {', '.join(DATA_SETS)}"
        )
    return Asked(fitting[0], folder)


def _unknown(name: str) -> SetupError:
    return SetupError(
        f"{name!r} is neither an evaluation set nor a folder"
        f"{did_you_mean(name, DATA_SETS)}"
    )


def _folder(place: str) -> pathlib.Path:
    path = absolute_path(place.removeprefix(FOLDER))
    if is_remote(path):
        raise SetupError(f"{place} is in a bucket: an image folder has to be on a disk")
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise SetupError(f"there is no folder {folder}{did_you_mean_beside(folder)}")
    return folder


def open_data(
    asked: Asked, *, data_dir: str | None = None, real: str | None = None
) -> Opened:
    """Opens a data set, if it is here.

    Args:
      asked: the data set.
      data_dir: where data sets of TFDS lie; None for TFDS's own place.
      real: the path of `real.json`, for ReaL in a folder; None for one beside the images
        or beside their folder.

    Raises:
      SetupError: it is here and can't be used.
    """
    data_set = DATA_SETS[asked.name]
    if asked.folder is None:
        if not open_builder(asked.name, data_dir=data_dir).is_prepared():
            return Opened(asked.name, None, _how(asked.name, data_dir))
        source = open_source(asked.name, split=data_set.split, data_dir=data_dir)
        return _checked(asked.name, source)
    folder = asked.folder / "val"
    if not folder.is_dir():
        folder = asked.folder
    source = open_source(
        f"{FOLDER}{folder.parent}", split=folder.name, classes="imagenet2012"
    )
    # A folder that lacks classes is not one of fewer classes.
    source = dataclasses.replace(source, subset=SUBSETS.get(asked.name))
    if asked.name == REAL:
        beside = [place / _REAL_FILE for place in (folder, *folder.parents[:2])]
        found = real
        if found is None:
            found = next((str(path) for path in beside if path.is_file()), None)
        if found is None:
            how = f"is not here: get {data_set.archive}, and name it: --real=FILE"
            return Opened(asked.name, None, how)
        source = with_real_labels(source, found)
    return _checked(asked.name, source)


def _checked(name: str, source: Source) -> Opened:
    """Says what the source lacks; raises SetupError for classes that the set lacks."""
    data_set, remarks = DATA_SETS[name], [*source.remarks]
    labels = {*getattr(source.records, "labels", ())}  # of a folder's directories
    if others := sorted(labels - {*SUBSETS.get(name, labels)}):
        names = first_few([source.class_names[label] for label in others])
        raise SetupError(
            f"{source.name} has {names}, which {data_set.title} lacks: it is another "
            "data set"
        )
    if (count := len(source)) != data_set.images:
        part = "a part of it" if count < data_set.images else "more than that"
        remarks.append(
            f"{source.name} has {counted(count, 'image')}, and {data_set.title} has "
            f"{data_set.images:,}: the accuracy is of {part}"
        )
    return Opened(name, source, remarks=tuple(remarks))


def _how(name: str, data_dir: str | None) -> str:
    option = f" --data_dir={data_dir}" if data_dir else ""
    manual = " --manual_dir=DIR, where the official archives lie,"
    return (
        "is not here: pip install 'focalnet_jax[prepare]' && tfds build "
        f"{name} --file_format=array_record{option}"
        f"{manual if name.startswith('imagenet2012') else ''} prepares it. Or give its "
        f"folder, {argument('data')}={name}=DIR, from {DATA_SETS[name].archive}"
    )
