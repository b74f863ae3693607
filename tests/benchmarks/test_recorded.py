"""The command that results hold, `benchmarks/recorded.py`."""

import sys

import recorded


def test_a_command_holds_no_paths(monkeypatch):
    words = ["x.py", "--json=/a/b", "--rounds=3", "--before", "/a/c", "--tasks", "a b"]
    monkeypatch.setattr(sys, "argv", words)
    expected = "python benchmarks/x.py --json=FILE --rounds=3 --before DIR --tasks 'a b'"
    assert recorded.command("benchmarks/x.py") == expected
