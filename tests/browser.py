"""A headless Chromium that tests drive, over a pipe, by its DevTools protocol."""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time

import pytest

_TIMEOUT = 120  # seconds; a machine may be busy


def chromium():
    """The path of a Chromium or Chrome; skips the test if there is none."""
    if path := shutil.which("chromium") or shutil.which("google-chrome"):
        return path
    pytest.skip("there is no Chromium or Chrome to open the page with")


class Page:
    """One page of a browser. Use it in a `with` statement.

    Attributes:
      requests: the addresses that the page and its workers have asked for.
      problems: the errors that nobody has caught in it, and what it reports as an error.
    """

    def __init__(self, *, directory):
        self._directory = directory
        self.requests, self.problems = [], []
        self._count, self._unread = 0, b""

    def __enter__(self):
        with contextlib.ExitStack() as ends:
            # Chromium reads from descriptor 3 and writes to 4. A shell gives it these, as
            # a function that runs between fork and exec is not safe beside threads.
            theirs, to = map(_above_9, os.pipe())
            self._from, answers = map(_above_9, os.pipe())
            ends.callback(os.close, self._from)
            self._to = ends.enter_context(open(to, "wb"))
            command = ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{answers}', "bash"]
            command += [chromium(), "--headless", "--no-sandbox", "--disable-gpu"]
            command += ["--remote-debugging-pipe", f"--user-data-dir={self._directory}"]
            process = subprocess.Popen(
                command, pass_fds=(theirs, answers), stderr=subprocess.DEVNULL
            )
            ends.callback(process.wait)
            ends.callback(process.kill)
            os.close(theirs)
            os.close(answers)
            self._session = None
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Network", "Page", "Runtime", "Log", "DOM"):
                self.call(f"{domain}.enable")
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *_):
        self._ends.close()

    def call(self, method, **parameters):
        """Calls a method of the protocol, and returns its result."""
        self._count += 1
        message = dict(id=self._count, method=method, params=parameters)
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while (answer := self._read()).get("id") != self._count:
            self._note(answer)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def open(self, url):
        self.call("Page.navigate", url=url)

    def evaluate(self, expression):
        """The value of an expression of JavaScript, or of what it promises."""
        result = self.call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, expression):
        """Waits until an expression is true."""
        end = time.monotonic() + _TIMEOUT
        while not self.evaluate(expression):
            assert time.monotonic() < end, (expression, self.problems)
            time.sleep(0.1)

    def choose_file(self, selector, path):
        """Chooses a file as a user does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        found = self.call("DOM.querySelector", nodeId=root, selector=selector)
        self.call("DOM.setFileInputFiles", nodeId=found["nodeId"], files=[str(path)])

    def _read(self):
        while b"\0" not in self._unread:
            read = os.read(self._from, 2**16)
            assert read, "the browser has ended"
            self._unread += read
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def _note(self, event):
        parameters = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Runtime.exceptionThrown":
                self.problems.append(parameters["exceptionDetails"])
            case "Log.entryAdded" if parameters["entry"]["level"] == "error":
                self.problems.append(parameters["entry"])


def _above_9(descriptor):
    """The same file under a number that a shell does not replace by another one."""
    above = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return above
