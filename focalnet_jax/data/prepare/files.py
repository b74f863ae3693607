"""Files of a folder as records of ArrayRecord files: their names, sizes and order."""

import concurrent.futures
import errno
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds

from focalnet_jax.data.prepare.examples import serializer
from focalnet_jax.data.prepare.writing import ShardFile
from focalnet_jax.errors import SetupError, argument, first_few

SHARD_SIZE = 512 << 20  # bytes in a file; TFDS recommends 64 MiB to 1 GiB
VERSION = "1.0.0"  # of every data set that is made from a folder
_THREADS = 16  # for reading images; these threads mostly wait


class Files(Protocol):
    """Files of a folder, as records."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> dict[str, Any]: ...
    def file_name(self, index: int) -> str:
        """The path of a file within the folder."""


def check_name(name: str) -> None:
    """Raises SetupError for a name that a data set can't get."""
    given = f"{argument('name')}={name}"
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise SetupError(f"{given}: it has to be of the letters a-z, digits and _")
    if name in tfds.list_builders(with_community_datasets=False):
        raise SetupError(f"{given} is a data set of TFDS: choose another name")


def check_split_names(splits: Sequence[str], root: pathlib.Path) -> None:
    """Raises SetupError for a name that TFDS can't give to a split."""
    refused = [name for name in splits if not re.fullmatch(r"\w+", name) or name == "all"]
    if refused:
        raise SetupError(
            f"{first_few(refused)} in {root} can't be names of splits: use letters, "
            "digits and _"
        )


def file_sizes(
    count: int, path_of: Callable[[int], pathlib.Path], *, root: pathlib.Path
) -> np.ndarray:
    """The size of each file in bytes, int64 `[n]`.

    Args:
      count: of the files.
      path_of: the path of a file by its index.
      root: the folder that they lie in, for messages.

    Raises:
      SetupError: a file is empty or cannot be read.
    """

    def sizes(start: int) -> list[int]:
        paths = [path_of(i) for i in range(start, min(start + 1024, count))]
        for path in paths:
            if not os.access(path, os.R_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return [path.stat().st_size for path in paths]

    try:
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            result = np.concatenate([*pool.map(sizes, range(0, count, 1024))])
    except OSError as error:
        raise SetupError(f"a file of {root} can't be read: {error}") from error
    if empty := np.flatnonzero(result == 0).tolist():
        names = [str(path_of(i).relative_to(root)) for i in empty]
        raise SetupError(
            f"empty files in {root}: {first_few(names)}. Replace or delete them"
        )
    return result


def order_keys(folder: Files) -> np.ndarray:
    """A hash of each file's name, uint64 `[n]`, by which the records are sorted.

    The order depends on nothing but the names, and it mixes the classes.
    """
    names = (os.fsencode(folder.file_name(i)) for i in range(len(folder)))
    digests = (hashlib.blake2b(name, digest_size=8).digest() for name in names)
    keys = (int.from_bytes(digest, "little") for digest in digests)
    return np.fromiter(keys, np.uint64, count=len(folder))


def shard_files(
    folder: Files,
    sizes: np.ndarray,
    order: np.ndarray,
    *,
    prefix: str,
    features: tfds.features.FeaturesDict,
    shards: int | None,
) -> list[ShardFile]:
    """The files to write for a split, with about the same number of images in each.

    Args:
      folder: the images.
      sizes: the size of each image in bytes, int64 `[n]`.
      order: the indices of the images in the order in which they are stored, `[n]`.
      prefix: how the names of the files begin.
      features: the features of the data set.
      shards: the number of files; None for files of about `SHARD_SIZE`.
    """
    count = min(shards or -(-int(sizes.sum()) // SHARD_SIZE), len(folder))
    ends = [round(len(folder) * i / count) for i in range(1, count)]
    return [
        ShardFile(
            file_name=f"{prefix}.array_record-{i:05}-of-{count:05}",
            num_records=len(indices),
            num_bytes=int(sizes[indices].sum()),
            payloads=partial(_examples, folder, indices, features),
        )
        for i, indices in enumerate(np.split(order, ends))
    ]


def _examples(
    folder: Files, indices: np.ndarray, features: tfds.features.FeaturesDict
) -> Iterator[bytes]:
    """Yields the images at these indices as serialised examples."""
    serialize = serializer(features)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        # The pool reads all that it is given at once, so it gets a few at a time.
        for start in range(0, len(indices), 4 * _THREADS):
            piece = indices[start : start + 4 * _THREADS]
            for record in pool.map(folder.__getitem__, piece):
                # The name of a file need not be UTF-8.
                record["file_name"] = os.fsencode(record["file_name"])
                yield serialize(record)
