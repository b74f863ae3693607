"""What a process frees stays with it."""

import pathlib
import subprocess
import sys

import pytest

from focalnet_jax.train.freed_memory import keep_freed_memory

# The pages that are left after a large block has been written and freed.
PROGRAM = """
import pathlib, sys
from focalnet_jax.train.freed_memory import keep_freed_memory

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1])

if sys.argv[1] == "keep":
    assert keep_freed_memory()
before = resident()
block = b"x" * (64 << 20)
del block
print(resident() - before)
"""


def pages_left(option):
    command = [sys.executable, "-c", PROGRAM, option]
    return int(subprocess.run(command, check=True, capture_output=True).stdout)


@pytest.mark.skipif(
    not pathlib.Path("/proc/self/statm").exists(), reason="reads what Linux says"
)
def test_glibc_keeps_a_freed_block():
    pages = (64 << 20) // 4096
    assert pages_left("leave") < pages / 2 < pages_left("keep")


@pytest.mark.parametrize("answer", [None, "", ValueError, OSError])
def test_another_c_library_is_left_alone(answer, monkeypatch):
    def confstr(name):
        if isinstance(answer, type):
            raise answer
        return answer

    monkeypatch.setattr("os.confstr", confstr, raising=False)
    monkeypatch.setattr("ctypes.CDLL", lambda _: pytest.fail("mallopt was looked up"))
    assert not keep_freed_memory()


def test_a_system_without_confstr_is_left_alone(monkeypatch):
    monkeypatch.delattr("os.confstr", raising=False)
    assert not keep_freed_memory()
