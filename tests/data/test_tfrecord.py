"""TFRecord files: they are read as TensorFlow writes them, and all damage is found."""

import pytest

from focalnet_jax.data.prepare.tfrecord import read_tfrecord
from focalnet_jax.errors import SetupError

PAYLOADS = [b"focal", b"", bytes(range(256)) * 8]
# TensorFlow 2.21 writes this for the first two payloads.
BY_TENSORFLOW = bytes.fromhex(
    "0500000000000000eab2043e666f63616c161eb5a6000000000000000029039807d8ea82a2"
)


@pytest.fixture
def file(tmp_path, write_tfrecord):
    path = tmp_path / "x.tfrecord"
    write_tfrecord(path, PAYLOADS)
    return path


def test_records_are_as_tensorflow_writes_them(tmp_path, write_tfrecord):
    path = tmp_path / "x.tfrecord"
    write_tfrecord(path, PAYLOADS[:2])
    assert path.read_bytes() == BY_TENSORFLOW
    assert list(read_tfrecord(path)) == PAYLOADS[:2]


def test_an_empty_file_has_no_records(tmp_path):
    path = tmp_path / "x.tfrecord"
    path.touch()
    assert list(read_tfrecord(path)) == []


def test_a_file_that_is_cut_off_anywhere(file):
    data = file.read_bytes()
    begins = [0, 21, 37]  # where the records begin
    for size in range(len(data)):
        if size in begins:
            continue  # a file with fewer records
        file.write_bytes(data[:size])
        within = max(begin for begin in begins if begin < size)
        with pytest.raises(SetupError, match=f"x.tfrecord is cut off.* at byte {within}"):
            list(read_tfrecord(file))


def test_a_flipped_bit_anywhere(file):
    data = file.read_bytes()
    begins = [0, 21, 37]
    for offset in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[offset] ^= 4
        file.write_bytes(damaged)
        within = max(begin for begin in begins if begin <= offset)
        with pytest.raises(SetupError, match=f"x.tfrecord is corrupt.* byte {within} "):
            list(read_tfrecord(file))


def test_records_before_the_damage_are_read(file):
    file.write_bytes(file.read_bytes()[:-1])
    records = read_tfrecord(file)
    assert [next(records), next(records)] == PAYLOADS[:2]
    with pytest.raises(SetupError, match="cut off"):
        next(records)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SetupError, match="can't be read: .*No such file.*x.tfrecord"):
        list(read_tfrecord(tmp_path / "x.tfrecord"))


@pytest.mark.extended
def test_against_tensorflow(file):
    tf = pytest.importorskip("tensorflow", reason="it is the reference")
    theirs = file.with_name("theirs.tfrecord")
    with tf.io.TFRecordWriter(str(theirs)) as writer:
        for payload in PAYLOADS:
            writer.write(payload)
    assert list(read_tfrecord(theirs)) == PAYLOADS
    assert file.read_bytes() == theirs.read_bytes()
