"""What values an option or a field takes: one description checks, reads and documents.

A description such as `Whole(1, 1024)` converts a value to the one Python type that is
computed with, reads the same from a command line, and says in words what is allowed.
"""

import ast
import contextlib
import dataclasses
import numbers
import re
import sys
import unicodedata
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from focalnet_jax.errors import did_you_mean, shown

# Steps are counted in int32 on the devices.
MOST_STEPS = 2**31 - 1
_MOST_LETTERS = 4096  # as in a path


class NotAllowed(ValueError):
    """A value is not allowed; the message is the sentence that follows on the value."""


@dataclasses.dataclass(frozen=True)
class Values:
    """Any value; the classes below say more.

    Attributes:
      check: what is wrong with a value that is otherwise allowed, or None.
      note: what `check` asks for, in words that follow on the rest.
    """

    check: Callable[[Any], str | None] | None = dataclasses.field(
        default=None, kw_only=True
    )
    note: str = dataclasses.field(default="", kw_only=True)

    kind = object  # the type of converted values

    def __str__(self) -> str:
        """What is allowed, such as `a whole number from 0 to 7`."""
        return f"{self.words()}{', ' + self.note if self.note else ''}"

    def words(self) -> str:
        return "a value"

    def plural(self) -> str:
        return "values"

    def convert(self, value: Any) -> Any:
        """The value as its one Python type.

        Raises:
          NotAllowed: with the sentence that follows on the value.
        """
        converted = self._convert(value)
        if self.check and (problem := self.check(converted)):
            raise NotAllowed(problem)
        return converted

    def read(self, text: str) -> Any:
        """The value that a text of the command line spells; raises as `convert`."""
        return self.convert(text)

    def allows(self, value: Any) -> bool:
        """Whether `convert` takes the value."""
        try:
            self.convert(value)
        except NotAllowed:
            return False
        return True

    def _convert(self, value: Any) -> Any:
        return value

    def _refuse(self, hint: str = "") -> NotAllowed:
        return NotAllowed(f"is not {self}{hint}")


@dataclasses.dataclass(frozen=True)
class Whole(Values):
    """Whole numbers from `least` to `most`, and those `besides`."""

    least: int = 0
    most: int = MOST_STEPS
    besides: tuple[int, ...] = ()

    kind = int

    def words(self) -> str:
        besides = "".join(f"{number:,} or " for number in self.besides)
        return f"{besides}a whole number from {self.least:,} to {self.most:,}"

    def plural(self) -> str:
        return f"whole numbers from {self.least:,} to {self.most:,}"

    def read(self, text: str) -> int:
        try:
            value = int(text, 0)
        except ValueError:
            try:
                value = int(text)  # `007`, which Python's own literals exclude
            except ValueError:
                value = _float_of(text)  # `1e3`
                # Above this limit, neighbouring floats are more than 1 apart.
                if value is None or abs(value) > 2**53:
                    raise self._refuse() from None
        return self.convert(value)

    def _convert(self, value: Any) -> int:
        number = _number(value)
        if isinstance(number, float):
            number = int(number) if number.is_integer() else None
        if number is None:
            raise self._refuse()
        if self.least <= number <= self.most or number in self.besides:
            return number
        raise self._refuse(f"; the nearest is {min(max(number, self.least), self.most)}")


@dataclasses.dataclass(frozen=True)
class Number(Values):
    """Finite numbers from `least` to `most`.

    Attributes:
      excludes_least, excludes_most: whether an end isn't allowed itself.
      or_zero: whether 0 is allowed beside them.
    """

    least: float = 0.0
    most: float = 1e6
    excludes_least: bool = False
    excludes_most: bool = False
    or_zero: bool = False

    kind = float

    def words(self) -> str:
        return f"{'0 or ' if self.or_zero else ''}a number in {self.interval}"

    def plural(self) -> str:
        return f"numbers in {self.interval}"

    @property
    def interval(self) -> str:
        left, right = "[("[self.excludes_least], "])"[self.excludes_most]
        return f"{left}{_short(self.least)}, {_short(self.most)}{right}"

    def read(self, text: str) -> float:
        return self.convert(_float_of(text))

    def _convert(self, value: Any) -> float:
        number = _number(value)
        if number is None:
            raise self._refuse()
        try:
            number = float(number)
        except OverflowError:
            raise self._refuse() from None
        is_above = number > self.least or (
            number == self.least and not self.excludes_least
        )
        is_below = number < self.most or (number == self.most and not self.excludes_most)
        # Neither is true of what is not a number.
        if (is_above and is_below) or (self.or_zero and not number):
            return number
        raise self._refuse()


SEED = Whole(0, 2**32 - 1)  # what JAX's keys and Grain's shuffles tell apart
SHARE = Number(0, 1)


@dataclasses.dataclass(frozen=True)
class Flag(Values):
    """True or False."""

    kind = bool

    def words(self) -> str:
        return "True or False"

    def read(self, text: str) -> bool:
        known = {"true": True, "t": True, "1": True}
        known |= {"false": False, "f": False, "0": False}
        return self.convert(known.get(text.lower()))

    def _convert(self, value: Any) -> bool:
        if not isinstance(value, (bool, np.bool_)):
            raise self._refuse()
        return bool(value)


