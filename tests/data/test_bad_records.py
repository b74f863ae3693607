"""Records that no image can be made of, and workers that die."""

import dataclasses
import io
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
from running import TIMEOUT

from focalnet_jax.data import (
    BadRecords,
    EvalTransform,
    Source,
    TrainTransform,
    eval_batches,
    open_source,
    train_batches,
)
from focalnet_jax.errors import SetupError
from focalnet_jax.tasks.examples import EvalExample, TrainExample

BAD = {3: b"", 11: b"no image", 12: None}  # None: half an image


def encode(level):
    stream = io.BytesIO()
    pixels = np.full((8, 8, 3), level, np.uint8)
    PIL.Image.fromarray(pixels).save(stream, "JPEG", quality=95)
    return stream.getvalue()


@pytest.fixture
def source():
    """24 flat images, record i at level 10 * i, three of them bad."""
    records = []
    for i in range(24):
        encoded = BAD.get(i, encode(10 * i))
        encoded = encode(0)[:300] if encoded is None else encoded
        records.append({"image": encoded, "label": 0, "file_name": f"a/{i}.jpg"})
    return Source("shapes", records)


def take(source, count, **options):
    defaults = dict(batch_size=8, seed=0)
    example = TrainExample(TrainTransform(4), source.labels())
    batches = train_batches(source, example, **defaults | options)
    return [*itertools.islice(batches, count)]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_first_one_stops_the_run_and_is_named(source, workers):
    with pytest.raises(SetupError) as error:
        take(source, 3, workers=workers)
    message = str(error.value)
    assert "of shapes (a/" in message
    assert "That makes 1, more than max_bad_records=0 allows" in message


@pytest.mark.parametrize("workers", [0, 2])
def test_within_the_budget_the_next_good_one_takes_the_place(source, workers, caplog):
    bad_records = BadRecords(source.describe, allowed=3)
    batches = take(source, 6, bad_records=bad_records, workers=workers)
    ids = np.concatenate([batch["id"] for batch in batches]).reshape(2, 24)
    for epoch in ids:
        # 3 is shown as 4, 11 and 12 as 13; all others once.
        expected = [*({*range(24)} - {*BAD}), 4, 13, 13]
        np.testing.assert_array_equal(np.sort(epoch), sorted(expected))
    for batch in batches:
        assert batch.keys() == {"image", "label", "id"}
        levels = batch["image"].mean((1, 2, 3))
        np.testing.assert_allclose(levels, 10 * batch["id"], atol=2)  # JPEG
    # Each is said once, though both epochs meet it.
    assert len(bad_records) == 3
    said = sorted(record.getMessage() for record in caplog.records)
    assert len(said) == 3
    assert "record 11 of shapes (a/11.jpg) is unusable: 8 bytes that are no" in said[0]
    assert "record 12 of shapes (a/12.jpg) is unusable: " in said[1]
    assert "record 3 of shapes (a/3.jpg) is unusable: its image has zero" in said[2]
    assert {text[text.index("skipped (") :] for text in said} == {
        f"skipped ({i} of at most 3)" for i in (1, 2, 3)
    }


def test_one_more_than_the_budget_stops_the_run(source):
    with pytest.raises(SetupError, match="That makes 3, more than max_bad_records=2"):
        take(source, 6, bad_records=BadRecords(source.describe, allowed=2))


def test_bad_records_move_nothing_else(source):
    """Other rows hold what they would without them, on any number of processes."""
    mended = Source("shapes", [dict(record) for record in source.records])
    for i in BAD:
        mended.records[i]["image"] = encode(10 * i)
    options = dict(bad_records=BadRecords(source.describe, allowed=3))
    given, expected = take(source, 3, **options), take(mended, 3)
    for a, b in zip(given, expected):
        good = ~np.isin(b["id"], [*BAD])
        np.testing.assert_array_equal(a["image"][good], b["image"][good])
    halves = [take(source, 3, rows=rows, **options) for rows in (range(4), range(4, 8))]
    for whole, *parts in zip(given, *halves):
        ids = np.concatenate([part["id"] for part in parts])
        np.testing.assert_array_equal(ids, whole["id"])


