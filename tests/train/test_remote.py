"""Runs whose files lie in a bucket, where nothing can be renamed or added to."""

import dataclasses
import shutil

import buckets
import numpy as np
import pytest
from etils import epath
from running import read_metrics, without_speeds

import focalnet_jax
from focalnet_jax.data import BadRecordError, open_source
from focalnet_jax.data.prepare.from_folder import prepare_folder
from focalnet_jax.errors import SetupError
from focalnet_jax.train import check_config, evaluate, train
from focalnet_jax.train.run.metrics import MetricsWriter
from focalnet_jax.train.run.profile import Profile
from focalnet_jax.weights.params import newest_params_path

pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """`gs://bucket`, empty."""
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", buckets.ADDRESS)
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", buckets.ADDRESS)
    buckets.serve(tmp_path, monkeypatch)
    return epath.Path("gs://bucket")


def test_the_stand_in_is_as_strict_as_a_bucket(bucket):
    (bucket / "a").write_text("1")
    assert (bucket / "a").read_text() == "1"
    with pytest.raises(OSError, match="can't be changed"):
        (bucket / "a").open("a")
    with pytest.raises(OSError, match="can't be renamed"):
        (bucket / "a").rename(bucket / "b")


def test_metrics_go_up_whole(bucket):
    workdir = bucket / "run"
    with MetricsWriter(workdir, first_step=0) as writer:
        writer.write(1, {"train/loss": 1.0})
        assert not (workdir / "metrics.jsonl").exists()  # not with every line
        writer.flush()
        assert [line["step"] for line in read_metrics(workdir)] == [1]
        writer.write(2, {"train/loss": 0.5})
    with MetricsWriter(workdir, first_step=1) as writer:
        writer.write(2, {"train/loss": 0.25})
    assert [line["train/loss"] for line in read_metrics(workdir)] == [1.0, 0.25]
    assert len([*workdir.glob("events.out.tfevents*")]) == 2


def test_traces_are_refused(bucket):
    Profile(bucket / "run", ())
    with pytest.raises(SetupError, match="needs a workdir on a disk"):
        Profile(bucket / "run", (1, 2))


def test_data_are_read_from_a_bucket(bucket, data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "bucket" / "data")
    local, remote = (
        open_source("digits", split="test", data_dir=place)
        for place in (data_dir, "gs://bucket/data")
    )
    assert remote.files[0][0].startswith("gs://bucket/data/digits")
    assert len(remote) == len(local)
    for index in (0, 100, len(local) - 1):
        assert remote.read(index) == local.read(index)

    class Unreachable:
        def __getitem__(self, index):
            raise OSError("the network is down")

    for source, error in ((local, BadRecordError), (remote, SetupError)):
        with pytest.raises(error, match="can't be read: the network is down"):
            dataclasses.replace(source, records=Unreachable()).read(3)

    [file] = (tmp_path / "bucket" / "data").glob("digits/*/*test.array_record*")
    file.unlink()
    with pytest.raises(SetupError, match="test.array_record-00000-of-00001 is missing"):
        open_source("digits", split="test", data_dir="gs://bucket/data")


def test_what_needs_a_disk_says_so(tmp_path):
    with pytest.raises(SetupError, match="an image folder has to be on a disk"):
        open_source("folder:gs://bucket/images", split="train")
    with pytest.raises(SetupError, match="this works on disks"):
        prepare_folder(str(tmp_path), name="pets", data_dir="gs://bucket/data")


def test_a_checkpoint_in_a_bucket_is_one_by_its_marker(bucket):
    """It is written where it will lie: a run that is killed leaves a part of it."""
    checkpoint = bucket / "run" / "checkpoints" / "6"
    (checkpoint / "params" / "_METADATA").write_text("{}")
    for path in (bucket / "run", checkpoint, checkpoint / "params"):
        assert newest_params_path(path) is None
    (checkpoint / "commit_success.txt").write_text("")
    for path in (bucket / "run", checkpoint, checkpoint / "params"):
        assert newest_params_path(path) == checkpoint / "params"


def test_a_run_in_a_bucket_is_one_on_a_disk(tiny_config, bucket, tmp_path, train_until):
    """Stopped, resumed, evaluated, and started from."""
    local = epath.Path(tmp_path / "local")
    remote = bucket / "run"
    tiny_config.checkpoint.best_metric = "test/top1"
    tiny_config.ema_decay = 0.5
    train(*check_config(tiny_config), local)

    train_until(check_config(tiny_config), remote, 5)
    metrics = train(*check_config(tiny_config), remote)
    assert without_speeds(read_metrics(remote)) == without_speeds(read_metrics(local))
    assert (remote / "checkpoints" / "6" / "commit_success.txt").exists()
    assert (remote / "summary.html").exists()

    evaluated = evaluate(*check_config(tiny_config), remote)
    assert evaluated["test/loss"] == metrics["test/loss"]
    tiny_config.init_from = str(remote)
    evaluated = evaluate(*check_config(tiny_config), epath.Path(tmp_path / "other"))
    assert evaluated["test/loss"] == metrics["test/loss"]
    ours, theirs = (focalnet_jax.load_model(str(path))[1] for path in (remote, local))
    np.testing.assert_array_equal(ours["head"]["kernel"], theirs["head"]["kernel"])
