"""Data sets of many files, written so that a run that is cut short can continue."""

import contextlib
import dataclasses
import errno
import fcntl
import pathlib
import shlex
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import tqdm

from focalnet_jax.data.sources.shards import (
    read_checksums,
    sha256,
    write_checksums,
    write_shard,
)
from focalnet_jax.errors import SetupError
from focalnet_jax.paths import written_aside


class Prepared(NamedTuple):
    """A data set that can be opened.

    Attributes:
      name: the name by which `open_source` opens it.
      data_dir: the directory of data sets in which it lies.
      existed: whether it was complete before, so that nothing was written.
    """

    name: str
    data_dir: pathlib.Path
    existed: bool = False


@dataclasses.dataclass(frozen=True)
class ShardFile:
    """A file to write.

    Attributes:
      file_name: the path within the data set's directory.
      num_records: the number of records that the file is going to have.
      num_bytes: the size of the data that the records are made from, for the progress
        bar.
      payloads: a function that yields the records.
    """

    file_name: str
    num_records: int
    num_bytes: int
    payloads: Callable[[], Iterable[bytes]]


def write_data_set(
    directory: pathlib.Path,
    shards: list[ShardFile],
    write_metadata: Callable[[pathlib.Path], None],
    *,
    fingerprint: str,
) -> bool:
    """Writes the files of a data set, and then its metadata.

    They are written to a directory beside `directory`, which gets its final name at the
    end. If the call is cut short, what is finished stays there, and the next call
    continues.

    Args:
      directory: the directory of the data set. If there is a data set already, nothing
        is written.
      shards: the files.
      write_metadata: a function that is given the directory with all files, and makes it
        a data set.
      fingerprint: hexadecimal digits that depend on everything that is written. They are
        part of the name of the directory beside, so a call continues only if nothing has
        changed.

    Returns:
      whether the data set existed already.

    Raises:
      SetupError: the disk is full, another process is writing, or there is an unfinished
        data set with another fingerprint; or the payloads raise it.
    """
    lock = directory.with_name(f".{directory.name}.lock")
    with _locked(lock):
        existed = (directory / "dataset_info.json").exists()
        if not existed:
            begun = _begin(directory, fingerprint[:12])
            with _full_disk_explained(begun, len(shards)):
                _write_shards(begun, shards)
                write_metadata(begun)
            begun.rename(directory)
        lock.unlink(missing_ok=True)
    if not existed:
        records = sum(shard.num_records for shard in shards)
        print(f"prepared {directory}: {records:,} records in {len(shards):,} files")
    return existed


def _begin(directory: pathlib.Path, fingerprint: str) -> pathlib.Path:
    """Makes the directory beside that a call writes to, if it is not there already."""
    if directory.exists():
        raise SetupError(f"{directory} is there, but is no data set: move it away")
    begun = directory.with_name(f"{directory.name}.begun-{fingerprint}")
    for other in directory.parent.glob(f"{directory.name}.begun-*"):
        if other != begun:
            raise SetupError(
                f"{other} was begun with other options, or from other files than "
                f"there are now. To start anew: rm -r {shlex.quote(str(other))}"
            )
    begun.mkdir(exist_ok=True)
    return begun


@contextlib.contextmanager
def _full_disk_explained(begun: pathlib.Path, num_files: int) -> Iterator[None]:
    """Turns the OSError of a full disk into a SetupError that says how to continue."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SetupError(
            f"no space left in {begun.parent}: {len(read_checksums(begun)):,} of "
            f"{num_files:,} files are finished and stay. Make room, and give the "
            "same command again"
        ) from error


def _write_shards(directory: pathlib.Path, shards: list[ShardFile]) -> None:
    """Writes the files that are not finished, and the checksum of each."""
    for leftover in directory.rglob(".*"):
        leftover.unlink()  # A run that was killed has left it half-written.
    checksums = read_checksums(directory)
    bar = tqdm.tqdm(
        total=sum(shard.num_bytes for shard in shards),
        unit="B",
        unit_scale=True,
        disable=None,
    )
    with bar:
        finished = _finished(directory, shards, checksums, bar)
        for shard in shards:
            if shard.file_name in finished:
                continue
            checksums[shard.file_name] = _write_shard(directory, shard, bar)
            write_checksums(directory, checksums)
            if bar.disable:  # The output is no terminal.
                print(f"finished {shard.file_name}", flush=True)


def _finished(
    directory: pathlib.Path,
    shards: list[ShardFile],
    checksums: dict[str, str],
    bar: tqdm.tqdm,
) -> set[str]:
    """The names of the files that are there and fit their checksums."""
    finished = set()
    for shard in shards:
        path = directory / shard.file_name
        if not path.exists():
            continue
        if sha256(path) == checksums.get(shard.file_name):
            finished.add(shard.file_name)
            bar.update(shard.num_bytes)
        else:
            bar.write(f"{path.name} doesn't fit its checksum, and is written anew")
    if finished:
        bar.write(f"{len(finished):,} of {len(shards):,} files are finished already")
    return finished


def _write_shard(directory: pathlib.Path, shard: ShardFile, bar: tqdm.tqdm) -> str:
    """Writes a file aside and renames it; returns its checksum."""
    with written_aside(directory / shard.file_name) as aside:
        count = write_shard(aside, _with_progress(shard, bar))
        if count != shard.num_records:
            raise SetupError(
                f"dataset_info.json promises {shard.num_records:,} records for "
                f"{shard.file_name}, but the original has {count:,}"
            )
        return sha256(aside)


def _with_progress(shard: ShardFile, bar: tqdm.tqdm) -> Iterator[bytes]:
    """Yields a shard's payloads and moves the progress bar."""
    bar.set_description(shard.file_name)
    for i, payload in enumerate(shard.payloads()):
        yield payload
        bar.set_postfix_str(f"{i + 1:,}/{shard.num_records:,} records", refresh=False)
        bar.update(shard.num_bytes / max(shard.num_records, 1))


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Keeps other processes out; the system unlocks when this process ends in any way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SetupError(f"another process is writing to {path.parent}") from error
        yield
