"""A workdir has one writer: `run.lock` says which run that is, and that it is alive.

The holder touches the file every ten seconds. Whoever wants the workdir finds out whether
the holder is gone:

- On the same machine the process is looked up, by its number and the time of its start.
- Elsewhere, or in another container, the file is watched for a minute. Only a change
  counts, and not the time that it shows, since clocks differ.

Files on disks are made by a hard link, objects in buckets by a write that is conditional
on their generation. So of several runs that start at once, one gets the lock.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import secrets
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import tensorstore
from etils import epath

from focalnet_jax.errors import SetupError, first_line
from focalnet_jax.paths import is_remote

LOCK = "run.lock"
# How often the holder touches the file.
_HEARTBEAT_SECONDS = 10
# A holder that has not touched it for so long is gone.
_GONE_AFTER_SECONDS = 60
# How often the file is looked at while it is watched.
_LOOK_SECONDS = 1
# Two hosts that replace a lock in the same moment find out after it.
_SETTLE_SECONDS = 1


class WorkdirLock:
    """Holds the lock of a workdir, on the first process of a run.

    Whoever only reads a workdir needs no lock.

    Args:
      workdir: is made if it doesn't exist, and removed again if nothing came of it.
      say: is called with a line if there is something to wait for.

    Raises:
      SetupError: another run holds it, or the workdir can't be written.
    """

    def __init__(self, workdir: epath.Path, *, say: Callable[[str], None] = print):
        self._workdir = workdir
        self._say = say
        self._taken_by: _Holder | None = None
        self._ending = threading.Event()
        self._beating = threading.Lock()

    def __enter__(self):
        self._active = jax.process_index() == 0
        if not self._active:
            return self
        remote = is_remote(self._workdir)
        with _write_errors_told(self._workdir):
            places = [] if remote else [self._workdir, *self._workdir.parents]
            self._new = [place for place in places if not place.exists()]
            try:
                self._workdir.mkdir(parents=True, exist_ok=True)
                self._file = (_Object if remote else _File)(self._workdir / LOCK)
                self._mine = json.dumps(_this_process(self._workdir), indent=2) + "\n"
                self._acquire()
            except BaseException:
                self._remove_new()
                raise
        self._beaten = time.monotonic()
        threading.Thread(target=self._beat_on, daemon=True).start()
        return self

    def __exit__(self, *_):
        if not self._active:
            return
        self._ending.set()
        with self._beating, contextlib.suppress(OSError, ValueError, SetupError):
            if self._file.is_mine(self._mine):
                self._file.remove()
        self._remove_new()

    def _remove_new(self) -> None:
        """Removes directories that were made for nothing."""
        with contextlib.suppress(OSError):
            for place in self._new:
                os.rmdir(place)  # This fails if there is something in it.

    def check(self) -> None:
        """Makes sure that the run may still write.

        Raises:
          SetupError: another run has taken over, since this one seemed to be gone.
        """
        if not self._active:
            return
        # It may have been stopped, and nobody knows what has happened meanwhile.
        if time.monotonic() - self._beaten > _GONE_AFTER_SECONDS / 2:
            self._beat()
        if self._taken_by is not None:
            raise SetupError(
                f"this run was still for more than {_GONE_AFTER_SECONDS} seconds, and "
                f"{self._taken_by} has taken over {self._workdir}"
            )

    def _acquire(self) -> None:
        watched, since = None, 0.0
        while True:
            seen = self._file.read()
            if seen.content is None:
                if self._file.write_if(seen, self._mine):
                    return
                time.sleep(_LOOK_SECONDS)  # Somebody else has been faster.
                continue
            holder = _Holder.read(seen.content)
            is_alive = holder.is_alive(self._file)
            if watched and watched.content == seen.content:
                if watched.version != seen.version:
                    is_alive = True
                elif time.monotonic() - since > _GONE_AFTER_SECONDS:
                    is_alive = False
            elif is_alive is None:
                watched, since = seen, time.monotonic()
                self._say(
                    f"{holder} holds {self._workdir}; waiting for up to "
                    f"{_GONE_AFTER_SECONDS} seconds to see whether it is still there"
                )
            if is_alive:
                raise SetupError(
                    f"{holder} is writing to {self._workdir}. End that run first"
                    f"{holder.how_to_end()}, or give this one another --workdir"
                )
            if is_alive is None:
                time.sleep(_LOOK_SECONDS)
            elif self._file.write_if(seen, self._mine):
                return

    def _beat_on(self) -> None:
        while not self._ending.wait(_HEARTBEAT_SECONDS) and self._taken_by is None:
            self._beat()

    def _beat(self) -> None:
        # A store that can't be reached for a while is no reason to end.
        with self._beating, contextlib.suppress(OSError, ValueError, SetupError):
            if self._ending.is_set():
                return
            if not self._file.touch(self._mine):
                seen = self._file.read()
                # Somebody has deleted it by hand.
                is_back = seen.content is None and self._file.write_if(seen, self._mine)
                if not is_back:
                    content = self._file.read().content
                    self._taken_by = _Holder.read(content or "")
                    return
            self._beaten = time.monotonic()


class _Holder(NamedTuple):
    """The process that has written a lock; fields are None if the lock is damaged."""

    host: str | None = None
    process: int | None = None
    since: str | None = None
    machine: str | None = None
    started: str | None = None
    workdir: str | None = None

    @classmethod
    def read(cls, content: str) -> "_Holder":
        try:
            fields = json.loads(content)
            holder = cls(**{name: fields.get(name) for name in cls._fields})
        except (ValueError, AttributeError, RecursionError):
            return cls()
        return holder if holder._is_possible() else cls()

    def _is_possible(self) -> bool:
        shown = (self.host, self.since)
        compared = (self.machine, self.started, self.workdir)
        return (
            type(self.process) is int
            and 0 < self.process < 2**31
            and all(isinstance(text, str) and text.isprintable() for text in shown)
            and all(isinstance(text, str | None) for text in compared)
        )

    def __str__(self) -> str:
        if self.process is None:
            return "a run that is not known, since its lock is damaged,"
        return f"process {self.process} on host {self.host}, which began {self.since},"

    def how_to_end(self) -> str:
        if self.process is None:
            return ""
        return f" (kill {self.process} on {self.host} has it save and end)"

    def is_alive(self, file: "_File | _Object") -> bool | None:
        """Whether the process is there; None if that can't be seen from here."""
        if not self.machine or self.machine != _machine() or self.process is None:
            return None
        started = _start_of(self.process)
        if started is not None and started != self.started:
            return False
        # The workdir may have been copied, and this is no lock of that process.
        return True if started and file.is_at(self.workdir) else None


