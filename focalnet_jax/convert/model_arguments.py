"""Command-line options that say which weights are read, and as which model."""

import argparse
import ast
from typing import Any

from focalnet_jax.convert.weights_and_model import (
    WeightsAndModel,
    read_weights_and_model,
)
from focalnet_jax.errors import SetupError
from focalnet_jax.image_size import ImageSize, parse_image_size


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options to a parser."""
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
        type=_image_size,
        metavar="N",
        help="size in pixels of the images that the model is for; HEIGHTxWIDTH if they "
        "are no squares",
    )
    add("--prefix", help="take only names with this prefix, such as backbone")
    add("--wrapper", help="the entry of a file that holds the weights, such as teacher")
    add(
        "--ignore",
        metavar="PATTERN",
        action="append",
        default=[],
        help="leave out names that match, shell-style; repeatable",
    )


def _image_size(text: str) -> ImageSize:
    try:
        return parse_image_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from error


def model_options(assignments: list[str]) -> dict[str, Any]:
    """The options of the model from the values of `--set`.

    Raises:
      SetupError: a value is not of the form OPTION=VALUE.
    """
    options = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise SetupError(f"--set={assignment} is not of the form OPTION=VALUE")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value  # It is a word, such as bfloat16.
    return options


def read_and_print(
    source: str, args: argparse.Namespace, options: dict[str, Any]
) -> WeightsAndModel:
    """Reads weights as the options say, and prints what was read, and as which model.

    Args:
      source: as for `read_weights_and_model`.
      args: the parsed options of `add_model_arguments`.
      options: the options of the model.

    Raises:
      SetupError: as `read_weights_and_model`.
    """
    found = read_weights_and_model(
        source,
        name=args.model,
        options=options,
        image_size=args.image_size,
        wrapper=args.wrapper,
        prefix=args.prefix,
        ignore=args.ignore,
    )
    weights, description = found.weights, found.description
    dialect = weights.dialect.name if weights.dialect else "Flax"
    print(
        f"read {weights.origin}: {len(weights.parameters):,} tensors, named as {dialect}"
    )
    overrides = "".join(
        f", {option}={value}"
        for option, value in description.overrides.items()
        if option not in ("dtype", "param_dtype")
    )
    print(f"model: {description.name}{overrides}")
    print_notes(found.notes)
    return found


def print_notes(notes: tuple[str, ...]) -> None:
    """Prints a line for each note."""
    for note in notes:
        print(f"note: {note}")
