"""Data sets that TFDS has prepared as TFRecord, copied to ArrayRecord files."""

import hashlib
import json
import pathlib
import shutil
from functools import partial

import tensorflow_datasets as tfds

from focalnet_jax.data.prepare.tfrecord import read_tfrecord
from focalnet_jax.data.prepare.writing import Prepared, ShardFile, write_data_set
from focalnet_jax.data.sources.builders import open_prepared, path_on_disk
from focalnet_jax.data.sources.shards import CHECKSUMS
from focalnet_jax.errors import SetupError, argument, first_few

_ARRAY_RECORD = tfds.core.FileFormat.ARRAY_RECORD

# The fields of `dataset_info.json`, besides `fileFormat`, that name file formats. TFDS
# reads either spelling.
_OTHER_FORMAT_FIELDS = (
    "file_format",
    "alternativeFileFormats",
    "alternative_file_formats",
)


def copy_tfrecord(
    name: str, *, data_dir: str | None = None, to: str | None = None
) -> Prepared:
    """Copies a data set that TFDS has prepared as TFRecord to ArrayRecord files.

    The copy has as many files as the original, with the same records in the same order.
    The original stays as it is. The copy's directory is `TO/NAME/CONFIG/VERSION`. A data
    set that is prepared as ArrayRecord already is not copied.

    Args:
      name: the name as TFDS spells it, with config and version if need be.
      data_dir: the directory of all data sets; None for TFDS's own place.
      to: another directory of data sets, for the copy; None for `DATA_DIR-array_record`.
        It cannot be `data_dir`: TFDS opens the format that `dataset_info.json` names,
        and there this is TFRecord.

    Raises:
      SetupError: there is no such data set; it is prepared in a third format; a file is
        missing or damaged; or the disk is full.
    """
    builder = open_prepared(name, data_dir=data_dir)
    source = path_on_disk(builder.data_dir)
    *parts, version = builder.info.full_name.split("/")
    name = f"{'/'.join(parts)}:{version}"
    source_root = source.parents[len(parts)]
    file_format = builder.info.file_format
    if file_format == _ARRAY_RECORD:
        print(f"{source} is {_ARRAY_RECORD.value} already")
        return Prepared(name, source_root)
    if file_format != tfds.core.FileFormat.TFRECORD:
        raise SetupError(
            f"{source} is prepared as {file_format.value}; only tfrecord is converted"
        )
    to = path_on_disk(to or f"{source_root}-{_ARRAY_RECORD.value}")
    if to == source_root:
        raise SetupError(
            f"{argument('to')}={to} is where the original lies: name another directory"
        )
    existed = _copy(builder, source, to / builder.info.full_name)
    return Prepared(name, to, existed)


def _copy(
    builder: tfds.core.DatasetBuilder, source: pathlib.Path, directory: pathlib.Path
) -> bool:
    """Copies the files in `source`; returns whether `directory` was a data set before."""
    copies = _copies(builder, source)
    info = json.loads((source / "dataset_info.json").read_text("utf-8"))
    sizes = {copy.file_name: copy.num_bytes for copy in copies.values()}
    fingerprint = hashlib.sha256(json.dumps([info, sizes]).encode()).hexdigest()

    def write_metadata(directory: pathlib.Path) -> None:
        for path in source.iterdir():
            if path.is_file() and path not in copies and path.name != CHECKSUMS:
                shutil.copyfile(path, directory / path.name)
        for field in _OTHER_FORMAT_FIELDS:
            info.pop(field, None)
        info["fileFormat"] = _ARRAY_RECORD.value
        text = json.dumps(info, indent=2)
        (directory / "dataset_info.json").write_text(text, encoding="utf-8")

    return write_data_set(
        directory, list(copies.values()), write_metadata, fingerprint=fingerprint
    )


def _copies(
    builder: tfds.core.DatasetBuilder, source: pathlib.Path
) -> dict[pathlib.Path, ShardFile]:
    """The file to write for each TFRecord file of the original.

    Raises:
      SetupError: the original lacks files.
    """
    copies = {}
    missing = []
    for split in builder.info.splits.values():
        template = split.filename_template
        new_template = template.replace(filetype_suffix=_ARRAY_RECORD.value)
        for i, length in enumerate(split.shard_lengths):
            place = dict(shard_index=i, num_shards=split.num_shards)
            original = source / template.relative_filepath(**place)
            if not original.exists():
                missing.append(original.name)
                continue
            copies[original] = ShardFile(
                file_name=new_template.relative_filepath(**place),
                num_records=length,
                num_bytes=original.stat().st_size,
                payloads=partial(read_tfrecord, original),
            )
    if missing:
        raise SetupError(f"{source} lacks {first_few(missing)}")
    return copies
