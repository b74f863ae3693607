"""Standard output and standard error that may go away while a program works.

The reader of a pipe ends, a terminal is closed, the disk under a log gets full. None of
these is an error of the work that is done.
"""

import contextlib
import errno
import io
import logging
import os
import select
import sys

# The reader has what it wanted, or there is nobody any more.
_NOBODY_READS = (errno.EPIPE, errno.EIO)


class _Lasting(io.FileIO):
    """A file descriptor that goes on as a sink when it can't be written any more.

    Attributes:
      failure: the first error of writing, if there was one.
    """

    failure: OSError | None = None

    def write(self, data) -> int:
        try:
            while (written := super().write(data)) is None:  # It must not block.
                select.select([], [self], [])
            return written
        except OSError as error:
            self.failure = error
            # What other libraries write there goes the same way.
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, self.fileno())
            os.close(sink)
            if error.errno not in _NOBODY_READS:
                _tell(f"{self.name} can't be written any more: {error.strerror}")
            return memoryview(data).nbytes


def make_lasting() -> None:
    """Has `sys.stdout` and `sys.stderr` survive everything that happens to them.

    They may be closed at the start. And characters that their encoding lacks are
    written as escapes. Streams that somebody else has put there stay as they are.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The next file that is opened would get its number, and all messages.
            os.open(os.devnull, os.O_RDWR)  # The least number that is free.
    for name, descriptor in {"stderr": 2, "stdout": 1}.items():
        stream = getattr(sys, name)
        if stream is None:
            lasting = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__"):
            stream.flush()
            raw = _Lasting(descriptor, "w", closefd=False)
            raw.name = "standard output" if descriptor == 1 else "standard error"
            lasting = io.TextIOWrapper(
                io.BufferedWriter(raw),
                encoding=stream.encoding,
                errors="backslashreplace",
                line_buffering=True,  # Both may go to one file, and stay in order there.
            )
        else:
            continue
        setattr(sys, name, lasting)
        for handler in logging.root.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
                handler.setStream(lasting)


def is_lost() -> bool:
    """Whether standard output has lost what somebody wanted to have."""
    failure = _failure()
    return failure is not None and failure.errno not in _NOBODY_READS


def nobody_reads() -> bool:
    """Whether what is written to standard output goes nowhere any more."""
    return _failure() is not None


def _failure() -> OSError | None:
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return getattr(raw, "failure", None)


def _tell(message: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{message}\n".encode())
