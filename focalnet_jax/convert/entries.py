"""Entries of JSON files that other programs wrote, checked when they are read."""

from collections.abc import Mapping
from typing import Any

from focalnet_jax.errors import SetupError, shown
from focalnet_jax.values import Either, NotAllowed, Several, Values

Content = Mapping[str, Any]


class Object(Values):
    """Objects of JSON."""

    kind = dict

    def words(self) -> str:
        return "an object"

    def plural(self) -> str:
        return "objects"

    def _convert(self, value: Any) -> Content:
        if not isinstance(value, Mapping):
            raise self._refuse()
        return value


OBJECT = Object()
# What the list or object holds is up to its reader.
LIST_OR_OBJECT = Either((OBJECT, Several(Values(), most=2**31 - 1, noun="list")))


def read_entry(
    content: Content, entry: str, values: Values, *, origin: str, default: Any = None
) -> Any:
    """An entry's value as its one Python type; the default if it is missing or null.

    Raises:
      SetupError: naming the file, the entry, what it has and what is allowed.
    """
    if (value := content.get(entry)) is None:
        return default
    try:
        return values.convert(value)
    except NotAllowed as problem:
        raise wrong(origin, entry, value, str(problem)) from problem


def wrong(origin: str, entry: str, value: Any, problem: str) -> SetupError:
    """The error of an entry; the problem is the sentence that follows on its value."""
    return SetupError(
        f"{origin} has {entry}={shown(value)}, which {problem}; mend the entry, or move "
        "the file away from the weights"
    )
