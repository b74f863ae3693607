"""Writes a model as a program that runs without this package.

    python -m focalnet_jax.export --weights=runs/digits exported
    python -m focalnet_jax.export --weights=hf:microsoft/focalnet-tiny exported --vjp

--weights takes all that `focalnet_jax.load_model` takes. DST becomes a directory:

    program.stablehlo      the program, for `jax.export.deserialize`
    params.safetensors     its parameters by name
    model.json             how images are prepared, and the names of the classes

The program takes any batch and any image that is large enough, on CPUs, TPUs and GPUs.
"""

import argparse
import json
import logging
import pathlib

import jax
import numpy as np

from focalnet_jax import command_line
from focalnet_jax.convert.model_arguments import (
    add_reading_arguments,
    model_options,
    reading,
    spell,
)
from focalnet_jax.convert.weight_files import write_weights
from focalnet_jax.errors import SetupError
from focalnet_jax.export.stablehlo import PLATFORMS, export_program
from focalnet_jax.paths import local_path, path_exists, written_aside
from focalnet_jax.pretrained import Pretrained, load_model
from focalnet_jax.trees import named_leaves

PROGRAM, PARAMS, ABOUT = "program.stablehlo", "params.safetensors", "model.json"


def main(argv: list[str] | None = None) -> None:
    """Runs the command line.

    Raises:
      SetupError: something is wrong, and nothing was written at DST.
    """
    args = parse(argv)
    if not args.destination:
        raise SetupError("DST is empty: it is a directory")
    destination = local_path(args.destination)
    _check_destination(destination, overwrite=args.overwrite)
    command_line.find_devices()
    net = load_model(args.weights, **vars(reading(args)), **model_options(args.set))
    program = export_program(net.model, net.params, vjp=args.vjp)
    try:
        with written_aside(destination) as aside:
            aside.mkdir()
            (aside / PROGRAM).write_bytes(program)
            named = named_leaves(net.params)
            write_weights(aside / PARAMS, jax.tree.map(np.asarray, named))
            text = json.dumps(about(net), indent=1) + "\n"
            (aside / ABOUT).write_text(text, encoding="utf-8")
    except OSError as error:
        raise SetupError(
            f"{destination} can't be written: {error.strerror or error}"
        ) from error
    print(
        f"wrote {destination}: a program of {len(program) / 1e6:.1f} MB for "
        f"{', '.join(PLATFORMS)}, and its parameters"
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = command_line.parser("python -m focalnet_jax.export", __doc__)
    add = parser.add_argument
    add("destination", metavar="DST")
    add("--weights", required=True, metavar="SOURCE", help="what load_model takes")
    add(
        "--vjp",
        action="store_true",
        help="add the gradient; sizes are multiples of the stride then",
    )
    add("--overwrite", action="store_true", help="replace DST")
    add_reading_arguments(parser)
    return parser.parse_args(argv)


def about(net: Pretrained) -> dict:
    """What a user of the program needs to know of images and classes."""
    preprocessing = net.preprocessing.to_json()
    return {"preprocessing": preprocessing, "classes": net.classes}


def _check_destination(path: pathlib.Path, *, overwrite: bool) -> None:
    if not path_exists(path):
        return
    if not overwrite:
        raise SetupError(f"{path} is there already; --overwrite replaces it")
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else {path.name}
    if not names <= {PROGRAM, PARAMS, ABOUT}:
        raise SetupError(f"{path} is no exported directory, so it is not overwritten")


if __name__ == "__main__":
    for name in ("absl", "asyncio"):  # Orbax logs many lines.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    command_line.run(main, spell=spell)
