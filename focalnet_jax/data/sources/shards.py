"""ArrayRecord files, the shards of a TFDS data set: written, counted and checked."""

import concurrent.futures
import errno
import hashlib
import os
import pathlib
import re
from collections.abc import Iterable

import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath

from focalnet_jax.errors import SetupError
from focalnet_jax.paths import written_aside

# As `sha256sum` writes it, and checks it: `sha256sum -c SHA256SUMS`.
CHECKSUMS = "SHA256SUMS"


def check_shards(builder: tfds.core.DatasetBuilder, split: str) -> None:
    """Looks whether the files of a split are there, whole and of the right length.

    Opens each file and reads its index, which takes about 0.2 ms, in a bucket some
    requests: TFDS itself opens none before a record is asked for. Damage elsewhere in a
    file is found when it is read, by ArrayRecord's own checksums.

    Args:
      builder: of a data set that is prepared as array_record.
      split: as TFDS spells it: `"train"`, `"train[:90%]"` ...

    Raises:
      SetupError: naming the files.
    """
    shards = builder.info.splits[split].file_instructions
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        faults = [fault for fault in pool.map(_fault, shards) if fault]
    if faults:
        shown = faults[:5] + (["..."] if len(faults) > 5 else [])
        raise SetupError(
            f"{len(faults)} of the {len(shards):,} files of {builder.info.full_name}, "
            f"split {split!r}, can't be used:\n  " + "\n  ".join(shown) + "\n"
            f"Copy them again, or delete {builder.data_dir} and prepare it again"
        )


def _fault(shard) -> str | None:
    """What is wrong with the file of one of TFDS's `FileInstruction`s."""
    try:
        count = count_records(shard.filename)
    except SetupError as error:
        return str(error)
    if count == shard.examples_in_shard:
        return None
    return (
        f"{shard.filename} holds {count:,} records, but {shard.examples_in_shard:,} "
        "by dataset_info.json"
    )


def count_records(path: str | os.PathLike) -> int:
    """The number of records by a file's index, which is at its end.

    Raises:
      SetupError: the file is missing, cut off, or damaged at its end.
    """
    path = os.fspath(path)
    if not epath.Path(path).exists():
        raise SetupError(f"{path} is missing")
    reader = array_record_module.ArrayRecordReader(
        path, "readahead_buffer_size:0", file_reader_buffer_size=1 << 15
    )
    count = reader.num_records()
    try:
        reader.close()  # says what was wrong before, too
    except RuntimeError as error:
        raise SetupError(f"{path} is cut off or damaged: {error}") from error
    return count


def write_shard(path: pathlib.Path, payloads: Iterable[bytes]) -> int:
    """Writes an ArrayRecord file; returns the number of records.

    Raises:
      OSError: the disk is full, or the like; what lies at `path` then is useless.
    """
    count = 0
    try:
        # The option that TFDS writes with, for fast random access.
        writer = array_record_module.ArrayRecordWriter(os.fspath(path), "group_size:1")
        for payload in payloads:
            writer.write(payload)
            count += 1
        writer.close()
    except RuntimeError as error:
        raise _os_error(path, error) from error
    with open(path, "rb+") as file:
        os.fsync(file.fileno())  # where network file systems say that they are full
    if count_records(path) != count:
        raise OSError(errno.EIO, "not all records arrived", os.fspath(path))
    return count


def _os_error(path: pathlib.Path, error: RuntimeError) -> OSError:
    """ArrayRecord has but one kind of error; `errno` is in its text."""
    for number in (errno.ENOSPC, errno.EDQUOT):
        if os.strerror(number) in str(error):
            return OSError(number, os.strerror(number), os.fspath(path))
    return OSError(errno.EIO, str(error), os.fspath(path))


def sha256(path: pathlib.Path) -> str:
    """The checksum of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_checksums(directory: pathlib.Path) -> dict[str, str]:
    """The checksum of each file that `CHECKSUMS` lists; none if there is no such list."""
    path = directory / CHECKSUMS
    if not path.exists():
        return {}
    lines = re.findall(r"^([0-9a-f]{64})  (.+)$", path.read_text(), re.MULTILINE)
    return {name: checksum for checksum, name in lines}


def write_checksums(directory: pathlib.Path, checksums: dict[str, str]) -> None:
    """Writes `CHECKSUMS`."""
    lines = [f"{checksum}  {name}\n" for name, checksum in sorted(checksums.items())]
    with written_aside(directory / CHECKSUMS) as aside:
        aside.write_text("".join(lines))
