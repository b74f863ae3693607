"""Processes that meet before JAX joins them, and those that don't come."""

import concurrent.futures
import contextlib
import socket

import jax
import numpy as np
import pytest

from focalnet_jax.errors import SetupError
from focalnet_jax.train import processes
from focalnet_jax.train.processes import _Meeting, join_processes


def met(*guests, seconds=20):
    """How the meeting of (process_id, num_processes) ends for each: None or a message."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"

    def meet(guest):
        process_id, count = guest
        try:
            return _Meeting(address, count, process_id, seconds).wait()
        except SetupError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(len(guests)) as pool:
        return [*pool.map(meet, guests)]


def test_all_come():
    assert met((0, 3), (1, 3), (2, 3)) == [None] * 3


def test_two_with_the_same_number():
    for message in met((0, 3), (1, 3), (1, 3)):
        assert "--process_id=1 is given to two processes: process" in message


def test_two_that_are_the_first():
    assert any("can't listen at" in message for message in met((0, 2), (0, 2), seconds=1))


def test_two_numbers_of_processes():
    for message in met((0, 3), (1, 2)):
        assert "has --num_processes=2, and process 0 has 3" in message


def test_one_that_does_not_come(monkeypatch, capfd):
    monkeypatch.setattr(processes, "_QUIET_SECONDS", 0.2)
    for message in met((0, 3), (2, 3), seconds=1):
        assert "has waited for 1 seconds at localhost:" in message
    said = capfd.readouterr().err
    assert "is waiting at localhost:" in said
    assert "1 of 3 processes are missing, those with --process_id 1" in said
    [message] = met((1, 2), seconds=1)
    assert "process 0 can't be reached there: Connection refused" in message


@pytest.mark.parametrize("mine", [None, "here\N{BLACK STAR}", ZeroDivisionError("here")])
@pytest.mark.parametrize("theirs", ["", "there \x00name\x00\N{BLACK STAR}"])
def test_what_fails_on_one_fails_on_all(mine, theirs, monkeypatch):
    """This is the first of two processes, and the other one is made up."""
    texts = iter([len(theirs.encode()), np.frombuffer(theirs.encode(), np.uint8)])

    def gathered(value):
        other = np.zeros_like(value)
        other[...] = np.resize(next(texts), value.shape) if theirs else 0
        return np.stack([value, other])

    left = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: left.append(1))
    monkeypatch.setattr(processes, "sync_global_devices", lambda name: None)
    monkeypatch.setattr(processes, "process_allgather", gathered)
    message = str(mine or f"process 1 of the run has failed: {theirs}")
    kind = ZeroDivisionError if isinstance(mine, ZeroDivisionError) else SetupError
    fails = pytest.raises(kind) if mine or theirs else contextlib.nullcontext()
    with fails as raised, processes.failing_together():
        if mine:
            raise mine if kind is ZeroDivisionError else SetupError(mine)
    assert bool(left) == bool(mine or theirs)
    if raised:
        assert raised.value.args[0] == message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("localhost", 2, 0), "localhost is not HOST:PORT"),
        (("localhost:0", 2, 0), "localhost:0 is not HOST:PORT"),
        (("localhost:99999", 2, 0), "localhost:99999 is not HOST:PORT"),
        (("http://localhost:1", 2, 0), "is not HOST:PORT"),
        (("localhost:1", 2, 2), "--process_id=2 is too large for --num_processes=2"),
        (("localhost:1", 0, None), "--num_processes=0: a run has at least 1"),
        (("localhost:1", None, None), "--num_processes, --process_id of this process"),
        ((None, 2, None), "--coordinator_address, --process_id of this process"),
    ],
)
def test_arguments_that_do_not_fit(given, message, monkeypatch):
    def finds_no_cluster(**_):  # The real one can't be called after JAX has been used.
        raise ValueError("Number of processes must be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", finds_no_cluster)
    with pytest.raises(SetupError, match=message):
        join_processes(*given, seconds=1)
