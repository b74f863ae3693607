"""Converts weights between PyTorch and JAX, and from one PyTorch dialect to another.

    python -m focalnet_jax.convert focalnet_tiny_srf.pth converted/tiny
    python -m focalnet_jax.convert runs/base base.safetensors --dialect=timm
    python -m focalnet_jax.convert hf:microsoft/focalnet-tiny tiny.pth --dialect=microsoft
    python -m focalnet_jax.convert focalnet_large_lrf_384.pth start \\
        --head=reset --num-classes=10

SRC: a file (.safetensors, .pth, .pt, .bin), a run's workdir, a converted directory,
hf:OWNER/NAME, or the name of an official release. DST: a directory, for
`main.py --config.init_from=DST` and `focalnet_jax.load_model(DST)`, or a file that the
dialect's implementation loads strictly.
"""

import argparse
import ast
import logging
import pathlib
import sys
from typing import Any

from focalnet_jax.convert.conversion import to_torch
from focalnet_jax.convert.dialects import DIALECTS
from focalnet_jax.convert.fit import HEADS, Changes, fit
from focalnet_jax.convert.reading import read_model
from focalnet_jax.convert.weight_files import SUFFIXES, write_weights
from focalnet_jax.errors import SetupError
from focalnet_jax.models import count_params
from focalnet_jax.saved_params import absolute_path, save_params
from focalnet_jax.written_aside import written_aside


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
    model, description, source = reading.model, reading.description, reading.source
    dialect = source.dialect.name if source.dialect else "Flax"
    print(f"read {source.origin}: {len(source.parameters):,} tensors, named as {dialect}")
    overrides = "".join(f", {k}={v}" for k, v in description.overrides.items())
    print(f"model: {description.name}{overrides}")
    changes = Changes(
        args.head, args.resize_kernels, args.add_levels, args.allow_nan, args.seed
    )
    fitted = fit(source, model, changes)
    for note in reading.notes + fitted.notes:
        print(f"note: {note}")

    if destination.suffix in SUFFIXES:
        recorded = description.source or {}
        dialect = args.dialect or recorded.get("dialect", "microsoft")
        tensors = to_torch(
            fitted.params,
            model,
            dialect=dialect,
            dtype=_dtypes(fitted.dtypes, recorded.get("dtype")),
        )
        write_weights(destination, tensors, wrapper=DIALECTS[dialect].wrapper)
        print(f"wrote {destination}: {len(tensors):,} tensors, named as {dialect}")
        return
    for note in fitted.dtype_notes:
        print(f"note: {note}")
    with written_aside(destination) as aside:
        aside.mkdir()
        save_params(aside / "params", fitted.params)
        description.write(aside)
    print(f"wrote {destination}: {count_params(model):,} parameters, and model.json")


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
        help="to write; SRC's own is recognised, and is the default",
    )
    add("--num-classes", type=int, metavar="N", help="of the model's head")
    add("--head", choices=HEADS, help="a new head, or the 1K part of a 22K head")
    add("--resize-kernels", action="store_true", help="zero-pad or crop them, centred")
    add("--add-levels", action="store_true", help="add focal levels, gates at zero")
    add("--allow-nan", action="store_true", help="take NaN and infinity as they are")
    add("--seed", type=int, default=0, metavar="N", help="of what is new")
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
    add("--image-size", type=int, metavar="N", help="that the weights are for")
    add("--prefix", help="take only the names that begin so, such as backbone.")
    add("--wrapper", help="the entry of SRC that holds the weights, such as teacher")
    add(
        "--ignore",
        metavar="PATTERN",
        action="append",
        default=[],
        help="leave out names that match, shell-style; repeatable",
    )


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
    if args.head == "reset" and not {"num_classes", "out_stages"} & options.keys():
        raise SetupError(
            "--head=reset needs --num-classes=N, or for a backbone "
            "--set=out_stages=(0,1,2,3)"
        )
    return options


def _dtypes(dtypes: dict[str, Any], recorded: str | dict | None) -> dict[str, Any]:
    """What was widened on the way in has its own precision on the way out."""
    if isinstance(recorded, str):
        return dict.fromkeys(dtypes, recorded)
    return dtypes | (recorded or {})


def _check_destination(path: pathlib.Path, *, overwrite: bool) -> None:
    is_file = path.suffix in SUFFIXES
    if not is_file and path.suffix[1:].isalpha():
        raise SetupError(
            f"{path.name} ends in {path.suffix!r}: DST is a directory, without an "
            f"ending, or a file in {', '.join(SUFFIXES)}"
        )
    if not path.exists():
        return
    if is_file == path.is_dir():
        kind = "directory" if path.is_dir() else "file"
        raise SetupError(f"{path} is there already, and is a {kind}")
    if not overwrite:
        raise SetupError(f"{path} is there already; --overwrite replaces it")
    if not is_file and not (path / "model.json").exists() and any(path.iterdir()):
        raise SetupError(f"{path} is no converted directory, so it is not overwritten")


if __name__ == "__main__":
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax says much
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except SetupError as error:
        sys.exit(f"error: {error}")
