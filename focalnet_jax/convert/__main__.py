"""Converts weights between PyTorch and JAX, and from one PyTorch dialect to another.

    python -m focalnet_jax.convert focalnet_tiny_srf.pth converted/tiny
    python -m focalnet_jax.convert runs/base base.safetensors --dialect=timm
    python -m focalnet_jax.convert hf:microsoft/focalnet-tiny tiny.pth --dialect=microsoft
    python -m focalnet_jax.convert focalnet_large_lrf_384.pth start \\
        --head=reset --num-classes=10

SRC: a file (.safetensors, .pth, .pt, .bin), a run's workdir, a converted directory,
hf:OWNER/NAME, or the name of an official release. DST: a directory, for
`main.py --config.init_from=DST` and `focalnet_jax.load_model(DST)`, or a file that the
dialect's implementation loads strictly; microsoft's .pth has its weights under "model".
A .safetensors file carries model and preprocessing along, for `load_model`.
"""

import argparse
import ast
import json
import logging
import os
import pathlib
import re
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from focalnet_jax.convert.conversion import to_torch
from focalnet_jax.convert.dialects import DIALECTS
from focalnet_jax.convert.fit import HEADS, Changes, fit, is_exact
from focalnet_jax.convert.reading import DESCRIPTION, Reading, read_model
from focalnet_jax.convert.weight_files import SUFFIXES, write_weights
from focalnet_jax.errors import SetupError
from focalnet_jax.models import count_params
from focalnet_jax.paths import absolute_path, written_aside
from focalnet_jax.weights.description import BACKBONE_OPTIONS, HEAD_OPTIONS, Model
from focalnet_jax.weights.params import save_params


def main(argv: list[str] | None = None) -> None:
    """Runs the command line.

    Raises:
      SetupError: with what is wrong, before anything is written at DST.
    """
    args = parse(argv)
    destination = pathlib.Path(absolute_path(args.destination))
    _check_destination(destination, overwrite=args.overwrite)
    reading = read_model(
        args.source,
        name=args.model,
        options=_options(args),
        image_size=args.image_size,
        wrapper=args.wrapper,
        prefix=args.prefix,
        ignore=args.ignore,
    )
    print_reading(reading)
    model, description = reading.model, reading.description
    changes = Changes(
        args.head, args.resize_kernels, args.add_levels, args.allow_nan, args.seed
    )
    to_file = destination.suffix in SUFFIXES
    fitted = fit(reading.source, model, changes, keep_dtypes=to_file)
    for note in fitted.notes + fitted.dtype_notes:
        print(f"note: {note}")
    if to_file:
        dialect = args.dialect or _usual_dialect(reading)
        tensors = to_torch(
            fitted.params, model, dialect=dialect, dtype=_dtypes(fitted.params, reading)
        )
        for note in _what_a_file_lacks(model):
            print(f"note: {note}")
        write_weights(
            destination,
            tensors,
            wrapper=DIALECTS[dialect].wrapper,
            metadata={DESCRIPTION: json.dumps(description.to_json())},
        )
        print(f"wrote {destination}: {len(tensors):,} tensors, named as {dialect}")
        return
    with written_aside(destination) as aside:
        aside.mkdir()
        save_params(aside / "params", fitted.params)
        description.write(aside)
    print(f"wrote {destination}: {count_params(model):,} parameters, and model.json")


