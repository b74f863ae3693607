"""Writes a model as a program that runs without this package.

    python -m focalnet_jax.export --weights=runs/digits digits.onnx
    python -m focalnet_jax.export --weights=runs/digits exported
    python -m focalnet_jax.export --weights=hf:microsoft/focalnet-tiny tiny --vjp

--weights takes all that `focalnet_jax.load_model` takes.

If DST ends in .onnx, it is a graph of ONNX, which holds the parameters, the preprocessing
and the names of the classes. If it has no ending, it becomes a directory with a program
of StableHLO:

    program.stablehlo      the program, for `jax.export.deserialize`
    params.safetensors     its parameters by name
    model.json             how images are prepared, and the names of the classes

Both take any batch and any image that is large enough, with --vjp of sizes that are
multiples of the stride.
"""

import argparse
import json
import logging
import pathlib
import re
from typing import Any

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
from focalnet_jax.errors import SetupError, counted
from focalnet_jax.export.onnx_graph import export_onnx, write_onnx
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
        raise SetupError("DST is empty: it is a directory, or a file that ends in .onnx")
    destination = local_path(args.destination)
    is_onnx = destination.suffix == ".onnx"
    if is_onnx and args.vjp:
        raise SetupError("--vjp is for a directory: a graph of ONNX has no gradient")
    _check_destination(destination, is_onnx=is_onnx, overwrite=args.overwrite)
    command_line.find_devices()
    net = load_model(args.weights, **vars(reading(args)), **model_options(args.set))
    try:
        if is_onnx:
            _write_graph(destination, net)
        else:
            _write_program(destination, net, vjp=args.vjp)
    except OSError as error:
        raise SetupError(
            f"{destination} can't be written: {error.strerror or error}"
        ) from error


def _write_graph(path: pathlib.Path, net: Pretrained) -> None:
    graph = export_onnx(net.model, net.params, metadata=_about(net))
    write_onnx(path, graph)
    print(f"wrote {path}: {counted(len(graph.graph.node), 'node')}, with the parameters")


def _write_program(path: pathlib.Path, net: Pretrained, *, vjp: bool) -> None:
    program = export_program(net.model, net.params, vjp=vjp)
    with written_aside(path) as aside:
        aside.mkdir()
        (aside / PROGRAM).write_bytes(program)
        named = named_leaves(net.params)
        write_weights(aside / PARAMS, jax.tree.map(np.asarray, named))
        text = json.dumps(_about(net), indent=1) + "\n"
        (aside / ABOUT).write_text(text, encoding="utf-8")
    print(
        f"wrote {path}: a program of {len(program) / 1e6:.1f} MB for "
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


def _about(net: Pretrained) -> dict[str, Any]:
    """What a user needs to know of images and classes."""
    return {
        "preprocessing": net.preprocessing.to_json(),
        "smallest_image": list(net.model.encoder.smallest_input()),
        "classes": net.classes,
    }


def _check_destination(path: pathlib.Path, *, is_onnx: bool, overwrite: bool) -> None:
    if not is_onnx and re.fullmatch(r"\.[A-Za-z]\w*", path.suffix):
        raise SetupError(
            f"{path.name} ends in {path.suffix!r}: DST is a file that ends in .onnx, or "
            "a directory, without an ending"
        )
    parent = next(parent for parent in path.parents if parent.exists())
    if not parent.is_dir():
        raise SetupError(f"{path} can't be written: {parent} is a file")
    paths = [path, path.with_name(f"{path.name}.data")] if is_onnx else [path]
    if not (found := [str(path) for path in paths if path_exists(path)]):
        return
    if not overwrite:
        raise SetupError(f"{found[0]} is there already; --overwrite replaces it")
    is_ours = not path.is_dir() if is_onnx else path.is_dir()
    if is_ours and not is_onnx:
        is_ours = {entry.name for entry in path.iterdir()} <= {PROGRAM, PARAMS, ABOUT}
    if not is_ours:
        kind = "file" if is_onnx else "exported directory"
        raise SetupError(f"{path} is no {kind}, so it is not overwritten")


if __name__ == "__main__":
    for name in ("absl", "asyncio"):  # Orbax logs many lines.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    command_line.run(main, spell=spell)
