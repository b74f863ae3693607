"""`--config.FIELD=VALUE`: fields that the command line sets after the recipe.

Each value is read by its field, which says what it takes. These are the same:

    --config.data.flip=False    --noconfig.data.flip
    --config.seed=1             --config.seed 1
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from focalnet_jax.errors import SetupError
from focalnet_jax.fields import read_field
from focalnet_jax.train.config import all_fields, check_field_name


class Override(NamedTuple):
    """A field, and the text that was given for it.

    Attributes:
      name: of the field, such as `data.flip`.
      text: True for `--config.data.flip`, and False for `--noconfig.data.flip`.
    """

    name: str
    text: str | bool


def split_overrides(arguments: Sequence[str]) -> tuple[list[Override], list[str]]:
    """Divides a command line into overrides and all other arguments, in their order."""
    overrides, others = [], []
    index = 0
    while index < len(arguments):
        argument = arguments[index]
        index += 1
        found = re.fullmatch(r"--?(no)?config\.([^=]*)(=.*)?", argument, re.DOTALL)
        if argument == "--":  # What comes after it are no flags.
            others += [argument, *arguments[index:]]
            break
        if not found:
            others.append(argument)
            continue
        is_negated, name, value = found.groups()
        text: str | bool = not is_negated
        if value is not None:
            text = value[1:]
            if is_negated:
                raise SetupError(f"--noconfig.{name} takes no value, given {text!r}")
        elif not is_negated and index < len(arguments) and _is_value(arguments[index]):
            text = arguments[index]
            index += 1
        overrides.append(Override(name, text))
    return overrides, others


def _is_value(argument: str) -> bool:
    """Whether this is no flag; `-1` is a value."""
    return not re.match(r"--?[A-Za-z]|--$", argument)


def apply_overrides(config: ConfigDict, overrides: Sequence[Override]) -> list[str]:
    """Sets fields of a recipe's configuration; of a field's several values the last.

    Returns:
      a remark for each field that is given values that differ.

    Raises:
      SetupError: a field that does not exist, or a value that it does not take.
    """
    fields = all_fields(config.task)
    values: dict[str, list] = {}
    for name, text in overrides:
        check_field_name(name, config.task)
        if name == "task":
            raise SetupError("the recipe sets task, since its fields follow from it")
        values.setdefault(name, []).append(read_field(name, fields[name], text))
    remarks = []
    for name, given in values.items():
        *groups, last = name.split(".")
        group = config
        for part in groups:
            group = group[part]
        group[last] = given[-1]
        if any(value != given[-1] for value in given):
            listed = ", ".join(map(str, given))
            remarks.append(f"--config.{name} is given as {listed}: the last counts")
    return remarks
