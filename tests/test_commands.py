"""The command `focalnet`, which runs the other ones."""

import os
import subprocess
import sys

import pytest

import focalnet_jax
from focalnet_jax.__main__ import COMMANDS, parse

PROGRAM = "python -m focalnet_jax"


def run(*arguments, directory):
    command = [sys.executable, "-m", "focalnet_jax", *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True)


def test_help_lists_the_commands_with_what_they_do(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse(["--help"])
    listed = capsys.readouterr().out.partition("commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == [*COMMANDS]
    for line in listed:  # A sentence, with a verb that begins with a capital letter.
        assert line.split()[1].istitle(), line
        assert line.endswith("."), line


def test_the_version_is_shown(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse(["--version"])
    assert capsys.readouterr().out == f"focalnet_jax {focalnet_jax.__version__}\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("predic", "'predic' is unknown; did you mean 'predict'?"),
        ("sing", "'sing' is unknown; there are convert, demo,"),
        ("--config=base", "the following arguments are required: COMMAND"),
        ("", "'' is unknown; there are"),
    ],
)
def test_other_commands_are_refused(name, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse([name])
    assert message in capsys.readouterr().err


def test_a_command_gets_its_arguments_and_its_name(tmp_path):
    result = run("predict", "--help", directory=tmp_path)
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: {PROGRAM} predict [-h] --weights")
    assert f"    {PROGRAM} predict photo.jpg" in result.stdout
    assert "focalnet_jax.predict" not in result.stdout
    result = run("predict", "seven.png", "--weights=runs", directory=tmp_path)
    assert result.returncode == 1
    assert result.stderr == "error: there is no file seven.png\n"
    # Messages name other commands as this one was called.
    result = run("export", "net.pth", "--weights=runs", directory=tmp_path)
    assert f"are written by {PROGRAM} convert\n" in result.stderr


def test_training_is_a_command_as_well(tmp_path):
    result = run("train", "--help", directory=tmp_path)
    assert result.returncode == 0
    assert f"\n{PROGRAM} train --config=mine.py" in result.stdout
    assert "--compile_for" in result.stdout
    result = run("train", "--config=bse", directory=tmp_path)
    assert result.returncode == 1
    assert "error: there is no recipe 'bse'; did you mean 'base'?" in result.stderr
    assert not os.listdir(tmp_path)


def test_without_a_command_help_is_shown(tmp_path):
    result = run(directory=tmp_path)
    assert result.returncode == 0
    assert f"usage: {PROGRAM} [-h] [--version] COMMAND ..." in result.stdout
    assert f"    {PROGRAM} COMMAND --help\n" in result.stdout
