"""What the command lines of this package have in common."""

import argparse
import shlex
import sys
from collections.abc import Callable
from typing import Any

from focalnet_jax.errors import SetupError


def parser(prog: str, description: str) -> argparse.ArgumentParser:
    """Makes a parser that prints `description` unchanged and allows no abbreviations."""
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def whole(text: str) -> int:
    """Reads a whole number from 0; a `type` for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def positive(text: str) -> int:
    """Reads a whole number from 1; a `type` for argparse."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def option(name: str) -> str:
    """Spells the name of an argument as an option: `--data-dir` for `data_dir`."""
    return "--" + name.replace("_", "-")


def assigned(spelt: str, value: Any) -> str:
    """Spells an option with its value as a shell takes it: `--prefix=net`."""
    if value is True:
        return spelt
    values = value if isinstance(value, list) else [value]
    return " ".join(f"{spelt}={shlex.quote(str(item))}" for item in values)


def run(
    main: Callable[[], Any],
    *,
    interrupted: str = "interrupted",
    spell: Callable[[str], str] = option,
) -> None:
    """Calls `main` and ends the program with its exit status.

    A `SetupError` or an `OSError` ends the program with one message and no trace.

    Args:
      main: returns None or True for success, and False for failure.
      interrupted: the message after Ctrl-C.
      spell: says how the program calls the arguments that an error names.
    """
    try:
        result = main()
    except KeyboardInterrupt:
        sys.exit(interrupted)
    except SetupError as error:
        sys.exit(f"error: {error.spelt(spell, assigned)}")
    except OSError as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if result in (None, True) else 1)
