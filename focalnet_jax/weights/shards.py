"""Checkpoints in several files, with a JSON index that says which tensor is in which.

`model.safetensors.index.json` lies beside `model-00001-of-00002.safetensors` and so on.
Its entry `weight_map` maps the name of each tensor to the name of a file.
"""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from etils import epath

from focalnet_jax.errors import SetupError, first_few

_LONGEST_NAME = 255  # in bytes, on usual disks
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.\w+")


def parse_index(text: str | bytes, *, origin: str) -> dict[str, str]:
    """Reads the text of an index.

    Returns:
      The name of a file beside the index for each tensor.

    Raises:
      SetupError: the text is no index; the message names `origin` and the entry.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SetupError(f"{origin} is damaged: it is no JSON, {error}") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise SetupError(
            f"{origin} is no index of shards: weight_map is {_shown(weight_map)}, and "
            "should map the name of each tensor to the name of a file"
        )
    for name, file in weight_map.items():
        # A name that leads elsewhere could have any file read, or overwritten.
        is_name = isinstance(file, str) and re.fullmatch(r"\w[\w.-]*", file)
        if not is_name or len(file.encode()) > _LONGEST_NAME:
            raise SetupError(
                f"{origin} is damaged: weight_map[{name!r}] is {_shown(file)}, and "
                "should be the name of a file beside it"
            )
    return weight_map


def read_index(path: pathlib.Path) -> dict[str, str]:
    """Reads an index and checks that all its files are there.

    Raises:
      SetupError: the index is damaged, or files are missing.
    """
    weight_map = parse_index(path.read_bytes(), origin=str(path))
    files = sorted(set(weight_map.values()))
    missing = [file for file in files if not (path.parent / file).exists()]
    if missing:
        raise SetupError(
            f"{path} names {len(files)} files, of which {len(missing)} are not beside "
            f"it: {first_few(missing)}"
        )
    return weight_map


def check_has_whole_file(directory: epath.Path, files: Sequence[str]) -> None:
    """Raises SetupError if all `files` of a directory are parts, and asks for the index.

    Otherwise one of them may be what is meant.
    """
    if all(_shard(file) for file in files):
        check_is_no_shard(pathlib.Path(directory, files[0]))


def _shard(name: str) -> re.Match[str] | None:
    """The parts of the name of one of several files; None for a whole one."""
    shard = _SHARD.fullmatch(name)
    return shard if shard and int(shard[2]) > 1 else None


def check_is_no_shard(path: pathlib.Path) -> None:
    """Raises SetupError for one of several files, which holds only a part."""
    if not (shard := _shard(path.name)):
        return
    suffix = path.suffix
    index = path.with_name(f"{shard[1]}{suffix}.index.json")
    way_out = (
        f"give its index, {index}"
        if index.exists()
        else f"get {index.name}, which belongs beside it, and give that"
    )
    raise SetupError(f"{path} is one of {int(shard[2])} parts of a checkpoint: {way_out}")


def _shown(value: Any) -> str:
    return repr(value)[:60]
