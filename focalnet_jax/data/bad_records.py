"""Records that can't be used: they are named and counted, skipped or fatal."""

from collections.abc import Callable, Iterator

from absl import logging

from focalnet_jax.errors import SetupError, argument


class BadRecordError(ValueError):
    """A record that can't be read, or whose bytes are damaged: it may be skipped."""


class WrongRecordError(SetupError):
    """A record that can be read, and that the task can't take: it is never skipped.

    The message is the end of a sentence that begins with the record's name.
    """


class BadRecords:
    """The bad records that were met in a source, and what is wrong with each.

    They are counted from the start of the program, not of the run.

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
            raise too_many(text, count=len(self), allowed=self.allowed)
        logging.warning("%s; skipped (%d of at most %d)", text, len(self), self.allowed)


def too_many(text: str, *, count: int, allowed: int) -> SetupError:
    """The error of one bad record more than `allowed`, which `text` is about."""
    return SetupError(
        f"{text}\nThat makes {count:,}, more than {argument('max_bad_records')}="
        f"{allowed} allows. Mend the record, or raise that number to have as many skipped"
    )
