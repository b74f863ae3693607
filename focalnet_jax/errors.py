"""Errors for people: what was given, what is allowed, what was probably meant."""

import ast
import contextlib
import difflib
import pathlib
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

# Marks the beginning and the end of an argument in a message, and what comes between its
# name and a value.
_MARK, _IS = "\x00", "\x01"
_ARGUMENT = re.compile(f"{_MARK}(.*?)(?:{_IS}(.*?))?{_MARK}", re.DOTALL)


def _assigned(name: str, value: Any) -> str:
    return f"{name}={value!r}"


def spelt(
    text: str,
    spell: Callable[[str], str] = str,
    assign: Callable[[str, Any], str] = _assigned,
) -> str:
    """A text that names arguments by `argument`, as its reader knows them.

    Args:
      text: the message or note.
      spell: the name of an argument, as the reader knows it.
      assign: the argument with a value, of the spelt name and the value.
    """

    def shown(match):
        name, value = spell(match[1]), match[2]
        return name if value is None else assign(name, ast.literal_eval(value))

    return _ARGUMENT.sub(shown, text)


class SetupError(Exception):
    """Something that whoever started the program can mend; shown without a trace.

    A message may name arguments of the function that raises it, by `argument`. Whoever
    calls that function may have other names for them, and shows the message with these:
    the trainer calls `classes` of `open_source` `data.classes`.
    """

    def __str__(self) -> str:
        return self.spelt(str)

    def spelt(
        self,
        spell: Callable[[str], str],
        assign: Callable[[str, Any], str] = _assigned,
    ) -> str:
        """The message, in which `spell` says how each argument is called."""
        return spelt(self.marked, spell, assign)

    @property
    def marked(self) -> str:
        """The message with its marks, for another error that quotes it."""
        return super().__str__()

    @property
    def remedies(self) -> dict[str, Any]:
        """The arguments that the message gives with a value, as a way out."""
        return {
            name: ast.literal_eval(value)
            for name, value in _ARGUMENT.findall(self.marked)
            if value
        }


class OptionError(ValueError):
    """An option of a function has a value that is not allowed.

    Attributes:
      option: the name of the option, such as `depths`.
      problem: the rest of the sentence that begins with the name, such as
        `=3 is not a tuple` or ` has 2 entries`. Whoever calls the option by another
        name puts that name before it.
    """

    def __init__(self, option: str, problem: str):
        super().__init__(option, problem)
        self.option = option
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.option}{self.problem}"


def check_choice(option: str, given: object, allowed: Iterable[str]) -> None:
    """Raises OptionError, with the nearest spelling, unless `given` is in `allowed`."""
    if not isinstance(given, str) or given not in allowed:
        hint = did_you_mean(shown(given), allowed)
        raise OptionError(option, f"={shown(given)} is unknown{hint}")


def argument(name: str, value: Any = None) -> str:
    """The name of an argument for a message: whoever catches the error may rename it.

    Args:
      name: the name.
      value: a literal that the argument may be given; None shows the name alone.
    """
    return f"{_MARK}{name}{'' if value is None else f'{_IS}{value!r}'}{_MARK}"


@contextlib.contextmanager
def arguments_spelt(spell: Callable[[str], str]) -> Iterator[None]:
    """Errors that are raised inside call arguments as `spell` does."""
    try:
        yield
    except SetupError as error:
        raise type(error)(error.spelt(spell)) from error


def nearest(given: str, allowed: Iterable[str]) -> str | None:
    """The most similar of the `allowed` spellings, if one is similar at all.

    It is never the one that was given.
    """
    others = sorted({*allowed} - {str(given)})
    near = difflib.get_close_matches(str(given), others, n=1, cutoff=0.5)
    return near[0] if near else None


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest of `allowed`, else the whole choice."""
    allowed = sorted(allowed)
    if near := nearest(given, allowed):
        return f"; did you mean {near!r}?"
    return f"; there are {', '.join(allowed)}"


def shown(value: object) -> str:
    """A value as Python writes it, in one line that is not too long to be read."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # whatever somebody's own class raises; or a number of many digits
        text = f"a value of the type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:60]}...{text[-10:]}"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`1 tensor`, and `1,200 tensors`; a plural that takes more than an s is given."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def first_few(names: Sequence[str]) -> str:
    """The first three of many names, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3:,} more"


def place_in_own_code(error: BaseException) -> str | None:
    """The line that an error comes from, if it is one of the user's: file, line, text.

    That is the innermost line that belongs neither to this package nor to a library.
    """
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        text = (error.text or "").strip()
        return f"{error.filename}, line {error.lineno}: {text}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if pathlib.Path(frame.filename).is_file() and not is_library(frame.filename):
            return f"{frame.filename}, line {frame.lineno}: {frame.line}"
    return None


def is_library(filename: str) -> bool:
    """Whether a file of code belongs to this package, to Python or to a library."""
    path = pathlib.Path(filename).resolve()
    package = pathlib.Path(__file__).resolve().parent
    libraries = {package, pathlib.Path(sysconfig.get_path("stdlib")).resolve()}
    is_installed = {"site-packages", "dist-packages"} & {*path.parts}
    is_ours = path == package.parent / "main.py" or libraries & {*path.parents}
    return bool(is_installed or is_ours)


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, else its class."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next(filter(None, lines), type(error).__name__)
