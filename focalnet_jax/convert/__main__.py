"""Converts weights between PyTorch and JAX, and from one PyTorch dialect to another.

    python -m focalnet_jax.convert focalnet_tiny_srf.pth converted/tiny
    python -m focalnet_jax.convert runs/base base.safetensors --dialect=timm
    python -m focalnet_jax.convert hf:microsoft/focalnet-tiny tiny.pth --dialect=microsoft
    python -m focalnet_jax.convert focalnet_large_lrf_384.pth start \\
        --head=reset --num-classes=10

SRC is a file of weights (safetensors, a checkpoint of PyTorch, or the index of several
files), the workdir of a run, a converted directory, hf:OWNER/NAME, or the name of an
official release.

DST is a directory for `main.py --config.init_from=DST` and for
`focalnet_jax.load_model(DST)`, or a file that the dialect's implementation loads
strictly. A .pth file for microsoft has its weights under "model", and one for
mmsegmentation under "state_dict". A .safetensors file
also holds the model's description and its preprocessing, which `load_model` reads.
"""

import argparse
import pathlib
import re
from typing import Any

from focalnet_jax import command_line
from focalnet_jax.convert.dialect_files import write_dialect
from focalnet_jax.convert.dialects import DIALECTS
from focalnet_jax.convert.directories import FILES, write_directory
from focalnet_jax.convert.fit import fit_to_model
from focalnet_jax.convert.model_arguments import (
    add_reading_arguments,
    add_source,
    model_options,
    print_notes,
    read_and_print,
    reading,
    spell,
)
from focalnet_jax.convert.weight_files import SUFFIXES
from focalnet_jax.errors import SetupError
from focalnet_jax.models import count_params
from focalnet_jax.paths import check_may_write, local_path, writing


def main(argv: list[str] | None = None) -> None:
    """Runs the command line.

    Raises:
      SetupError: something is wrong, and nothing was written at DST.
    """
    args = parse(argv)
    if not args.destination:
        raise SetupError("DST is empty: it is a directory or a file")
    destination = local_path(args.destination)
    to_file = _is_file(destination)
    files = None if to_file else FILES
    check_may_write(destination, overwrite=args.overwrite, files=files)
    if args.dialect and not to_file:
        raise SetupError(
            f"--dialect={args.dialect} is for a file, and {destination} is a directory: "
            f"end its name in one of {', '.join(SUFFIXES)}, or leave --dialect out"
        )
    found = read_and_print(args.source, args, _options(args))
    fitted = fit_to_model(found.weights, found.model, reading(args), keep_dtypes=to_file)
    print_notes(fitted.notes + fitted.dtype_notes)
    with writing(destination):
        if to_file:
            write_dialect(destination, found, fitted, args.dialect)
        else:
            write_directory(destination, found.description, fitted.variables)
            count = count_params(found.model)
            print(f"wrote {destination}: {count:,} parameters, and model.json")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = command_line.parser("python -m focalnet_jax.convert", __doc__)
    add = parser.add_argument
    add_source(parser, "source", metavar="SRC")
    add("destination", metavar="DST")
    add(
        "--dialect",
        choices=list(DIALECTS),
        help="the dialect of a file to write; by default SRC's, or microsoft for a run",
    )
    add(
        "--num-classes",
        type=command_line.whole,
        metavar="N",
        help="number of classes of the model's head",
    )
    add("--overwrite", action="store_true", help="replace DST")
    add_reading_arguments(parser)
    return parser.parse_args(argv)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    options = model_options(args.set)
    if args.num_classes is None:
        return options
    if options.get("num_classes", args.num_classes) != args.num_classes:
        raise SetupError("--num-classes and --set=num_classes differ: give one of them")
    return options | {"num_classes": args.num_classes}


def _is_file(path: pathlib.Path) -> bool:
    """Whether DST is a file; raises SetupError if its ending is that of neither."""
    is_file = path.suffix in SUFFIXES
    if not is_file and re.fullmatch(r"\.[A-Za-z]\w*", path.suffix):
        raise SetupError(
            f"{path.name} ends in {path.suffix!r}: DST is a directory, without an "
            f"ending, or a file in {', '.join(SUFFIXES)}"
        )
    return is_file


if __name__ == "__main__":
    command_line.leave_out_logs()
    command_line.run(main, spell=spell)
