"""The feed: batches in order, ahead of need, with the time that was lost."""

import threading
import time

import jax.numpy as jnp
import pytest

from focalnet_jax.train.feed import DeviceFeed


class Batches:
    """Counts what was asked for; may be slow, may fail."""

    def __init__(self, count, seconds=0.0, error=None):
        self.count, self.seconds, self.error = count, seconds, error
        self.taken, self.closed = 0, False

    def __iter__(self):
        for i in range(self.count):
            time.sleep(self.seconds)
            self.taken += 1
            yield {"value": i}
        if self.error:
            raise self.error

    def close(self):
        self.closed = True


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def to_device(batch):
    return {name: jnp.asarray(value) for name, value in batch.items()}


def test_batches_come_in_order_and_on_the_device():
    batches = Batches(20)
    with DeviceFeed(batches, to_device) as feed:
        taken = [feed.next(busy_with=()) for _ in range(20)]
    assert [int(batch["value"]) for batch in taken] == [*range(20)]
    assert batches.closed


def test_a_few_are_loaded_ahead_and_no_more():
    batches = Batches(100)
    with DeviceFeed(batches, to_device, ahead=3) as feed:
        wait_until(lambda: batches.taken == 4)  # three wait, and one wants to
        time.sleep(0.05)
        assert batches.taken == 4
        feed.next(busy_with=())
        wait_until(lambda: batches.taken == 5)
    assert batches.closed
    assert not any(thread.name == "feed" for thread in threading.enumerate())


def test_errors_are_raised_where_batches_are_taken():
    with DeviceFeed(Batches(2, error=OSError("gone")), to_device) as feed:
        for _ in range(2):
            feed.next(busy_with=())
        with pytest.raises(OSError, match="gone"):
            feed.next(busy_with=())


def test_only_time_in_which_the_devices_are_idle_counts_as_lost(monkeypatch):
    """Waiting for a batch while they compute is free."""
    from focalnet_jax.train import feed as module

    # On a machine that is busy with other things, nothing takes less time than it says.
    with DeviceFeed(Batches(1, seconds=0.5), to_device) as feed:
        feed.next(busy_with=())
        assert feed.waited > 0.4

    computed = threading.Event()
    monkeypatch.setattr(module.jax, "block_until_ready", lambda _: computed.wait(60))
    batches = Batches(1, seconds=0.5)
    with DeviceFeed(batches, to_device) as feed:
        threading.Timer(1.5, computed.set).start()
        feed.next(busy_with="an array of more than a second")
        assert feed.waited < 0.4
