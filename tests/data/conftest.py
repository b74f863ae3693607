"""Makes TFRecord files, and data sets of them, without TensorFlow."""

import json
import pathlib
import shutil
import struct

import pytest
from array_record.python import array_record_module

from focalnet_jax.data.prepare.tfrecord import masked_crc32c


def frame(payload):
    """The bytes of a record in a file."""
    length = struct.pack("<Q", len(payload))
    checksums = [struct.pack("<I", masked_crc32c(data)) for data in (length, payload)]
    return length + checksums[0] + payload + checksums[1]


@pytest.fixture(scope="session")
def write_tfrecord():
    """A function that writes payloads to a TFRecord file."""

    def write(path, payloads):
        path.write_bytes(b"".join(map(frame, payloads)))

    return write


@pytest.fixture
def as_tfrecord(data_dir, tmp_path, write_tfrecord):
    """A function that prepares the digits as TFRecord, under any name.

    It returns the directory of the data set.
    """

    def prepare(name="digits", config="", version="1.0.0", num_shards=3):
        digits = pathlib.Path(data_dir, "digits", "1.0.0")
        directory = tmp_path / "tfrecord" / name / config / version
        directory.mkdir(parents=True)
        for file in digits.glob("[!d]*"):  # features.json and the like
            shutil.copy(file, directory)
        info = json.loads((digits / "dataset_info.json").read_text())
        info |= {"name": name, "version": version, "fileFormat": "tfrecord"}
        if config:
            info["configName"] = config
        for split in info["splits"]:
            [file] = digits.glob(f"digits-{split['name']}.array_record-*")
            payloads = array_record_module.ArrayRecordReader(str(file)).read_all()
            parts = [payloads[i::num_shards] for i in range(num_shards)]
            split["shardLengths"] = [len(part) for part in parts]
            for i, part in enumerate(parts):
                shard = f"{i:05}-of-{num_shards:05}"
                write_tfrecord(
                    directory / f"{name}-{split['name']}.tfrecord-{shard}", part
                )
        (directory / "dataset_info.json").write_text(json.dumps(info))
        return directory

    return prepare