@dataclasses.dataclass(frozen=True)
class Text(Values):
    """Text that is not empty, or one of some `choices`, which may be a growing table."""

    choices: Collection[str] | None = None
    noun: str = "text"

    kind = str

    def words(self) -> str:
        if self.choices is None:
            return f"a {self.noun}"
        names = [f'"{choice}"' for choice in self.choices]
        return " or ".join(names) if len(names) < 8 else f"a name such as {names[0]}"

    def plural(self) -> str:
        return f"{self.noun}s"

    def _convert(self, value: Any) -> str:
        if not isinstance(value, str):
            raise self._refuse()
        value = str(value)
        if self.choices is not None:
            if value not in self.choices:
                raise NotAllowed(f"is unknown{did_you_mean(value, self.choices)}")
        elif not value:
            raise NotAllowed("is empty")
        elif len(value) > _MOST_LETTERS:
            raise NotAllowed(f"has {len(value):,} letters: {_MOST_LETTERS:,} at most")
        elif any(unicodedata.category(letter) in ("Cc", "Cs") for letter in value):
            raise NotAllowed("holds a letter that can't be printed")
        return value


@dataclasses.dataclass(frozen=True)
class Several(Values):
    """A tuple of values of one description.

    Attributes:
      of: each of them.
      least, most: how many there may be.
      or_none: whether there may also be none.
      noun: what a reader calls them: JSON has lists.
    """

    of: Values
    least: int = 0
    most: int = 1000
    or_none: bool = False
    noun: str = "tuple"

    kind = tuple

    def words(self) -> str:
        few = f"{self.least}" if self.least == self.most else ""
        if not few and (self.least > 1 or self.most < 1000):
            few = f"{self.least} to {self.most}"
        empty = ", or an empty one" if self.or_none else ""
        return f"a {self.noun} of {few} {self.of.plural()}{empty}".replace("  ", " ")

    def plural(self) -> str:
        return f"{self.noun}s of {self.of.plural()}"

    def read(self, text: str) -> tuple[Any, ...]:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            # A word without quotes is one text: `patch_embed`, `layers_[01]`.
            if not isinstance(self.of, Text) or re.search(r"[,\s]|^[(\[{]", text):
                raise self._refuse() from None
            value = text
        if not isinstance(value, (tuple, list)):
            is_one = isinstance(self.of, (Whole, Number, Text, Either))
            value = (value,) if is_one else value
        return self.convert(value)

    def _convert(self, value: Any) -> tuple[Any, ...]:
        if isinstance(self.of, Text) and isinstance(value, str):
            value = (value,)
        if hasattr(value, "tolist"):  # an array of NumPy or of JAX
            value = value.tolist()
        if not isinstance(value, (tuple, list)):
            raise self._refuse()
        if not (self.least <= len(value) <= self.most or (self.or_none and not value)):
            raise self._refuse()
        try:
            return tuple(self.of.convert(part) for part in value)
        except NotAllowed as problem:
            if isinstance(self.of, (Whole, Number, Either)):
                raise self._refuse() from problem
            wrong = next(part for part in value if not self.of.allows(part))
            raise NotAllowed(f"holds {shown(wrong)}, which {problem}") from problem


@dataclasses.dataclass(frozen=True)
class Pair(Values):
    """A tuple of two values, each with its own description."""

    first: Values
    second: Values

    kind = tuple

    def words(self) -> str:
        return f"a pair of {self.first} and {self.second}"

    def plural(self) -> str:
        return f"pairs of {self.first} and {self.second}"

    def _convert(self, value: Any) -> tuple[Any, Any]:
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise self._refuse()
        try:
            return self.first.convert(value[0]), self.second.convert(value[1])
        except NotAllowed as problem:
            raise self._refuse() from problem


@dataclasses.dataclass(frozen=True)
class Either(Values):
    """Values of one of several descriptions; the first that a value fits converts it."""

    of: tuple[Values, ...]

    def words(self) -> str:
        return " or ".join(map(str, self.of))

    def plural(self) -> str:
        return " or ".join(values.plural() for values in self.of)

    def convert(self, value: Any) -> Any:
        return self._first(lambda values: values.convert(value))

    def read(self, text: str) -> Any:
        return self._first(lambda values: values.read(text))

    def _first(self, convert: Callable[[Values], Any]) -> Any:
        for values in self.of:
            with contextlib.suppress(NotAllowed):
                return convert(values)
        raise self._refuse()


def values_like(example: Any) -> Values:
    """What a field takes of which only one value is known: all of the same type."""
    if isinstance(example, bool):
        return Flag()
    if isinstance(example, int):
        return Whole(-(2**63), 2**63 - 1)
    if isinstance(example, float):
        return Number(-sys.float_info.max, sys.float_info.max)
    return Text() if isinstance(example, str) else Several(Values())


# --- Checks of values that are otherwise allowed ------------------------------


def ascending(value: tuple[float, float]) -> str | None:
    """Two numbers, the smaller one first."""
    if not value or value[0] <= value[1]:
        return None
    return f"has the greater one first: did you mean {value[::-1]}?"


def is_pattern(value: str) -> str | None:
    """A regular expression."""
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        return f"is no regular expression: {error}"
    return None


def distinct(value: tuple[Any, ...]) -> str | None:
    """Each pattern once, whether alone or in a pair with a number."""
    names = [part[0] if isinstance(part, tuple) else part for part in value]
    for name in names:
        if names.count(name) > 1:
            return f"has {shown(name)} twice"
    return None


PATTERN = Text(noun="regular expression", check=is_pattern)


# --- Numbers -------------------------------------------------------------------


def _number(value: Any) -> int | float | None:
    """A number as Python has it; None for what is none. True and False are none."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()  # a scalar of NumPy or of JAX
    if isinstance(value, bool):
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else None


def _short(number: float) -> str:
    """`1e9`, `1,000` and `0.001`."""
    return f"{number:,.7g}".replace("e+0", "e").replace("e+", "e")


def _float_of(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
