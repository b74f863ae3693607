"""Data sets of TFDS by name: opens them, or says where they were sought."""

import os
import pathlib

import tensorflow_datasets as tfds
from etils import epath

from focalnet_jax.errors import SetupError, argument, first_line, nearest
from focalnet_jax.paths import absolute_path, is_remote, with_home


def open_builder(name: str, *, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """Opens a data set, which need not be prepared if TFDS knows it.

    Args:
      name: the name as TFDS spells it, with config and version if need be.
      data_dir: the directory of all data sets; None for TFDS's own place.

    Raises:
      SetupError: there is no such data set, its preparation was cut short, or there is
        no such directory.
    """
    place = absolute_path(data_dir or default_data_dir())
    try:
        return tfds.builder(name, data_dir=data_dir and os.fspath(place))
    except tfds.core.DatasetNotFoundError as error:
        begun = [path.name for path in place.glob(f"{name.split(':')[0]}/*.begun-*")]
        if begun:
            raise SetupError(
                f"{name!r} is not finished in {place} ({begun[0]}): the command that "
                "prepares it goes on when it is given again"
            ) from error
        raise SetupError(
            f"{name!r} is no data set in {place}, nor one that TFDS knows"
            f"{_alternatives(name, place)}\nData sets lie where {argument('data_dir')} "
            "says, or else TFDS_DATA_DIR in the environment"
        ) from error
    except (AssertionError, ValueError) as error:  # an unknown config or version
        raise SetupError(
            f"{name!r} can't be opened: {first_line(error)}{_folder_hint(name)}"
        ) from error


def open_prepared(name: str, *, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """Opens a data set that is prepared, as `open_builder` does.

    Raises:
      SetupError: there is no such data set, or it is not prepared.
    """
    builder = open_builder(name, data_dir=data_dir)
    if not builder.is_prepared():
        raise SetupError(
            f"{name!r} is not prepared in {builder.data_dir}{_folder_hint(name)}. If the "
            f"data set lies elsewhere, name the place, {argument('data_dir')}=DIR; else "
            "prepare it first:\n"
            f"  pip install 'focalnet_jax[prepare]' && tfds build {name}"
        )
    return builder


def _alternatives(name: str, place: epath.Path) -> str:
    """What may have been meant: a folder, a similar name, or else all names here."""
    if hint := _folder_hint(name):
        return hint
    here = {
        str(path.parent.parent.relative_to(place))
        for depth in ("*/*", "*/*/*")  # without and with a config
        for path in place.glob(f"{depth}/dataset_info.json")
    }
    known = tfds.list_builders(with_community_datasets=False)
    if near := nearest(name, here.union(known)):
        return f"; did you mean {near!r}?"
    return f"; there are {', '.join(sorted(here))}" if here else ""


def _folder_hint(name: str) -> str:
    """How to spell the name if it was meant for an image folder."""
    return f"; an image folder is written folder:{name}" if os.path.isdir(name) else ""


def default_data_dir() -> str:
    """The directory of data sets that TFDS uses by default.

    Raises:
      SetupError: it would be in a home directory, and there is none.
    """
    if place := os.environ.get("TFDS_DATA_DIR"):
        return place
    try:
        return with_home("~/tensorflow_datasets")
    except SetupError as error:
        raise SetupError(
            "there is no home directory, in which data sets lie by default: name another "
            f"place, {argument('data_dir')}=DIR, or TFDS_DATA_DIR in the environment"
        ) from error


def path_on_disk(path: str | os.PathLike) -> pathlib.Path:
    """An absolute path, with `~` expanded.

    Raises:
      SetupError: the path is the address of a bucket.
    """
    found = absolute_path(path)
    if is_remote(found):
        raise SetupError(
            f"{path} is in a bucket, and this works on disks: copy what it needs from "
            "there, and the result back, with gcloud storage cp -r"
        )
    return pathlib.Path(found)
