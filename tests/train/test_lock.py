"""A workdir has one writer, whatever has become of the one before."""

import json
import os
import shutil
import subprocess
import sys
import threading

import buckets
import pytest
from etils import epath

from focalnet_jax.errors import SetupError
from focalnet_jax.train.run import lock
from focalnet_jax.train.run.lock import WorkdirLock


@pytest.fixture(params=["disk", "bucket"])
def workdir(request, tmp_path, monkeypatch):
    if request.param == "disk":
        return epath.Path(tmp_path / "run")
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", buckets.ADDRESS)
    buckets.serve(tmp_path, monkeypatch)
    return epath.Path("gs://bucket/run")


@pytest.fixture
def hurried(monkeypatch):
    """Minutes pass in a moment."""
    for name, seconds in {
        "_HEARTBEAT_SECONDS": 0.05,
        "_GONE_AFTER_SECONDS": 0.5,
        "_LOOK_SECONDS": 0.02,
        "_SETTLE_SECONDS": 0.02,
    }.items():
        monkeypatch.setattr(lock, name, seconds)


def changed(workdir, /, **fields):
    """Writes a lock as another process would have left it."""
    path = workdir / "run.lock"
    with WorkdirLock(workdir):
        content = json.loads(path.read_text())
    workdir.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | {"id": "other"} | fields))


def test_the_second_is_told_who_is_first(workdir):
    with WorkdirLock(workdir):
        message = (
            rf"process {os.getpid()} on host .*UTC, is writing to .*another --workdir"
        )
        with pytest.raises(SetupError, match=message), WorkdirLock(workdir):
            pass
    with WorkdirLock(workdir):  # It is free again.
        pass
    assert not (workdir / "run.lock").exists()


def test_a_killed_process_holds_nothing(workdir):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    said = []
    for fields in (
        {"process": process.pid},
        {"started": "1"},  # Its number has been given to this process.
    ):
        changed(workdir, **fields)
        with WorkdirLock(workdir, say=said.append) as held:
            held.check()
    assert not said


@pytest.mark.parametrize("fields", [{"machine": "another"}, {"machine": None}, None])
def test_a_holder_elsewhere_is_waited_for(fields, workdir, hurried):
    """It may be on another host, or the lock may be damaged or a copy."""
    if fields is None:
        workdir.mkdir(parents=True)
        (workdir / "run.lock").write_text("")
    else:
        changed(workdir, **fields)
    said = []
    with WorkdirLock(workdir, say=said.append):
        assert "waiting for up to" in said[0]


def test_a_holder_elsewhere_that_is_alive_keeps_it(workdir, hurried, monkeypatch):
    # Where other programs keep it from running, its next sign of life takes a while.
    monkeypatch.setattr(lock, "_GONE_AFTER_SECONDS", 60)
    with WorkdirLock(workdir):
        monkeypatch.setattr(lock, "_machine", lambda: "another")
        with pytest.raises(SetupError, match="is writing to"), WorkdirLock(workdir):
            pass


def test_who_was_still_for_too_long_ends(workdir, hurried):
    with WorkdirLock(workdir) as held:
        held.check()
        (workdir / "run.lock").unlink()  # By hand: it is written again.
        held._beat()
        held.check()
        changed_by = {"process": 1, "host": "other", "since": "now", "id": "other"}
        (workdir / "run.lock").write_text(json.dumps(changed_by))
        held._beat()
        with pytest.raises(SetupError, match="process 1 on host other.*has taken over"):
            held.check()
    assert (workdir / "run.lock").exists()  # That of the other run.


def test_one_of_many_gets_it(workdir, hurried):
    changed(workdir, process=2**22 + 1)  # No process has such a number.
    held, refused = [], []
    everybody = threading.Barrier(4, timeout=60)

    def begin():
        everybody.wait()
        try:
            with WorkdirLock(workdir):
                held.append(1)
                everybody.wait()
        except SetupError:
            refused.append(1)
            everybody.wait()

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 3)


def test_a_copy_holds_nothing(tmp_path, hurried):
    with WorkdirLock(epath.Path(tmp_path / "run")):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        with WorkdirLock(epath.Path(tmp_path / "copy")):
            pass


def test_places_that_cannot_be_written_are_told(tmp_path):
    (tmp_path / "file").touch()
    for place in ("file", "file/below", "file/far/below"):
        message = "can't write to .*/file is a file; give another place by --workdir"
        with (
            pytest.raises(SetupError, match=message),
            WorkdirLock(epath.Path(tmp_path / place)),
        ):
            pass
    with pytest.raises(SetupError, match="can't write to /proc/run: "):
        WorkdirLock(epath.Path("/proc/run")).__enter__()


def test_nothing_is_left_of_a_run_that_wrote_nothing(tmp_path):
    (tmp_path / "there").mkdir()
    for place in ("run", "new/newer/run", "there/run"):
        with WorkdirLock(epath.Path(tmp_path / place)):
            pass
    assert [*tmp_path.rglob("*")] == [tmp_path / "there"]


@pytest.mark.parametrize(
    "fields",
    [
        *({"process": process} for process in ("abc", 1.5, -1, 0, True, 2**70, None)),
        {"workdir": 5},
        {"started": [1]},
        {"host": None},
        {"since": "a\nb"},
        "[" * 100_000,
        "[1]",
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_a_damaged_lock_is_waited_for(fields, tmp_path, hurried):
    workdir = epath.Path(tmp_path / "run")
    if isinstance(fields, str):
        workdir.mkdir()
        (workdir / "run.lock").write_text(fields)
    else:
        changed(workdir, **fields)
    said = []
    with WorkdirLock(workdir, say=said.append):
        assert said[0].startswith("a run that is not known, since its lock is damaged,")


def test_a_lock_of_no_path_is_none_of_this_workdir(tmp_path, hurried):
    changed(epath.Path(tmp_path / "run"), workdir="\0")
    with WorkdirLock(epath.Path(tmp_path / "run")):
        pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.symlink_to("/nonexistent/x"), "a link to what is not there"),
        (os.mkfifo, "no file"),
        (os.mkdir, "no file"),
    ],
)
def test_what_is_no_lock_is_told(make, message, tmp_path):
    make(tmp_path / "run.lock")
    with (
        pytest.raises(SetupError, match=f"run.lock .* it is {message}: remove it"),
        WorkdirLock(epath.Path(tmp_path)),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]
