"""Errors for people: what was given, what is allowed, what was probably meant."""

import contextlib
import difflib
import pathlib
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence

# Marks the beginning and the end of an argument's name in a message.
_MARK = "\x00"


class SetupError(Exception):
    """Something that whoever started the program can mend; shown without a trace.

    A message may name arguments of the function that raises it, by `argument`. Whoever
    calls that function may have other names for them, and shows the message with these:
    the trainer calls `classes` of `open_source` `data.classes`.
    """

    def __str__(self) -> str:
        return self.spelt(str)

    def spelt(self, spell: Callable[[str], str]) -> str:
        """The message, in which `spell` says how each argument is called."""
        pattern = f"{_MARK}(.*?){_MARK}"
        return re.sub(pattern, lambda match: spell(match[1]), super().__str__())


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
    if given not in [*allowed]:  # a list finds what has no hash, too
        hint = did_you_mean(given, allowed)
        raise OptionError(option, f"={given!r} is unknown{hint}")


def argument(name: str) -> str:
    """The name of an argument for a message: whoever catches the error may rename it."""
    return f"{_MARK}{name}{_MARK}"


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
        if pathlib.Path(frame.filename).is_file() and not _is_library(frame.filename):
            return f"{frame.filename}, line {frame.lineno}: {frame.line}"
    return None


def _is_library(filename: str) -> bool:
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
