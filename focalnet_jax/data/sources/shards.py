"""Writes, counts and checks ArrayRecord files, the shards of a TFDS data set."""

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

# The file has the format of `sha256sum`: `sha256sum -c SHA256SUMS` checks it.
CHECKSUMS = "SHA256SUMS"


def check_shards(builder: tfds.core.DatasetBuilder, split: str) -> None:
    """Checks that the files of a split exist, are whole and have the right length.

    It opens each file and reads its index. This takes about 0.2 ms on a disk, and a few
    requests in a bucket. TFDS itself opens a file only when one of its records is asked
    for. Damage to other parts of a file is found when they are read, by ArrayRecord's own
    checksums.

    Args:
      builder: opens a data set that is prepared as array_record.
      split: the split as TFDS spells it, such as `"train"` or `"train[:90%]"`.

    Raises:
      SetupError: files can't be used. The message names them.
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
    """What is wrong with the file of a TFDS `FileInstruction`; None if nothing is."""
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
    """The number of records in a file, from its index, which is at its end.

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
        reader.close()  # It also raises errors that occurred earlier.
    except RuntimeError as error:
        raise SetupError(f"{path} is cut off or damaged: {error}") from error
    return count


def write_shard(path: pathlib.Path, payloads: Iterable[bytes]) -> int:
    """Writes an ArrayRecord file, and returns the number of records.

    Raises:
      OSError: the file could not be written, for example because the disk is full. What
        is at `path` then is useless.
    """
    count = 0
    try:
        # TFDS writes with this option, for fast random access.
        writer = array_record_module.ArrayRecordWriter(os.fspath(path), "group_size:1")
        for payload in payloads:
            writer.write(payload)
            count += 1
        writer.close()
    except RuntimeError as error:
        raise _os_error(path, error) from error
    with open(path, "rb+") as file:
        os.fsync(file.fileno())  # Network file systems say only here that they are full.
    if count_records(path) != count:
        raise OSError(errno.EIO, "not all records arrived", os.fspath(path))
    return count


def _os_error(path: pathlib.Path, error: RuntimeError) -> OSError:
    """ArrayRecord's error as an OSError with its `errno`.

    ArrayRecord raises RuntimeError for everything; the text says what happened.
    """
    for number in (errno.ENOSPC, errno.EDQUOT):
        if os.strerror(number) in str(error):
            return OSError(number, os.strerror(number), os.fspath(path))
    return OSError(errno.EIO, str(error), os.fspath(path))


def sha256(path: pathlib.Path) -> str:
    """The SHA-256 checksum of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_checksums(directory: pathlib.Path) -> dict[str, str]:
    """The checksum of each file that `CHECKSUMS` lists, by file name.

    The dict is empty if there is no such list.
    """
    path = directory / CHECKSUMS
    if not path.exists():
        return {}
    lines = re.findall(r"^([0-9a-f]{64})  (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {name: checksum for checksum, name in lines}


def write_checksums(directory: pathlib.Path, checksums: dict[str, str]) -> None:
    """Writes `CHECKSUMS`, the checksum of each file by its name."""
    lines = [f"{checksum}  {name}\n" for name, checksum in sorted(checksums.items())]
    with written_aside(directory / CHECKSUMS) as aside:
        aside.write_text("".join(lines), encoding="utf-8")
