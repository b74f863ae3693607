"""Trains, applies and converts FocalNets.

    focalnet train --config=base:tiny_srf
    focalnet predict photo.jpg --weights=runs/digits
    focalnet COMMAND --help

Each command is the program of a module, and does what `python -m MODULE` does.
"""

import argparse
import ast
import pathlib
import runpy
import sys

from focalnet_jax import __version__, command_line
from focalnet_jax.errors import did_you_mean, shown
from focalnet_jax.output import make_lasting

# The module of each command. It is imported when the command is given.
COMMANDS = {
    "train": "focalnet_jax.train",
    "finetune": "focalnet_jax.finetune",
    "predict": "focalnet_jax.predict",
    "segment": "focalnet_jax.segment",
    "visualize": "focalnet_jax.visualize",
    "convert": "focalnet_jax.convert",
    "parity": "focalnet_jax.parity",
    "evaluate": "focalnet_jax.evaluate",
    "export": "focalnet_jax.export",
    "demo": "focalnet_jax.demo",
    "prepare": "focalnet_jax.data.prepare",
}

# The installed script imports this file, and `python -m` runs it.
_PROGRAM = "python -m focalnet_jax" if __name__ == "__main__" else "focalnet"


def main() -> None:
    """Runs the command that `sys.argv` names, or says which ones there are."""
    make_lasting()
    name, *arguments = sys.argv[1:] or ["--help"]
    given = parse([name]).command
    for command, module in COMMANDS.items():  # A command's messages name others, too.
        command_line.call_as(f"{_PROGRAM} {command}", module=module)
    sys.argv[1:] = arguments
    runpy.run_module(COMMANDS[given], run_name="__main__", alter_sys=True)


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses the first argument; the others are the command's own."""
    width = max(map(len, COMMANDS))
    summaries = {name: _summary(module) for name, module in COMMANDS.items()}
    listed = [f"  {name:{width}}  {text}" for name, text in summaries.items()]
    about = (__doc__ or "").replace(" focalnet ", f" {_PROGRAM} ")
    parser = command_line.parser(_PROGRAM, about)
    parser.usage = "%(prog)s [-h] [--version] COMMAND ..."
    parser.epilog = "\n".join(["commands:", *listed])
    parser.add_argument(
        "--version", action="version", version=f"focalnet_jax {__version__}"
    )
    parser.add_argument("command", metavar="COMMAND", type=_known, help="see below")
    return parser.parse_args(argv)


def _known(name: str) -> str:
    """Reads the name of a command; a `type` for argparse."""
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        raise argparse.ArgumentTypeError(f"{shown(name)} is unknown{hint}")
    return name


def _summary(module: str) -> str:
    """The first line of a module's docstring; the module is not imported for it."""
    path = pathlib.Path(__file__).parent.joinpath(*module.split(".")[1:])
    path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return (docstring or "").partition("\n")[0]


if __name__ == "__main__":
    main()
