"""Digests by which a data set is known again, wherever it lies."""

import concurrent.futures
import hashlib
import os
from collections.abc import Callable

from etils import epath

from focalnet_jax.paths import is_remote

# So many files at most are asked for their sizes, and so many are opened; they are spread
# evenly over all. So the digest of 14 million files takes seconds.
_SIZES = 100_000
_OPENED = 1_000
_FIRST_BYTES = 64 << 10  # that are read of a file
_THREADS = 16  # They mostly wait for a disk or a network.


def digest(*parts: bytes) -> str:
    """A short digest of some bytes."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(b"%d:" % len(part))
        whole.update(part)
    return whole.hexdigest()[:16]


def contents_digest(count: int, path_of: Callable[[int], os.PathLike | str]) -> str:
    """A digest of the sizes of files, and of the first bytes of some of them.

    A file that can't be read counts as one without size and bytes: an error is said where
    its record is asked for.

    Args:
      count: of the files.
      path_of: the path of a file by its index.
    """
    sized, opened = _spread(count, _SIZES), _spread(count, _OPENED)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        # A thread takes many files, since each is quickly done on a disk.
        pieces = [sized[start::_THREADS] for start in range(_THREADS)]
        sizes = [*pool.map(lambda piece: [_size(path_of(i)) for i in piece], pieces)]
        starts = [*pool.map(lambda i: _digest_of_first_bytes(path_of(i)), opened)]
    return digest(repr((count, sizes, starts)).encode())


def _spread(count: int, most: int) -> list[int]:
    """Indices below `count`, all of them or `most`, evenly spread."""
    chosen = min(count, most)
    return [i * count // chosen for i in range(chosen)]


def _size(path: os.PathLike | str) -> int | None:
    try:
        if is_remote(path):
            return epath.Path(path).stat().length
        return os.stat(path).st_size
    except OSError:
        return None


def _digest_of_first_bytes(path: os.PathLike | str) -> str | None:
    try:
        with epath.Path(path).open("rb") if is_remote(path) else open(path, "rb") as file:
            return digest(file.read(_FIRST_BYTES))
    except OSError:
        return None