def print_reading(reading: Reading) -> None:
    """Says what was read, and as which model."""
    source, description = reading.source, reading.description
    dialect = source.dialect.name if source.dialect else "Flax"
    print(f"read {source.origin}: {len(source.parameters):,} tensors, named as {dialect}")
    overrides = "".join(
        f", {option}={value}"
        for option, value in description.overrides.items()
        if option not in ("dtype", "param_dtype")
    )
    print(f"model: {description.name}{overrides}")
    for note in reading.notes:
        print(f"note: {note}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m focalnet_jax.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("source", metavar="SRC")
    add("destination", metavar="DST")
    add(
        "--dialect",
        choices=list(DIALECTS),
        help="of a file to write; by default SRC's own, or microsoft for a run's",
    )
    add("--num-classes", type=whole, metavar="N", help="classes of the model's head")
    add("--head", choices=HEADS, help="a new head, or the 1K part of a 22K head")
    add("--resize-kernels", action="store_true", help="zero-pad or crop them, centred")
    add("--add-levels", action="store_true", help="add focal levels, gates at zero")
    add("--allow-nan", action="store_true", help="take NaN and infinity as they are")
    add("--seed", type=int, default=0, metavar="N", help="of parameters that start anew")
    add("--overwrite", action="store_true", help="replace DST")
    add_model_arguments(parser)
    return parser.parse_args(argv)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say what is read, and as which model."""
    add = parser.add_argument
    add("--model", metavar="NAME", help="the variant; by default as the weights look")
    add(
        "--set",
        metavar="OPTION=VALUE",
        action="append",
        default=[],
        help="an option of the model, such as normalize_modulator=True; repeatable",
    )
    add(
        "--image-size",
        type=positive,
        metavar="N",
        help="side in pixels that the model is for",
    )
    add("--prefix", help="take only the names below it, such as backbone")
    add("--wrapper", help="the entry of SRC that holds the weights, such as teacher")
    add(
        "--ignore",
        metavar="PATTERN",
        action="append",
        default=[],
        help="leave out names that match, shell-style; repeatable",
    )


def whole(text: str) -> int:
    """A whole number from 0, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    if not whole(text):
        raise argparse.ArgumentTypeError("it must be 1 at least")
    return int(text)


def parse_options(assignments: list[str]) -> dict[str, Any]:
    """The model's options from the values of `--set`."""
    options = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise SetupError(f"--set={assignment} is not of the form OPTION=VALUE")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value  # a word, such as bfloat16
    return options


def _options(args: argparse.Namespace) -> dict[str, Any]:
    options = parse_options(args.set)
    if args.num_classes is not None:
        options["num_classes"] = args.num_classes
    if args.head == "in22k_to_in1k":
        options.setdefault("num_classes", 1000)
    if args.head == "reset" and not HEAD_OPTIONS & options.keys():
        raise SetupError(
            "--head=reset needs --num-classes=N, or for a backbone "
            "--set=out_stages=0,1,2,3"
        )
    return options


def _usual_dialect(reading: Reading) -> str:
    """That of the source, or from which it was converted."""
    if BACKBONE_OPTIONS & reading.description.overrides.keys():
        return "microsoft"  # no other has a place for a backbone's norms
    if reading.source.dialect:
        return reading.source.dialect.name
    return (reading.description.source or {}).get("dialect", "microsoft")


def _dtypes(params: dict[str, Any], reading: Reading) -> dict[str, np.dtype]:
    """What was widened on the way in has its own precision on the way out.

    That is, if nothing is lost by it: trained parameters stay as they are.
    """
    recorded = (reading.description.source or {}).get("dtype", {})
    dtypes = {}
    for path, array in traverse_util.flatten_dict(params, sep="/").items():
        name = recorded if isinstance(recorded, str) else recorded.get(path)
        narrow = jnp.dtype(name) if name else array.dtype
        if is_exact(narrow, array.dtype):
            with np.errstate(over="ignore"):
                back = array.astype(narrow).astype(array.dtype)
            if np.array_equal(back, array, equal_nan=True):
                dtypes[path] = narrow
    return dtypes


def _what_a_file_lacks(model: Model) -> list[str]:
    """Says which of the model's options whoever loads a file has to set."""
    unseen = [
        f"{option}=True"
        for option in ("normalize_modulator", "use_postln")
        if getattr(model.encoder, option)
    ]
    if model.encoder.use_conv_embed:
        unseen.append(f"stem_padding={model.encoder.stem_padding}")
    if not unseen:
        return []
    return [f"weights do not show {', '.join(unseen)}: set that where the file is loaded"]


def _check_destination(path: pathlib.Path, *, overwrite: bool) -> None:
    is_file = path.suffix in SUFFIXES
    if not is_file and re.fullmatch(r"\.[A-Za-z]\w*", path.suffix):
        raise SetupError(
            f"{path.name} ends in {path.suffix!r}: DST is a directory, without an "
            f"ending, or a file in {', '.join(SUFFIXES)}"
        )
    if not path.exists():
        parent = next(p for p in path.parents if p.exists())
        if not parent.is_dir():
            raise SetupError(f"{path} can't be written: {parent} is a file")
        return
    if is_file == path.is_dir():
        kind = "directory" if path.is_dir() else "file"
        raise SetupError(f"{path} is there already, and is a {kind}")
    if not overwrite:
        raise SetupError(f"{path} is there already; --overwrite replaces it")
    if not is_file and set(os.listdir(path)) not in ({"params", "model.json"}, set()):
        raise SetupError(f"{path} is no converted directory, so it is not overwritten")


if __name__ == "__main__":
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax says much
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except (SetupError, OSError) as error:
        sys.exit(f"error: {error}")
