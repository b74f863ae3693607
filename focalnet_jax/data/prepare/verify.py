"""Comparison of a prepared data set with its checksums."""

import tqdm

from focalnet_jax.data.sources.builders import open_prepared, path_on_disk
from focalnet_jax.data.sources.shards import (
    CHECKSUMS,
    check_shards,
    read_checksums,
    sha256,
)
from focalnet_jax.errors import SetupError, first_few


def verify(name: str, *, data_dir: str | None = None) -> None:
    """Reads all files of a data set, and compares them with their checksums.

    Args:
      name: the name as TFDS spells it, with config and version if need be.
      data_dir: the directory of all data sets; None for TFDS's own place.

    Raises:
      SetupError: there is no such data set, it has no checksums, or files are missing or
        differ from their checksums. The message names the files.
    """
    builder = open_prepared(name, data_dir=data_dir)
    directory = path_on_disk(builder.data_dir)
    checksums = read_checksums(directory)
    if not checksums:
        raise SetupError(
            f"{directory} has no {CHECKSUMS}, for it wasn't written by this command"
        )
    for split in builder.info.splits:
        check_shards(builder, split)
    files = tqdm.tqdm(sorted(checksums), unit="file", disable=None)
    damaged = [file for file in files if sha256(directory / file) != checksums[file]]
    if damaged:
        raise SetupError(
            f"in {directory} there is damage to {first_few(damaged)}: copy them again, "
            "or delete the directory and prepare it again"
        )
    print(f"{directory}: all {len(checksums):,} files fit their checksums")
