"""TFRecord files, read without TensorFlow.

A record is its length as uint64, a uint32 checksum of the length, the payload, and a
uint32 checksum of the payload, all little-endian. Nothing comes before, between or after
the records. The checksums are masked CRC-32C:
https://www.tensorflow.org/tutorials/load_data/tfrecord.
"""

import os
import struct
from collections.abc import Iterator

import google_crc32c

from focalnet_jax.errors import SetupError

_BUFFER_BYTES = 1 << 20


def read_tfrecord(path: str | os.PathLike) -> Iterator[bytes]:
    """Yields the payload of each record, after it has checked both of its checksums.

    Raises:
      SetupError: the file can't be read, ends within a record, or doesn't fit a
        checksum. The message names the file and the byte at which the record begins.
    """
    try:
        with open(path, "rb", buffering=_BUFFER_BYTES) as file:
            offset = 0
            while header := file.read(12):
                if len(header) < 12:
                    raise _truncated(path, offset)
                if not _fits(header[8:], header[:8]):
                    raise _corrupt(path, offset)
                [length] = struct.unpack("<Q", header[:8])
                payload, checksum = file.read(length), file.read(4)
                if len(checksum) < 4:
                    raise _truncated(path, offset)
                if not _fits(checksum, payload):
                    raise _corrupt(path, offset)
                yield payload
                offset += 12 + length + 4
    except OSError as error:
        raise SetupError(f"a TFRecord file can't be read: {error}") from error


def masked_crc32c(data: bytes) -> int:
    """TFRecord's checksum of bytes: a CRC-32C, rotated, plus a constant."""
    # A CRC of bytes that contain their own CRC would be a weak checksum, hence the mask.
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _fits(checksum: bytes, data: bytes) -> bool:
    return struct.unpack("<I", checksum) == (masked_crc32c(data),)


def _truncated(path: str | os.PathLike, offset: int) -> SetupError:
    return SetupError(
        f"{path} is cut off: it ends within the record that begins at byte {offset:,}. "
        "Copy or prepare it again"
    )


def _corrupt(path: str | os.PathLike, offset: int) -> SetupError:
    return SetupError(
        f"{path} is corrupt, or no TFRecord file: the record that begins at byte "
        f"{offset:,} doesn't fit its checksum. Copy or prepare it again"
    )
