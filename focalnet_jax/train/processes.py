"""How the processes of a run find each other, and what is said while they wait.

JAX waits in silence, and ends a process that has waited too long with a stack of C++. So
processes that are told who they are meet before that, at the address of the first one.
There it is known who has come, who is missing, and whether two have the same number.
"""

import contextlib
import json
import os
import re
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather, sync_global_devices

from focalnet_jax.errors import SetupError, first_line

# After so long a person wants to know what is waited for.
_QUIET_SECONDS = 5
# Between two attempts to reach the first process.
_RETRY_SECONDS = 0.5
# The first process takes so long, at most, to tell the others why it ends.
_GOODBYE_SECONDS = 2
# So many bytes of a message reach the other processes.
_LONGEST_TEXT = 4096
_FLAGS = ("coordinator_address", "num_processes", "process_id")
_ADVICE = (
    "give each process of the run --coordinator_address=HOST:PORT --num_processes=N "
    "--process_id=I, with I from 0 to N-1 and the host of process 0"
)


def join_processes(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    seconds: int,
) -> None:
    """Joins the processes of a run, where there are several.

    They are those that the arguments name, or that JAX finds by itself: the hosts of a
    TPU pod slice, the tasks of a Slurm job.

    Args:
      coordinator_address: HOST:PORT of the first process.
      num_processes: how many make up the run.
      process_id: which one this is, from 0 on.
      seconds: how long to wait for the others.

    Raises:
      SetupError: the arguments don't fit together, or somebody hasn't come in time.
    """
    values: tuple[Any, Any, Any] = (coordinator_address, num_processes, process_id)
    _check(*values)
    if None not in values and values[1] > 1:
        _Meeting(*values, seconds).wait()
    given = dict(zip(_FLAGS, values))
    with _waiting_told(seconds):
        try:
            # What is said by then is ours.
            jax.distributed.initialize(**given, initialization_timeout=seconds + 60)
        except ValueError as error:
            if missing := [name for name in _FLAGS if given[name] is None]:
                if len(missing) == len(_FLAGS) and _FLAGS[0] in str(error):
                    return  # JAX found no cluster: this process is alone.
                raise SetupError(
                    f"{', '.join(f'--{name}' for name in missing)} of this process "
                    f"isn't known, nor is there a cluster that tells it; {_ADVICE}"
                ) from error
            raise


