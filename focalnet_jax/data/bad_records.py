"""Records that no image can be made of: named, counted, skipped or fatal."""

from collections.abc import Callable, Iterator

from absl import logging

from focalnet_jax.errors import SetupError


class BadRecordError(ValueError):
    """A record that can't be read, or whose bytes are no whole image."""


class BadRecords:
    """The bad records that were met in a source, by index: which, why and how many.

    Counts begin anew when a run is started again.

    Args:
      describe: names a record by its index.
      allowed: how many different ones may be skipped.
    """

    def __init__(self, describe: Callable[[int], str], *, allowed: int = 0):
        self._describe = describe
        self.allowed = allowed
        self._faults: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._faults)

    def __iter__(self) -> Iterator[int]:
        yield from [*self._faults]

    def add(self, index: int, fault: str) -> None:
        """Notes a record, and says so if it is new.

        Raises:
          SetupError: it is one more than allowed.
        """
        if index in self._faults:
            return
        self._faults[index] = fault
        text = f"{self._describe(index)} is unusable: {fault}"
        if len(self) > self.allowed:
            raise SetupError(
                f"{text}\nThat makes {len(self)}, and data.max_bad_records="
                f"{self.allowed} are allowed. Mend the record, or raise that number to "
                "have as many skipped"
            )
        logging.warning("%s; skipped (%d of at most %d)", text, len(self), self.allowed)
