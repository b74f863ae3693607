"""What the input pipeline asks of a data set."""

from typing import Any, Protocol


class Records(Protocol):
    """Records of a split, which can be read in any order.

    They may also have a method `fingerprint`, which returns digests by name. A run that
    goes on compares them with those of its beginning, to say that the data have changed.

    Attributes:
      name: of the data set and the split, for messages.
      note: what to say of results on it, such as ", among 200 classes"; mostly empty.
    """

    @property
    def name(self) -> str: ...
    @property
    def note(self) -> str: ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Any:
        """Returns a record; raises BadRecordError for one that can't be read."""

    def describe(self, index: int) -> str:
        """Names a record for messages."""