def _check(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> None:
    if coordinator_address is not None:
        address = re.fullmatch(r"([\w.-]+|\[[\w.:%]+\]):(\d{1,5})", coordinator_address)
        if address is None or not 0 < int(address[2]) < 2**16:
            raise SetupError(
                f"--coordinator_address={coordinator_address} is not HOST:PORT, such as "
                "10.0.0.1:1234; the port is any that is free on the host of process 0"
            )
    if num_processes is not None:
        if num_processes < 1:
            raise SetupError(f"--num_processes={num_processes}: a run has at least 1")
        if process_id is not None and process_id >= num_processes:
            raise SetupError(
                f"--process_id={process_id} is too large for "
                f"--num_processes={num_processes}: they are numbered from 0 to "
                f"{num_processes - 1}"
            )


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """What fails on one process of a run in this block fails on all, with its message.

    Otherwise the others would wait for the one that has ended, and JAX would end them
    with a stack of C++. All processes have to come here, and none may wait for another
    one inside.

    Raises:
      SetupError: another process has failed.
    """
    if jax.process_count() == 1:
        yield
        return
    # They are connected now, and may then wait for long: the transport between CPUs takes
    # no more than 30 seconds to connect.
    sync_global_devices("all begin what fails together")
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    failures = _shared("" if failure is None else _told(failure))
    if failure or any(failures):
        # Each leaves only when all know, so that no one misses another one.
        jax.distributed.shutdown()
        if failure:
            raise failure
        index = next(i for i, text in enumerate(failures) if text)
        raise SetupError(f"process {index} of the run has failed: {failures[index]}")


def _told(error: Exception) -> str:
    is_ours = isinstance(error, SetupError) and error.args
    return error.args[0] if is_ours else f"{type(error).__name__}: {first_line(error)}"


def _shared(text: str) -> list[str]:
    """The texts of all processes, cut off if they are very long."""
    mine = np.zeros(_LONGEST_TEXT, np.uint8)
    encoded = text.encode("utf-8", "backslashreplace")[:_LONGEST_TEXT]
    mine[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    lengths = np.reshape(process_allgather(np.int32(len(encoded))), -1)
    rows = np.reshape(process_allgather(mine), (-1, _LONGEST_TEXT))
    return [
        bytes(row[:length]).decode("utf-8", "ignore")
        for row, length in zip(rows, lengths)
    ]


@contextlib.contextmanager
def _waiting_told(seconds: int) -> Iterator[None]:
    """Says that JAX waits, if it takes long; ends the process if it takes too long."""
    is_over = threading.Event()

    def watch():
        if is_over.wait(_QUIET_SECONDS):
            return
        _say(f"waiting for the other processes of the run, for up to {seconds} seconds")
        if not is_over.wait(seconds - _QUIET_SECONDS):
            _say(
                f"error: the other processes of the run have not come in {seconds} "
                "seconds; look at their output, and start the same command on every host"
            )
            os._exit(1)  # The main thread is in JAX, which would end it with a stack.

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


class _Guest(NamedTuple):
    """A process that has come to the meeting."""

    process_id: int
    num_processes: int
    name: str


class _Meeting:
    """Has all processes meet at the address, before JAX uses the same port.

    Each connects to the first process, this one too, and says who it is. The first tells
    all of them who is missing, and at last that they may go. Each message is a line of
    JSON.
    """

    def __init__(self, address: str, num_processes: int, process_id: int, seconds: int):
        self._address = address
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._me = _Guest(process_id, num_processes, _own_name())
        self._start = time.monotonic()
        self._seconds = seconds
        self._has_said = False
        self._status: str | None = None

    def wait(self) -> None:
        """Returns when all are there; raises SetupError if that can't be."""
        with self._hosted():
            while not self._has_met():
                self._say_or_give_up()
                time.sleep(_RETRY_SECONDS)

    @contextlib.contextmanager
    def _hosted(self) -> Iterator[None]:
        """Has the first process receive the others."""
        if self._me.process_id != 0:
            yield
            return
        arguments = (self._listen(), self._me.num_processes)
        host = threading.Thread(target=_receive, args=arguments, daemon=True)
        host.start()
        try:
            yield
        finally:
            # Until the others know, too, and the port is free again.
            host.join(_GOODBYE_SECONDS)

    def _has_met(self) -> bool:
        try:
            with socket.create_connection((self._host, self._port), 5) as connection:
                return self._talk(connection)
        except OSError as error:
            self._status = f"process 0 can't be reached there: {_reason(error)}"
            return False

    def _listen(self) -> socket.socket:
        # As JAX will: at all addresses of this host.
        bound = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", f":{self._port}")
        port = int(bound.rpartition(":")[2])
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        try:
            return socket.create_server(("", port), family=family, dualstack_ipv6=both)
        except OSError as error:
            raise SetupError(
                f"process 0 can't listen at {self._address}: {_reason(error)}. Another "
                "process 0 of the run may be there, or another program; each process of "
                "a run has its own --process_id, and each run its own port"
            ) from error

    def _talk(self, connection: socket.socket) -> bool:
        """Says who this is, and listens; returns whether all are there."""
        connection.settimeout(_RETRY_SECONDS)
        connection.sendall(_encoded(self._me._asdict()))
        received = b""
        while True:
            try:
                part = connection.recv(4096)
                if not part:
                    self._status = "process 0 has gone away"
                    return False
                received += part
            except TimeoutError:
                pass
            *lines, received = received.split(b"\n")
            for line in lines:
                message = _decoded(line)
                if message is None:
                    self._status = "what answers there is not process 0 of this program"
                    return False
                if error := message.get("error"):
                    raise SetupError(error)
                if message.get("go"):
                    return True
                self._status = message.get("status")
            self._say_or_give_up()

    def _say_or_give_up(self) -> None:
        waited = time.monotonic() - self._start
        status = self._status or "process 0 there has not answered yet"
        if waited > self._seconds:
            raise SetupError(
                f"process {self._me.process_id} of {self._me.num_processes} has waited "
                f"for {self._seconds} seconds at {self._address}: {status}. Look at the "
                "output of those that are missing, and whether this host may reach "
                "that port; then start the same command on every host"
            )
        if waited > _QUIET_SECONDS and not self._has_said:
            self._has_said = True
            _say(
                f"process {self._me.process_id} of {self._me.num_processes} is waiting "
                f"at {self._address}, for up to {self._seconds} seconds: {status}"
            )


def _receive(listener: socket.socket, num_processes: int) -> None:
    """Receives the processes at the first one, until all are there."""
    guests: dict[socket.socket, _Guest | None] = {}
    while True:
        ready, _, _ = select.select([listener, *guests], [], [])
        for connection in ready:
            if connection is listener:
                guests[listener.accept()[0]] = None
            elif (guest := _read(connection)) is None:
                del guests[connection]  # It has gone, or is of another program.
                connection.close()
            else:
                guests[connection] = guest
        known = [guest for guest in guests.values() if guest]
        message = _verdict(known, num_processes)
        if "go" in message:
            listener.close()
        for connection, guest in guests.items():
            if guest:
                with contextlib.suppress(OSError):
                    connection.sendall(_encoded(message))
        if "status" not in message:
            break
    listener.close()
    for connection in guests:
        connection.close()


def _verdict(guests: list[_Guest], num_processes: int) -> dict[str, str | bool]:
    """What the first process says to all who are there."""
    by_id: dict[int, _Guest] = {}
    error = None
    for guest in guests:
        if guest.num_processes != num_processes:
            error = (
                f"process {guest.process_id} ({guest.name}) has --num_processes="
                f"{guest.num_processes}, and process 0 has {num_processes}"
            )
        if other := by_id.get(guest.process_id):
            error = (
                f"--process_id={guest.process_id} is given to two processes: "
                f"{other.name} and {guest.name}; {_ADVICE}"
            )
        by_id[guest.process_id] = guest
    if error and 0 in by_id:  # The first process has to hear it, too.
        return {"error": error}
    missing = [str(i) for i in range(num_processes) if i not in by_id]
    if not missing:
        return {"go": True}
    shown = ", ".join(missing[:8]) + (" ..." if len(missing) > 8 else "")
    return {
        "status": f"{len(missing)} of {num_processes} processes are missing, those with "
        f"--process_id {shown}"
    }


def _read(connection: socket.socket) -> _Guest | None:
    try:
        connection.settimeout(5)
        message = _decoded(connection.makefile("rb").readline(4096))
        return _Guest(**message) if message else None
    except (OSError, TypeError):
        return None


def _encoded(message: dict) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _decoded(line: bytes) -> dict | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def _own_name() -> str:
    return f"process {os.getpid()} on host {socket.gethostname()}"


def _reason(error: OSError) -> str:
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)  # The name of a host isn't known.


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
