"""Command-line options that say how weights are read, and as which model.

They are the same for all tools, and for each attribute of `Reading` there is one. Only
fine-tuning has none for the head, which always begins anew.
"""

import argparse
import ast
import dataclasses
from typing import Any

from focalnet_jax import command_line
from focalnet_jax.convert.reading import HEADS, Reading
from focalnet_jax.convert.weights_and_model import (
    WeightsAndModel,
    read_weights_and_model,
)
from focalnet_jax.errors import SetupError, spelt
from focalnet_jax.image_size import ImageSize, parse_image_size
from focalnet_jax.values import SEED
from focalnet_jax.weights.releases import RELEASES


def add_source(
    parser: argparse.ArgumentParser, name: str = "--weights", *, more: str = "", **options
) -> None:
    """Adds the argument that says which weights are read.

    Args:
      parser: that gets it.
      name: of the argument.
      more: the end of its help.
      **options: further ones of `add_argument`.
    """
    text = (
        "the directory of a run; what python -m focalnet_jax.convert wrote; "
        "a file of PyTorch weights; hf:OWNER/NAME on the Hugging Face Hub; or an "
        f"official release: {', '.join(RELEASES)}"
    )
    options = {"metavar": "SOURCE"} | options
    parser.add_argument(name, help=command_line.as_called(text) + more, **options)


def add_reading_arguments(
    parser: argparse.ArgumentParser, *, head: bool = True, seed: str | None = None
) -> None:
    """Adds the options to a parser.

    Args:
      parser: that gets them.
      head: whether the one of the head is among them.
      seed: the help of the one of the seed, where it is for more than new parameters.
    """
    group = parser.add_argument_group(
        "another model or size", "Weights say what they are for. These say it otherwise."
    )
    add = group.add_argument
    add("--model", dest="name", metavar="NAME", help="the variant")
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
    group = parser.add_argument_group(
        "only for weights that don't fit as they are",
        "They have other names, or belong to a net with another head or other levels.",
    )
    add = group.add_argument
    add("--prefix", help="take only names with this prefix, such as backbone")
    add("--wrapper", help="the entry of a file that holds the weights, such as teacher")
    add(
        "--ignore",
        metavar="PATTERN",
        action="append",
        default=[],
        help="leave out names that match, shell-style; repeatable",
    )
    if head:
        add("--head", choices=HEADS, help="a new head, or the 1K part of a 22K head")
    else:
        parser.set_defaults(head=None)
    add("--resize-kernels", action="store_true", help="zero-pad or crop them, centred")
    add("--add-levels", action="store_true", help="add focal levels with zero gates")
    add("--allow-nan", action="store_true", help="take NaN and infinity as they are")
    (parser if seed else group).add_argument(
        "--seed",
        type=command_line.reads(SEED),
        default=0,
        metavar="N",
        help=seed or "the seed of new parameters",
    )


def reading(args: argparse.Namespace) -> Reading:
    """What the options of `add_reading_arguments` say."""
    names = [field.name for field in dataclasses.fields(Reading)]
    return Reading(**{name: getattr(args, name) for name in names})


def spell(name: str) -> str:
    """How the tools call what an error names: an argument or an option of the model."""
    if name == "name":
        return "--model"
    own = {"dialect", "overwrite", *(field.name for field in dataclasses.fields(Reading))}
    if name in own:
        return command_line.option(name)
    return f"--set={name}"


def _image_size(text: str) -> ImageSize:
    try:
        return parse_image_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from error


def model_options(assignments: list[str]) -> dict[str, Any]:
    """The options of the model from the values of `--set`.

    Raises:
      SetupError: a value is not of the form OPTION=VALUE, or an option has two values.
    """
    options: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise SetupError(f"--set={assignment} is not of the form OPTION=VALUE")
        try:
            read = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            read = value  # It is a word, such as bfloat16.
        if options.get(name, read) != read:
            raise SetupError(f"--set={name} is given twice, with different values")
        options[name] = read
    return options


def read_and_print(
    source: str, args: argparse.Namespace, options: dict[str, Any]
) -> WeightsAndModel:
    """Reads weights as the options say, and prints what was read, and as which model.

    Args:
      source: as for `read_weights_and_model`.
      args: the parsed options of `add_reading_arguments`.
      options: the options of the model.

    Raises:
      SetupError: as `read_weights_and_model`.
    """
    command_line.find_devices()
    found = read_weights_and_model(source, reading(args), options)
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
        print(f"note: {spelt(note, spell, command_line.assigned)}")
