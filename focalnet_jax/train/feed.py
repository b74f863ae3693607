"""Sends batches to the devices ahead of need, and measures the time lost in waiting."""

import queue
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import jax


class DeviceFeed:
    """Loads batches and sends them to the devices, in a thread of its own.

    Args:
      batches: on the host; the generator is closed at the end.
      to_device: makes global arrays of a batch.
      ahead: how many batches may wait on the devices, beside one that is being loaded.

    Attributes:
      waited: seconds in which the devices had nothing to do, for want of a batch.
    """

    def __init__(
        self,
        batches: Generator[dict[str, Any], None, None],
        to_device: Callable[[dict[str, Any]], dict[str, jax.Array]],
        *,
        ahead: int = 2,
    ):
        self.waited = 0.0
        self._error: BaseException | None = None
        self._batches = batches
        self._to_device = to_device
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._load, name="feed", daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self._thread.join()
        while self._take_if_any() is not None:
            pass

    def next(self, *, busy_with: Any) -> dict[str, jax.Array]:
        """Returns the next batch.

        Args:
          busy_with: arrays that the devices are computing. As long as they do, waiting
            costs nothing.

        Raises:
          any error that loading has raised.
        """
        item = self._error or self._take_if_any()
        if item is None:
            jax.block_until_ready(busy_with)
            start = time.monotonic()
            item = self._queue.get()
            self.waited += time.monotonic() - start
        if isinstance(item, BaseException):
            self._error = item
            raise item
        return item

    def _take_if_any(self) -> Any:
        try:
            return self._queue.get_nowait()
        except queue.Empty:
            return None

    def _load(self) -> None:
        try:
            for batch in self._batches:
                self._put(jax.block_until_ready(self._to_device(batch)))
                if self._stopped.is_set():
                    return
            self._put(RuntimeError("there are no more batches"))
        except BaseException as error:  # It is raised where batches are taken.
            self._put(error)
        finally:
            self._batches.close()

    def _put(self, item: Any) -> None:
        while not self._stopped.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
