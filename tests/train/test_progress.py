"""The bar on a terminal, the lines elsewhere, and the speed in both."""

import io
import sys

import pytest

from focalnet_jax.train.run import progress as module
from focalnet_jax.train.run.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves it."""
    times = {"now": 0.0}
    monkeypatch.setattr(module.time, "monotonic", lambda: times["now"])
    return times


def test_lines_where_there_is_no_terminal(clock, capsys):
    with Progress(
        first_step=100, total_steps=200, batch_size=32, unit="images"
    ) as progress:
        clock["now"] = 1000.0  # compilation, of which no speed is made
        assert progress.update(101, loss=2.0, waited=500.0) == {}
        progress.restart_clock(101, waited=500.0)
        clock["now"] = 1009.0
        # 9 steps in 9 seconds, of which 1.8 were waited.
        assert progress.update(110, loss=1.23456, waited=501.8) == {
            "train/images_per_second": 32.0,
            "train/images_per_second_per_chip": 32.0 / 8,
            "train/step_seconds": 1.0,
            "train/input_wait": pytest.approx(0.2),
        }
    output = capsys.readouterr().out
    assert output == (
        "step 101/200  loss 2.000\n"
        "step 110/200  loss 1.235  32 images/s  20% input wait  0:01:30 left\n"
    )


def test_bar_on_a_terminal(clock, monkeypatch, capsys):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(first_step=0, total_steps=20, batch_size=32, unit="clips") as progress:
        progress.restart_clock(0, waited=0.0)
        clock["now"] = 5.0
        progress.update(10, loss=0.5, waited=0.05)
        progress.say("test: top-1 97.00%")
    shown = terminal.getvalue()
    assert "10/20" in shown
    assert "50%" in shown
    assert "loss 0.500, 64 clips/s, 1% input wait" in shown
    assert capsys.readouterr().out == "test: top-1 97.00%\n"
