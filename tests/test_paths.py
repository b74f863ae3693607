"""Paths as people give them, wherever they stand and whatever home they have."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from focalnet_jax.errors import SetupError
from focalnet_jax.paths import absolute_path, read_json, without_file_scheme
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