def test_nothing_but_bad_records_is_an_error_not_a_hang():
    records = [{"image": b"", "label": 0}] * 4
    source = Source("nothing", records)
    with pytest.raises(SetupError, match="as are the 3 after it\nThat makes 4, more"):
        take(source, 1, bad_records=BadRecords(source.describe, allowed=9))


def test_evaluation_masks_them_within_the_budget(source):
    bad_records = BadRecords(source.describe, allowed=3)
    example = EvalExample(EvalTransform(4), source.labels())
    batches = [*eval_batches(source, example, batch_size=10, bad_records=bad_records)]
    ids = np.concatenate([batch["id"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(ids, sorted({*range(24)} - {*BAD}))
    assert len(bad_records) == 3
    with pytest.raises(SetupError, match="max_bad_records=0"):
        [*eval_batches(source, example, batch_size=10)]


def test_a_bad_last_record_is_not_read_again_to_fill_up(source):
    """Another process would count it, too; nor does a label stand in for its own."""
    source.records[-1]["image"] = b""
    source = dataclasses.replace(source, subset=(3,))
    for record in source.records:
        record["label"] = 3
    shards = []
    for rows in (range(10), range(10, 20)):
        bad_records = BadRecords(source.describe, allowed=4)
        options = dict(batch_size=20, rows=rows, bad_records=bad_records)
        example = EvalExample(EvalTransform(4), source.labels())
        [*eval_batches(source, example, **options)]
        shards.append(len(bad_records))
    assert shards == [2, 2]  # 3 and 23, 11 and 12


def test_a_damaged_shard_names_record_and_file(tmp_path, data_dir):
    """Flipped bytes within an ArrayRecord file, which its checksums notice."""
    import shutil

    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    [shard] = tmp_path.glob("digits/*/digits-test.array_record*")
    content = bytearray(shard.read_bytes())
    middle = len(content) // 4
    content[middle : middle + 64] = bytes(b ^ 0xFF for b in content[middle : middle + 64])
    shard.write_bytes(content)
    source = open_source("digits", split="test", data_dir=str(tmp_path))
    example = EvalExample(EvalTransform(8), source.labels())
    with pytest.raises(
        SetupError, match=rf"record \d+ of digits.*{shard.name}.*can't be"
    ):
        [*eval_batches(source, example, batch_size=60)]
    bad_records = BadRecords(source.describe, allowed=20)
    kept = 0
    for batch in eval_batches(source, example, batch_size=60, bad_records=bad_records):
        kept += batch["mask"].sum()
    assert 0 < len(bad_records) < 20
    assert kept == 360 - len(bad_records)


def test_a_worker_that_is_killed_ends_the_run_with_a_message(source):
    for i in BAD:
        source.records[i]["image"] = encode(10 * i)
    example = TrainExample(TrainTransform(4), source.labels())
    batches = train_batches(source, example, batch_size=8, seed=0, workers=1)
    next(batches)
    [worker] = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(SetupError, match="one of the 1 input workers has died"):
        [*itertools.islice(batches, 1000)]  # what it had sent already comes first


ORPHAN = """
import os, signal, sys
from focalnet_jax.data import TrainTransform, open_source, train_batches
from focalnet_jax.tasks.examples import TrainExample

if __name__ == "__main__":
    source = open_source("digits", split="train", data_dir=sys.argv[1])
    example = TrainExample(TrainTransform(8), source.labels())
    batches = train_batches(source, example, batch_size=8, seed=0, workers=1)
    next(batches)
    import multiprocessing
    print(multiprocessing.active_children()[0].pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_program_that_is_killed(tmp_path, data_dir):
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    # Output ends when the worker has, too, which holds the other end of it.
    result = subprocess.run(
        [sys.executable, script, data_dir],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert result.returncode == -signal.SIGKILL
    assert result.stdout.strip().isdecimal()
