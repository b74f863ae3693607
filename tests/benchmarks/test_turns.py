"""Processes that take turns, `benchmarks/turns.py`, with contenders that do nothing."""

import contextlib
import pathlib
import signal
import sys
import time

import pytest
import turns

FAKE = pathlib.Path(__file__).with_name("fake_contender.py")


@pytest.fixture
def start(tmp_path):
    """A function that starts a contender of a kind; all are ended after the test."""
    with contextlib.ExitStack() as stack:

        def start(kind, lane=""):
            contender = turns.Contender(
                kind,
                [sys.executable, str(FAKE), kind, str(tmp_path / "log")],
                environment={"PYTHONPATH": str(pathlib.Path(turns.__file__).parent)},
                lane=lane,
            )
            stack.callback(contender.end)
            return contender

        yield start


def test_all_take_turns(start):
    results, is_whole = turns.compare([start("good"), start("fast")], "task", rounds=3)
    assert is_whole
    assert results == {
        "good": {"losses": [1.0], "seconds": [2.0] * 3},
        "fast": {"losses": [1.0], "seconds": [1.0] * 3},
    }
    seconds = [result["seconds"] for result in results.values()]
    assert turns.ratios(*seconds) == (0.5, 0.5, 0.5)
    assert turns.ratios([1.0, 1.0, 4.0], [2.0, 3.0, 2.0]) == (2.0, 0.5, 3.0)


def test_the_order_changes(start, monkeypatch):
    order = []
    contenders = [start("good"), start("fast")]
    turn = turns.Contender.turn

    def note(self, *args, **options):
        order.append(self.name)
        return turn(self, *args, **options)

    monkeypatch.setattr(turns.Contender, "turn", note)
    turns.compare(contenders, "task", rounds=2)
    assert order == ["good", "fast", "fast", "good"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("raises", "RuntimeError: INTERNAL: no algorithm"),
        ("dies", "its process has ended with 7: Check failed: no card"),
        ("breaks", "ValueError: out of memory"),
    ],
)
def test_a_failure_is_a_result(kind, message, start):
    contenders = [start(kind), start("good")]
    for task in ("task", "another task"):  # One that has ended starts anew.
        results, is_whole = turns.compare(contenders, task, rounds=2)
        assert is_whole
        assert results[kind] == {"error": message}
        assert results["good"]["seconds"] == [2.0] * 2


def test_one_that_hangs_is_given_up(start):
    contenders = [start("good"), start("hangs", lane="of its own")]
    contenders[0].prepare("task", timeout=600)  # It is there before the clock runs.
    results, is_whole = turns.compare(contenders, "task", rounds=1, patience=5)
    assert is_whole
    assert results["hangs"] == {"error": "there was no answer after 5 s"}
    assert results["good"]["seconds"] == [2.0]


def test_time_is_up_while_one_prepares(start):
    contenders = [start("good"), start("hangs", lane="of its own")]
    contenders[0].prepare("task", timeout=600)
    soon = time.monotonic() + 2
    results, is_whole = turns.compare(
        contenders, "task", rounds=3, prepare_until=soon, until=soon
    )
    assert not is_whole
    # One round begins in any case, and no other.
    assert results == {"good": {"losses": [1.0], "seconds": [2.0]}}


def test_contenders_of_a_lane_are_prepared_in_turn(start, tmp_path):
    contenders = [start("dies"), start("hangs"), start("good", lane="another")]
    for contender in contenders[1:]:  # Their processes are there before the clock runs.
        contender.prepare("warm-up", timeout=600)
    soon = time.monotonic() + 10  # The first one has to start, and to die.
    results, _ = turns.compare(contenders, "task", rounds=1, prepare_until=soon)
    assert list(results) == ["dies", "good"]
    prepared = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert prepared.index("hangs task") > prepared.index("dies task")


def test_no_process_outlives_the_program(start):
    """Of a program that is to end while its contenders prepare."""
    contenders = [start("hangs"), start("good")]

    def stop(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 1)
    try:
        with pytest.raises(KeyboardInterrupt):
            turns.compare(contenders, "task", rounds=1)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert all(c._process.poll() is not None for c in contenders)
