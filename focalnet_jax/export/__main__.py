"""Writes a model as a program that runs without this package, or for other libraries.

    python -m focalnet_jax.export --weights=runs/digits digits.onnx
    python -m focalnet_jax.export --weights=runs/digits digits.safetensors --dialect=timm
    python -m focalnet_jax.export --weights=runs/digits exported
    python -m focalnet_jax.export --weights=runs/digits --format=hf digits_on_the_hub

--format says what DST becomes; by default its ending does:

    onnx          DST.onnx: a graph of ONNX, which holds the parameters, the preprocessing
                  and the names of the classes
    safetensors   DST.safetensors: the parameters, named as --dialect says
    stablehlo     a directory with a program of StableHLO, without an ending:
                    program.stablehlo      the program, for `jax.export.deserialize`
                    params.safetensors     its parameters by name
                    model.json             how images are prepared, and the classes
    hf            a directory as on the Hugging Face Hub, which transformers and timm load

Programs and graphs take any batch and any image that is large enough, with --vjp of sizes
that are multiples of the stride.
"""

import argparse
import json
import pathlib
import re

import jax
import numpy as np

from focalnet_jax import command_line
from focalnet_jax.convert.dialect_files import write_dialect
from focalnet_jax.convert.dialects import DIALECTS
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
from focalnet_jax.convert.weight_files import write_weights
from focalnet_jax.errors import SetupError, counted
from focalnet_jax.export import hub
from focalnet_jax.export.description import describe
from focalnet_jax.export.onnx_file import data_path, write_onnx
from focalnet_jax.export.onnx_graph import DTYPES, export_onnx
from focalnet_jax.export.stablehlo import PLATFORMS, export_program
from focalnet_jax.paths import check_may_write, local_path, writing, written_aside
from focalnet_jax.pretrained import Pretrained, with_parameters
from focalnet_jax.trees import named_leaves

PROGRAM, PARAMS, ABOUT = "program.stablehlo", "params.safetensors", "model.json"

# The ending of DST for each format, which is a directory if it has none. Without
# --format, the first one of an ending is meant.
ENDINGS = {"onnx": ".onnx", "safetensors": ".safetensors", "stablehlo": "", "hf": ""}
# All that is in the directory of a format.
_FILES = {"stablehlo": {PROGRAM, PARAMS, ABOUT}, "hf": hub.FILES}
# The formats that an option is for.
_OPTIONS = {"vjp": "stablehlo", "dtype": "onnx", "dialect": "safetensors"}


def main(argv: list[str] | None = None) -> None:
    """Runs the command line.

    Raises:
      SetupError: something is wrong, and nothing was written at DST.
    """
    args = parse(argv)
    if not args.destination:
        raise SetupError(
            "DST is empty: it is a directory, or a file in .onnx or .safetensors"
        )
    destination = local_path(args.destination)
    kind = _format(destination, args.format)
    for option, its_format in _OPTIONS.items():
        if getattr(args, option) and kind != its_format:
            raise SetupError(
                f"--{option} is for --format={its_format}, and {destination.name} is "
                f"written as {kind}"
            )
    check_may_write(destination, overwrite=args.overwrite, files=_FILES.get(kind))
    if kind == "onnx":
        check_may_write(data_path(destination), overwrite=args.overwrite)
    found = read_and_print(args.weights, args, model_options(args.set))
    keep_dtypes = kind == "safetensors"
    fitted = fit_to_model(
        found.weights, found.model, reading(args), keep_dtypes=keep_dtypes
    )
    print_notes(fitted.notes + fitted.dtype_notes)
    with writing(destination):
        if kind == "safetensors":
            write_dialect(destination, found, fitted, args.dialect)
        else:
            net = with_parameters(found, fitted, head=args.head)
            _WRITERS[kind](destination, net, args)


def _write_graph(path: pathlib.Path, net: Pretrained, args: argparse.Namespace) -> None:
    dtype = args.dtype or DTYPES[0]
    graph = export_onnx(net.model, net.params, metadata=describe(net), dtype=dtype)
    nodes = counted(len(graph.graph.node), "node")
    write_onnx(path, graph)
    print(f"wrote {path}: {nodes}, with the parameters in {dtype}")


def _write_hub(path: pathlib.Path, net: Pretrained, args: argparse.Namespace) -> None:
    directory = hub.export_hub(net)
    print_notes(directory.notes)
    directory.write(path, overwrite=args.overwrite)
    libraries = "transformers and timm" if len(directory.weights) > 1 else "transformers"
    print(f"wrote {path}: a directory for {libraries}")


def _write_program(path: pathlib.Path, net: Pretrained, args: argparse.Namespace) -> None:
    program = export_program(net.model, net.params, vjp=args.vjp)
    with written_aside(path) as aside:
        aside.mkdir()
        (aside / PROGRAM).write_bytes(program)
        named = named_leaves(net.params)
        write_weights(aside / PARAMS, jax.tree.map(np.asarray, named))
        text = json.dumps(describe(net), indent=1) + "\n"
        (aside / ABOUT).write_text(text, encoding="utf-8")
    print(
        f"wrote {path}: a program of {len(program) / 1e6:.1f} MB for "
        f"{', '.join(PLATFORMS)}, and its parameters"
    )


_WRITERS = {"onnx": _write_graph, "hf": _write_hub, "stablehlo": _write_program}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = command_line.parser("python -m focalnet_jax.export", __doc__)
    add = parser.add_argument
    add("destination", metavar="DST")
    add_source(parser, required=True)
    add("--format", choices=list(ENDINGS), help="what DST becomes")
    add(
        "--vjp",
        action="store_true",
        help="add the gradient to a program; sizes are multiples of the stride then",
    )
    add(
        "--dtype",
        choices=DTYPES,
        help="in which a graph of ONNX stores matrices and kernels; by default float32",
    )
    add(
        "--dialect",
        choices=list(DIALECTS),
        help="the names in a file of safetensors; by default SOURCE's, or microsoft for "
        "a run",
    )
    add("--overwrite", action="store_true", help="replace DST")
    add_reading_arguments(parser)
    return parser.parse_args(argv)


def _format(path: pathlib.Path, given: str | None) -> str:
    """The format that DST is written in.

    Raises:
      SetupError: its ending is that of another format, or of none.
    """
    # A dot and a number, as in the name of a version, make no ending.
    ending = path.suffix if re.fullmatch(r"\.[A-Za-z]\w*", path.suffix) else ""
    if given is None:
        formats = [name for name, its in ENDINGS.items() if its == ending]
        if formats:
            return formats[0]
        raise SetupError(
            f"{path.name} ends in {ending!r}: DST is a file that ends in .onnx or "
            ".safetensors, or a directory, without an ending. Files of PyTorch are "
            "written by python -m focalnet_jax.convert"
        )
    if ending != ENDINGS[given]:
        kind = "a directory, without an ending"
        if ENDINGS[given]:
            kind = f"a file that ends in {ENDINGS[given]}"
        has = f"ends in {ending}" if ending else "has no ending"
        raise SetupError(f"--format={given} makes {kind}, and {path.name} {has}")
    return given


if __name__ == "__main__":
    command_line.leave_out_logs()
    command_line.run(main, spell=spell)
