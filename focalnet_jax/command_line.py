"""What the command lines of this package have in common."""

import argparse
import contextlib
import glob
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable
from typing import Any

from focalnet_jax.errors import SetupError, first_line, shown
from focalnet_jax.output import is_lost, make_lasting
from focalnet_jax.values import NotAllowed, Values, Whole

# The vendor of TPUs on the PCI bus.
_GOOGLE = "0x1ae0"
# Variables that say that there is a TPU, or that JAX should look for one.
_TPU_VARIABLES = (
    "JAX_PLATFORMS",
    "JAX_FORCE_TPU_INIT",
    "TPU_NAME",
    "TPU_ACCELERATOR_TYPE",
    "TPU_WORKER_ID",
    "TPU_WORKER_HOSTNAMES",
)


# How the commands that are usually called `python -m MODULE` were called.
_CALLED: dict[str, str] = {}


def call_as(command: str, *, module: str) -> None:
    """Has help and messages call a module's program by the command that was given."""
    _CALLED[f"python -m {module}"] = command


def as_called(text: str) -> str:
    """A text of help or a message, in which commands are spelt as they are given."""
    for usual, command in _CALLED.items():
        text = re.sub(rf"{re.escape(usual)}(?!\.?\w)", command, text)
    return text


def parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    """Makes a parser that keeps the lines of `description` and allows no abbreviations.

    Args:
      prog: how the program is called, such as `python -m focalnet_jax.predict`.
      description: the help of the program, in which examples begin with `prog`; None
        where Python leaves out docstrings.
    """
    return argparse.ArgumentParser(
        prog=as_called(prog),
        description=as_called(description or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def reads(values: Values) -> Callable[[str], Any]:
    """A `type` for argparse, which reads what a description of values allows."""

    def read(text):
        try:
            return values.read(text)
        except NotAllowed as problem:
            raise argparse.ArgumentTypeError(f"{shown(text)} {problem}") from problem

    return read


whole = reads(Whole(0))
positive = reads(Whole(1))


def add_formats(parser: argparse.ArgumentParser, **meanings: str) -> None:
    """Adds an option for each format of the output, of which one may be given.

    Args:
      parser: whose `format` is the name of the given one, or else None.
      **meanings: the help of each, by its name.
    """
    formats = parser.add_mutually_exclusive_group()
    for name, meaning in meanings.items():
        formats.add_argument(
            option(name), dest="format", action="store_const", const=name, help=meaning
        )


def leave_out_logs() -> None:
    """Leaves out what Orbax logs: many lines, also of errors that it raises."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def option(name: str) -> str:
    """Spells the name of an argument as an option: `--data-dir` for `data_dir`."""
    return "--" + name.replace("_", "-")


def assigned(spelt: str, value: Any) -> str:
    """Spells an option with its value as a shell takes it: `--prefix=net`."""
    if value is True and "=" not in spelt:  # But `--set=causal` needs a value.
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

    Output that goes away is no error of a program that writes files. Where the output is
    what the program is for, and a part of it is lost, the program fails.

    A `SetupError` or an `OSError` ends the program with one message and no trace.

    Args:
      main: returns None when it has written its files. Where the output is what the
        program is for, it returns True, or False as a verdict.
      interrupted: the message after Ctrl-C.
      spell: says how the program calls the arguments that an error names.
    """
    use_utf8()
    make_lasting()
    hide_idle_libtpu()
    show_notes()
    try:
        result = main()
    except KeyboardInterrupt:
        sys.exit(interrupted)
    except SetupError as error:
        sys.exit(f"error: {as_called(error.spelt(spell, assigned))}")
    except OSError as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if result is None or (result and not is_lost()) else 1)


def find_devices() -> None:
    """Has JAX look for its devices.

    Raises:
      SetupError: those that are asked for are not there; JAX's own error says little.
    """
    import jax  # Not all programs need it.

    # JAX declares its options from 0.12 on.
    asked = f"JAX_PLATFORMS={jax.config.jax_platforms}"  # type: ignore[attr-defined]
    try:
        jax.devices()
    except AssertionError as error:
        raise SetupError(
            f"JAX finds no devices for {asked}: install JAX for them, as with "
            "pip install 'focalnet_jax[cuda]', or unset the variable"
        ) from error
    except RuntimeError as error:  # JAX has no class of its own for this.
        raise SetupError(
            f"JAX finds no devices for {asked}: {first_line(error)}"
        ) from error


def show_notes() -> None:
    """Prints what this package logs as notes: it is nothing that went wrong."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("note: %(message)s"))
    logger = logging.getLogger("focalnet_jax")
    logger.addHandler(handler)
    logger.propagate = False


def use_utf8() -> None:
    """Starts the program again with UTF-8 if the locale has another encoding.

    Otherwise names of files, and of the classes that folders are named after, would be
    other words there.
    """
    if not sys.flags.utf8_mode and sys.getfilesystemencoding() != "utf-8":
        command = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
        os.execv(sys.executable, command)


def hide_idle_libtpu() -> None:
    """Keeps JAX from loading `libtpu` on a machine that has no TPU.

    It would print pages about the TPU that it doesn't find. To compile for TPUs it has to
    be seen, and where there is any sign of a TPU, or somebody asks for one, it is.
    """
    signs = [*glob.glob("/dev/accel*"), *glob.glob("/dev/vfio/[0-9]*")]
    signs += [name for name in _TPU_VARIABLES if os.environ.get(name)]
    for path in glob.glob("/sys/bus/pci/devices/*/vendor"):
        with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
            signs += [path] if file.read().strip() == _GOOGLE else []
    library = sys.modules.get("libtpu")
    where = os.environ.get("TPU_LIBRARY_PATH")
    # Its import, by JAX, sets the variable; somebody who has set it wants another one.
    if where and not (library and where == library.get_library_path()):
        signs.append(where)
    if not signs:
        os.environ.pop("TPU_LIBRARY_PATH", None)
        # With None, which typeshed leaves out, an import fails as if it were not there.
        sys.modules["libtpu"] = None  # type: ignore[assignment]