def _this_process(workdir: epath.Path) -> dict[str, str | int | None]:
    now = datetime.datetime.now(datetime.UTC)
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": now.strftime("%Y-%m-%d %H:%M:%S UTC"),
        "machine": _machine(),
        "started": _start_of(os.getpid()),
        "workdir": os.fspath(workdir),
        "id": secrets.token_hex(8),
    }


def _machine() -> str | None:
    """What tells whether two processes see the same numbers of processes.

    It is of a machine since it was booted, and of a container on it.
    """
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text("utf-8")
        return f"{boot.strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None  # Not Linux.


def _start_of(process: int) -> str | None:
    """When a process began, in ticks since the boot; "" if there is none.

    It is None if the process belongs to somebody else and is hidden.
    """
    try:
        status = pathlib.Path(f"/proc/{process}/stat").read_text("utf-8", "replace")
    except OSError:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return ""
        except OSError:
            pass
        return None
    # The name of the program stands in parentheses, and may hold any character.
    fields = status.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]


class _Seen(NamedTuple):
    """What is at a place: a text or None, and what changes with each write."""

    content: str | None
    version: Any


class _File:
    """A lock on a disk or a shared file system."""

    def __init__(self, path: epath.Path):
        self._path = pathlib.Path(path)

    def read(self) -> _Seen:
        try:
            # Opening it has a network file system ask its server. A pipe would have this
            # wait for somebody who writes to it.
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as error:
            if self._path.is_symlink():
                raise self._no_lock("a link to what is not there") from error
            return _Seen(None, None)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise self._no_lock("no file")
        with open(descriptor, encoding="utf-8", errors="replace") as file:
            return _Seen(file.read(), (status.st_ino, status.st_mtime_ns))

    def _no_lock(self, what: str) -> SetupError:
        return SetupError(
            f"{self._path} says which run writes there, and it is {what}: remove it, or "
            "give another --workdir"
        )

    def write_if(self, seen: _Seen, content: str) -> bool:
        """Writes if what is there is still what was seen; returns whether it was."""
        aside = self._path.with_name(f".{LOCK}.{secrets.token_hex(4)}")
        try:
            aside.write_text(content, encoding="utf-8")
            if seen.content is None:
                return self._create(aside, content)
            with self._guarded():
                if self.read() != seen:
                    return False
                aside.replace(self._path)
        finally:
            aside.unlink(missing_ok=True)
        time.sleep(_SETTLE_SECONDS)
        return self.is_mine(content)

    def touch(self, content: str) -> bool:
        """Shows a sign of life; returns False if the file is somebody else's."""
        if not self.is_mine(content):
            return False
        os.utime(self._path)
        return True

    def is_mine(self, content: str) -> bool:
        return self.read().content == content

    def remove(self) -> None:
        self._path.unlink()

    def is_at(self, workdir: str | None) -> bool:
        """Whether it is the lock of that directory, and no copy."""
        try:
            return self._path.samefile(pathlib.Path(workdir or "") / LOCK)
        except (OSError, ValueError):  # The latter for what is no path.
            return False

    def _create(self, aside: pathlib.Path, content: str) -> bool:
        try:
            os.link(aside, self._path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOENT):
                raise
            # This file system has no hard links.
            try:
                file = self._path.open("x", encoding="utf-8")
            except FileExistsError:
                return False
            with file:
                file.write(content)
        return True

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Keeps other processes of this machine out, where directories can be locked."""
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(directory, fcntl.LOCK_EX)
            yield
        finally:
            os.close(directory)


class _Object:
    """A lock in a bucket."""

    def __init__(self, path: epath.Path):
        self._path = os.fspath(path)
        self._store = tensorstore.KvStore.open(self._path).result()
        self._version: bytes | None = None

    def read(self) -> _Seen:
        found = self._store.read("").result()
        content = None
        if found.state == "value":
            content = found.value.decode("utf-8", "replace")
        return _Seen(content, found.stamp.generation)

    def write_if(self, seen: _Seen, content: str) -> bool:
        """Writes if what is there is still what was seen; returns whether it was."""
        stamp = self._store.write("", content, if_equal=seen.version).result()
        self._version = stamp.generation  # It is empty if nothing was written.
        return bool(self._version)

    def touch(self, content: str) -> bool:
        """Shows a sign of life; returns False if the object is somebody else's."""
        seen = self.read()
        return seen.content == content and self.write_if(seen, content)

    def is_mine(self, content: str) -> bool:
        return self.read().content == content

    def remove(self) -> None:
        self._store.write("", None, if_equal=self._version).result()

    def is_at(self, workdir: str | None) -> bool:
        """Whether it is the lock of that directory, and no copy."""
        return workdir is not None and self._path == f"{workdir.rstrip('/')}/{LOCK}"


@contextlib.contextmanager
def _write_errors_told(workdir: epath.Path) -> Iterator[None]:
    """Raises SetupError for a place that can't be written."""
    # The libraries that reach buckets raise errors of all kinds.
    expected = Exception if is_remote(workdir) else OSError
    try:
        yield
    except (SetupError, ImportError):
        raise
    except expected as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise SetupError(
            f"the run can't write to {workdir}: {_in_the_way(workdir) or reason}; give "
            "another place by --workdir"
        ) from error


def _in_the_way(workdir: epath.Path) -> str | None:
    if is_remote(workdir):
        return None
    for path in (workdir, *workdir.parents):
        with contextlib.suppress(OSError):
            if path.exists():
                return None if path.is_dir() else f"{path} is a file"
    return None
