"""Output that goes away, or is not there, while a program works."""

import os
import subprocess
import sys

import pytest
from running import ROOT

PROGRAM = """
import importlib.util, logging, sys
logging.basicConfig()
spec = importlib.util.spec_from_file_location("output", sys.argv[1])  # without JAX
output = importlib.util.module_from_spec(spec)
spec.loader.exec_module(output)
output.make_lasting()
for i in range(3000):
    print("line", i, "\\u00fc" * 20, flush=True)
    print("error", i, file=sys.stderr)
assert logging.root.handlers[0].stream is sys.stderr
open("done", "w").write(str(output.is_lost()))
"""


def shell(command, directory, **variables):
    (directory / "program.py").write_text(PROGRAM)
    program = f"'{sys.executable}' program.py '{ROOT / 'focalnet_jax' / 'output.py'}'"
    result = subprocess.run(
        ["bash", "-c", command.replace("PROGRAM", program)],
        cwd=directory,
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )
    return result, (directory / "done").read_text()


@pytest.mark.parametrize(
    ("command", "lost"),
    [
        ("PROGRAM 2>&1 | head -1; exit ${PIPESTATUS[0]}", "False"),
        ("PROGRAM >/dev/full", "True"),
        ("PROGRAM >/dev/full 2>&1", "True"),
        ("PROGRAM >&- 2>&- <&-", "False"),
    ],
)
def test_the_program_goes_on(command, lost, tmp_path):
    result, said = shell(command, tmp_path, PYTHONIOENCODING="ascii")
    assert result.returncode == 0
    assert "Traceback" not in result.stderr
    assert said == lost
    if command == "PROGRAM >/dev/full":
        assert result.stderr.count("standard output can't be written any more: No") == 1
