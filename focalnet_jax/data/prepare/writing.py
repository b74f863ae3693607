"""Data sets of many files, written such that a run that is cut short can go on."""

import contextlib
import dataclasses
import errno
import fcntl
import pathlib
import shlex
from collections.abc import Callable, Iterable, Iterator

import tqdm

from focalnet_jax.data.sources.shards import (
    read_checksums,
    sha256,
    write_checksums,
    write_shard,
)
from focalnet_jax.errors import SetupError
from focalnet_jax.paths import written_aside


@dataclasses.dataclass(frozen=True)
class ShardFile:
    """A file to write.

    Attributes:
      file_name: within the data set's directory.
      num_records: that it is going to have.
      num_bytes: of what they are made from.
      payloads: yields them.
    """

    file_name: str
    num_records: int
    num_bytes: int
    payloads: Callable[[], Iterable[bytes]]


def write_data_set(
    directory: pathlib.Path,
    shards: list[ShardFile],
    fingerprint: str,
    write_metadata: Callable[[pathlib.Path], None],
) -> None:
    """Writes files, then metadata, to a directory beside, which it renames at the end.

    What is finished there when it is cut short stays, and the next call goes on.

    Args:
      directory: of the data set; if there is one already, nothing is done.
      shards: the files.
      fingerprint: of all that goes in, in the name of the directory beside: it is gone on
        with only if nothing has changed.
      write_metadata: makes a directory with all the files a data set.

    Raises:
      SetupError: a full disk, another process at work, an unfinished data set with
        another fingerprint, or as the payloads raise it.
    """
    lock = directory.with_name(f".{directory.name}.lock")
    with _locked(lock):
        if (directory / "dataset_info.json").exists():
            print(
                f"{directory} is prepared already: --verify compares it with its "
                "checksums; to prepare it anew, delete it first"
            )
            lock.unlink(missing_ok=True)
            return
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
        try:
            _write_shards(begun, shards)
            write_metadata(begun)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise SetupError(
                f"no space left in {directory.parent}: {len(read_checksums(begun)):,} of "
                f"{len(shards):,} files are finished and stay. Make room, and give the "
                "same command again"
            ) from error
        begun.rename(directory)
        lock.unlink(missing_ok=True)
    records = sum(shard.num_records for shard in shards)
    print(f"prepared {directory}: {records:,} records in {len(shards):,} files")


def _write_shards(directory: pathlib.Path, shards: list[ShardFile]) -> None:
    """Writes those that aren't finished, each aside and with its checksum."""
    for leftover in directory.rglob(".*"):
        leftover.unlink()  # by a run that was killed
    checksums = read_checksums(directory)
    bar = tqdm.tqdm(
        total=sum(shard.num_bytes for shard in shards),
        unit="B",
        unit_scale=True,
        disable=None,
    )
    with bar:
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
        for shard in shards:
            if shard.file_name in finished:
                continue
            with written_aside(directory / shard.file_name) as aside:
                count = write_shard(aside, _shown(shard, bar))
                if count != shard.num_records:
                    raise SetupError(
                        f"dataset_info.json promises {shard.num_records:,} records for "
                        f"{shard.file_name}, but the original has {count:,}"
                    )
                checksum = sha256(aside)
            checksums[shard.file_name] = checksum
            write_checksums(directory, checksums)
            if bar.disable:  # no terminal
                print(f"finished {shard.file_name}", flush=True)


def _shown(shard: ShardFile, bar: tqdm.tqdm) -> Iterator[bytes]:
    """A shard's payloads, while a bar shows how far it is."""
    bar.set_description(shard.file_name)
    for i, payload in enumerate(shard.payloads()):
        yield payload
        bar.set_postfix_str(f"{i + 1:,}/{shard.num_records:,} records", refresh=False)
        bar.update(shard.num_bytes / max(shard.num_records, 1))


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Keeps other processes out; the system unlocks when this one ends, however."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SetupError(f"another process is writing to {path.parent}") from error
        yield
