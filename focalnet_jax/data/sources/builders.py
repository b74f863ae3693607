"""Data sets of TFDS by name: found, or said where they were sought."""

import os
import pathlib

import tensorflow_datasets as tfds
from etils import epath

from focalnet_jax.errors import SetupError, did_you_mean
from focalnet_jax.paths import absolute_path, is_remote


def open_builder(
    name: str, *, data_dir: str | None, data_dir_option: str
) -> tfds.core.DatasetBuilder:
    """Opens a data set, which needn't be prepared if TFDS knows it.

    Args:
      name: as TFDS spells it, with config and version if need be.
      data_dir: where data sets lie; None for TFDS's own place.
      data_dir_option: how a user says that, for messages.

    Raises:
      SetupError: no such data set, or one whose preparation was cut short.
    """
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        place = absolute_path(data_dir or default_data_dir())
        begun = [path.name for path in place.glob(f"{name.split(':')[0]}/*.begun-*")]
        if begun:
            raise SetupError(
                f"{name!r} is not finished in {place} ({begun[0]}): the command that "
                "prepares it goes on when it is given again"
            ) from error
        raise SetupError(
            f"{name!r} is no data set in {place}, nor one that TFDS knows"
            f"{_near(name, place)}. Where data sets lie is {data_dir_option}, or else "
            "TFDS_DATA_DIR in the environment"
        ) from error
    except (AssertionError, ValueError) as error:  # an unknown config or version
        reason = str(error).splitlines()[0]
        raise SetupError(
            f"{name!r} can't be opened: {reason}{folder_hint(name)}"
        ) from error


def _near(name: str, place: epath.Path) -> str:
    if hint := folder_hint(name):
        return hint
    here = {
        str(path.parent.parent.relative_to(place))
        for depth in ("*/*", "*/*/*")  # without and with a config
        for path in place.glob(f"{depth}/dataset_info.json")
    }
    near = did_you_mean(name, here | {*tfds.list_builders(with_community_datasets=False)})
    if "did you mean" in near:
        return near
    return f"; there are {', '.join(sorted(here))}" if here else ""


def folder_hint(name: str) -> str:
    """How to spell it if it was meant for an image folder."""
    return f"; an image folder is written folder:{name}" if os.path.isdir(name) else ""


def default_data_dir() -> str:
    """TFDS's own place."""
    return os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"


def path_on_disk(path: str | os.PathLike) -> pathlib.Path:
    """An absolute path, with `~` expanded.

    Raises:
      SetupError: it is the address of a bucket.
    """
    if is_remote(path):
        raise SetupError(
            f"{path} is in a bucket, and this works on disks: copy what it needs from "
            "there, and the result back, with gcloud storage cp -r"
        )
    return pathlib.Path(os.path.abspath(os.path.expanduser(path)))
