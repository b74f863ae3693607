"""Paths as people give them, wherever they stand and whatever home they have."""

import errno
import json
import os
import pathlib
import subprocess
import sys

import pytest

from focalnet_jax.errors import SetupError
from focalnet_jax.paths import (
    absolute_path,
    check_may_write,
    read_json,
    without_file_scheme,
    writing,
    written_aside,
)
from focalnet_jax.weights.releases import cache_directory


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("file:///a/b", "/a/b"),
        ("FILE:///a/b", "/a/b"),
        ("file:/a/b", "/a/b"),
        ("file://localhost/a", "/a"),
        ("file:///a%20b#c?d", "/a b#c?d"),
        ("file:a", "file:a"),
        ("a/file://b", "a/file://b"),
    ],
)
def test_addresses_of_files(given, path):
    assert without_file_scheme(given) == path


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "file://runs/x",
            "the host 'runs'.* give runs/x for a path from here, or file:/",
        ),
        ("file://~/x", "the host '~'.* give ~/x for"),
        ("file://", "names no path: give file:///PATH"),
        ("~nobody-of-that-name/x", "that user has no home directory here"),
        ("~\0/x", "that user has no home directory here"),
    ],
)
def test_places_that_are_none(given, message):
    with pytest.raises(SetupError, match=message):
        absolute_path(given)


def test_a_name_that_begins_as_a_home_does(tmp_path, monkeypatch):
    """As the message about such a home says."""
    monkeypatch.chdir(tmp_path)
    assert (
        absolute_path("./~nobody-of-that-name/x") == tmp_path / "~nobody-of-that-name/x"
    )


def test_downloads_without_a_home(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(SetupError, match="set XDG_CACHE_HOME to a directory"):
        cache_directory()
    monkeypatch.setenv("XDG_CACHE_HOME", "/a")
    assert cache_directory() == pathlib.Path("/a/focalnet_jax")


def test_records_are_objects(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"a": 1}))
    assert read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_the_page_of_fields_on_a_full_disk():
    command = [sys.executable, "-m", "focalnet_jax.train.fields_page"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1


# --- What is written whole -----------------------------------------------------


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A function that tells what is in the current directory, which is empty at first."""
    monkeypatch.chdir(tmp_path)

    def content():
        files = (path for path in sorted(tmp_path.rglob("*")) if path.is_file())
        return {str(path.relative_to(tmp_path)): path.read_text() for path in files}

    return content


def write(path, *texts):
    """Writes a file, or a directory of files `0`, `1` and so on if there are several."""
    with written_aside(pathlib.Path(path)) as aside:
        if len(texts) == 1:
            aside.write_text(texts[0])
            return
        aside.mkdir()
        for name, text in enumerate(texts):
            (aside / str(name)).write_text(text)


def test_files_and_directories_replace_what_was_there(disk):
    for _ in range(2):
        write("a/b/file", "one")
        write("a/directory", "one", "two")
    write("a/b/file", "three")
    write("a/directory", "three", "four")
    assert disk() == {
        "a/b/file": "three",
        "a/directory/0": "three",
        "a/directory/1": "four",
    }


@pytest.mark.parametrize("target", ["there", "nowhere"])
def test_what_a_link_leads_to_is_replaced(disk, target):
    pathlib.Path("there").mkdir()
    pathlib.Path("there/mine").write_text("mine")
    pathlib.Path("link").symlink_to(target)
    write("link", "one", "two")
    assert os.readlink("link") == target
    assert disk()[f"{target}/1"] == pathlib.Path("link/1").read_text() == "two"
    assert ("there/mine" in disk()) == (target == "nowhere")
    assert sorted(os.listdir()) == sorted({"link", "there", target})


def test_links_in_a_directory_are_removed_alone(disk):
    write("mine", "one", "two")
    write("old", "one", "two")
    pathlib.Path("old/link").symlink_to(pathlib.Path("mine").absolute())
    write("old", "three", "four")
    assert disk() == {"mine/0": "one", "mine/1": "two", "old/0": "three", "old/1": "four"}


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_a_failure_leaves_what_was_there(disk, kind):
    write("file", "mine")
    write("directory", "mine", "too")
    before = disk()

    def fail(path):
        with written_aside(pathlib.Path(path)) as aside:
            if kind == "link":
                aside.symlink_to(pathlib.Path("directory").absolute())
            elif kind == "file":
                aside.write_text("half")
            else:
                aside.mkdir()
                (aside / "0").write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    for path in ("new/parents/net", "file", "directory"):
        with pytest.raises(OSError, match="No space left"):
            fail(path)
    assert disk() == before
    assert sorted(os.listdir()) == ["directory", "file"]


@pytest.mark.parametrize(
    ("path", "options", "problem"),
    [
        ("file", dict(), "file is there already; overwrite=True replaces it"),
        ("file", dict(files=["0"]), "file is there already, and is a file"),
        ("file/new", dict(), "new can't be written: .*file is a file"),
        ("file/new", dict(overwrite=True), "new can't be written: .*file is a file"),
        ("mine", dict(overwrite=True), "mine is there already, and is a directory"),
        ("mine", dict(files=["0", "1"]), "there already; overwrite=True"),
        ("mine", dict(overwrite=True, files=["0"]), "mine holds 1, which is not wri"),
        ("deep", dict(overwrite=True, files=["mine/0"]), "deep holds mine/1, which"),
        ("linked", dict(overwrite=True, files=["0", "1"]), "linked holds link, which"),
        ("nowhere", dict(), "nowhere is there already; overwrite=True"),
        ("nowhere", dict(files=["0"]), "nowhere is there already; overwrite=True"),
        ("/", dict(files=["0"]), "^/ is there already; overwrite=True"),
        ("/", dict(), "^/ is there already, and is a directory"),
        ("x" * 300, dict(), "xx can't be written: File name too long"),
    ],
)
def test_what_must_not_be_written_is_said(disk, path, options, problem):
    write("file", "mine")
    write("mine", "one", "two")
    write("deep/mine", "one", "two")
    pathlib.Path("linked").mkdir()
    pathlib.Path("linked/link").symlink_to(pathlib.Path("mine").absolute())
    pathlib.Path("nowhere").symlink_to("nothing")
    with pytest.raises(SetupError, match=problem):
        check_may_write(pathlib.Path(path).absolute(), **dict(overwrite=False) | options)


def test_what_may_be_written(disk):
    write("file", "mine")
    write("deep/mine", "one", "two")
    pathlib.Path("empty").mkdir()
    pathlib.Path("link").symlink_to("deep")
    for path, options in (
        ("new/parents", dict()),
        ("file", dict(overwrite=True)),
        ("empty", dict(files=["0"])),
        ("deep", dict(overwrite=True, files=["mine/[0-9]"])),
        ("link", dict(overwrite=True, files=["mine/*"])),
    ):
        check_may_write(pathlib.Path(path).absolute(), **dict(overwrite=False) | options)


def test_an_error_of_the_disk_names_what_was_meant():
    with (
        pytest.raises(SetupError, match="^net can't be written: Permission denied$"),
        writing("net"),
    ):
        raise PermissionError(errno.EACCES, "Permission denied", "/tmp/.1234.net")
