"""Contenders that take turns: each is a process of its own, which waits for requests.

So no framework holds threads or memory of another, all see the same state of the machine,
and one that fails or hangs takes none of the others with it. The program that measures
starts `Contender`s and asks them; the contender's program calls `serve`. They exchange
lines of JSON: `["prepare", task]` and `["turn", task]` one way, an object the other way.
"""

import concurrent.futures
import contextlib
import json
import math
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

LONGEST_MESSAGE = 500


def serve(prepare: Callable[[str], tuple[Callable[[], float] | None, dict]]) -> None:
    """Answers the requests that come in, until there are no more.

    Args:
      prepare: makes a task ready, such as by compiling it. It returns a function that
        takes a turn and returns its seconds, or None for a task without turns, and what
        else is to be told of the task. An exception is an answer, too.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What libraries print goes elsewhere.
    turns = {}
    for line in sys.stdin:
        request, task = json.loads(line)
        try:
            if request == "prepare":
                turns[task], answer = prepare(task)
            else:
                answer = {"seconds": turns[task]()}
        except Exception as error:
            answer = {"error": message_of(error)}
        print(json.dumps(answer), file=answers, flush=True)


def message_of(error: Exception) -> str:
    """An error's class and first line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:LONGEST_MESSAGE]


class ContenderError(Exception):
    """A contender can't do what it was asked for."""


class Contender:
    """A process that takes turns; it starts at once, and anew if it has ended.

    Args:
      name: the contender's name.
      command: of its process, which calls `serve`.
      environment: of its process.
      lane: contenders of one lane are not prepared at the same time.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: dict[str, str] | None = None,
        lane: str = "",
    ):
        self.name, self.lane = name, lane
        self._command, self._environment = command, environment
        self._start()

    def _start(self):
        self._unread = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("VERBOSE") else self._errors,
            bufsize=0,
            start_new_session=True,  # It ends together with the processes it starts.
        )

    def prepare(self, task: str, *, timeout: float) -> dict[str, Any]:
        """Makes a task ready, in a new process if the last one has ended.

        Raises:
          ContenderError, TimeoutError: as `ask`.
        """
        if self._process.poll() is not None:
            self.end()
            self._start()
        return self.ask("prepare", task, timeout=timeout)

    def turn(self, task: str, *, timeout: float) -> float:
        """The seconds of a turn.

        Raises:
          ContenderError, TimeoutError: as `ask`.
        """
        return self.ask("turn", task, timeout=timeout)["seconds"]

    def ask(self, request: str, task: str, *, timeout: float) -> dict[str, Any]:
        """The answer to a request.

        Raises:
          ContenderError: the contender reports an error, or its process has ended.
          TimeoutError: there is no answer in time; the process has then been ended.
        """
        with contextlib.suppress(OSError):  # It has ended, which is seen below.
            self._process.stdin.write(json.dumps([request, task]).encode() + b"\n")
        answer = json.loads(self._read_line(timeout))
        if "error" in answer:
            raise ContenderError(answer["error"])
        return answer

    def _read_line(self, timeout: float) -> bytes:
        end = time.monotonic() + timeout
        while b"\n" not in self._unread:
            left = None if timeout == math.inf else max(end - time.monotonic(), 0)
            if not select.select([self._process.stdout], [], [], left)[0]:
                self.end()
                raise TimeoutError(f"there was no answer after {timeout:.0f} s")
            if not (read := self._process.stdout.read(2**16)):
                raise ContenderError(self._last_words())
            self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines() or [""]
        return f"its process has ended with {code}: {lines[-1]}"[:LONGEST_MESSAGE]

    def end(self) -> None:
        """Ends the process and those that it has started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            file.close()


def compare(
    contenders: Sequence[Contender],
    task: str,
    *,
    rounds: int,
    patience: float = math.inf,
    prepare_until: float = math.inf,
    until: float = math.inf,
) -> tuple[dict[str, dict[str, Any]], bool]:
    """Prepares a task on all contenders, and then lets them take turns in every round.

    Args:
      rounds: how many turns each takes. The order changes from round to round.
      patience: the seconds that one may take to prepare, or for a turn.
      prepare_until: when, on the clock of `time.monotonic`, preparing ends.
      until: when no more rounds begin, but for the first.

    Returns:
      For each contender what it told of the task and its `seconds`, or its `error`; those
      who were not ready in time are missing. And whether all was done in time.
    """
    results = _prepare(contenders, task, patience=patience, until=prepare_until)
    is_whole = len(results) == len(contenders)
    running = {c.name for c in contenders if "error" not in results.get(c.name, "error")}
    for number in range(rounds):
        if number and time.monotonic() > until:
            return results, False
        first = number % len(contenders)
        for contender in [*contenders[first:], *contenders[:first]]:
            name = contender.name
            if name not in running:
                continue
            try:
                seconds = contender.turn(task, timeout=patience)
                results[name].setdefault("seconds", []).append(seconds)
            except (ContenderError, TimeoutError) as error:
                results[name] = {"error": str(error)}
                running.remove(name)
    return results, is_whole


def _prepare(contenders, task, *, patience, until):
    """What each contender tells of the task, or its error."""
    results = {}
    stopped = threading.Event()

    def prepare(lane):
        for contender in lane:
            left = until - time.monotonic()
            if left <= 0 or stopped.is_set():
                return
            try:
                answer = contender.prepare(task, timeout=min(patience, left))
            except TimeoutError as error:
                if left <= patience:  # It is not the contender that took too long.
                    return
                answer = {"error": str(error)}
            except ContenderError as error:
                answer = {"error": str(error)}
            results[contender.name] = answer

    lanes: dict[str, list[Contender]] = {}
    for contender in contenders:
        lanes.setdefault(contender.lane, []).append(contender)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        try:
            list(pool.map(prepare, lanes.values()))
        except BaseException:  # The program is to end, and its threads wait for answers.
            stopped.set()
            for contender in contenders:
                contender.end()
            raise
    return {c.name: results[c.name] for c in contenders if c.name in results}


def ratios(own: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """How many times as fast as theirs: median over the rounds, least and greatest."""
    each = [their / its for its, their in zip(own, theirs)]
    return statistics.median(each), min(each), max(each)
