"""Fields of a configuration: of each the default, what is allowed and what it means.

A table of fields is all there is to know about them: it makes the configuration, checks
one, and fills the page of documentation. Names are dotted: `data.image_size`.
"""

import dataclasses
import functools
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from focalnet_jax.errors import SetupError, did_you_mean

# A check returns what is wrong with a value, to be said after the value, or None.
Check = Callable[[Any], str | None]


@dataclasses.dataclass(frozen=True)
class Field:
    """One field.

    Attributes:
      default: its value in a new configuration; None for a field that may be unset.
      meaning: what it does, as a sentence or two.
      check: what values are allowed; a field that is unset is always right.
      kind: the type of values of a field whose default is None, or whose values may have
        other types than the default.
      canonical: makes the form in which a right value is kept, where there are several.
      decides_examples: whether a run that goes on must have the value of its beginning,
        since another one would have it see other examples; or a function of both values
        that says whether they lead to other examples.
    """

    default: Any
    meaning: str
    check: Check | None = None
    kind: type | None = None
    canonical: Callable[[Any], Any] | None = None
    decides_examples: bool | Callable[[Any, Any], bool] = False


Fields = Mapping[str, Field]


def make_config(fields: Fields) -> ConfigDict:
    """A new configuration; fields can be set in it, but not added."""
    config = ConfigDict()
    for name, field in fields.items():
        *groups, last = name.split(".")
        group = config
        for part in groups:
            if part not in group:
                group[part] = ConfigDict()
            group = group[part]
        group[last] = (
            config_dict.FieldReference(field.default, field_type=field.kind)
            if field.kind
            else field.default
        )
    return config.lock()


def check_fields(config: ConfigDict, fields: Fields) -> None:
    """Checks that a configuration has these fields and no others, and their values.

    Raises:
      SetupError: naming the field, what was given and what is allowed.
    """
    given = flatten(config.to_dict())
    for name in given:
        if name not in fields:
            raise SetupError(
                f"the config has an unknown field {name}{did_you_mean(name, fields)}"
            )
    for name, field in fields.items():
        if name not in given:
            raise SetupError(f"the config lacks the field {name}")
        value = given[name]
        if value is None and field.default is not None:
            raise SetupError(f"{name} has no value; the default is {field.default!r}")
        if value is not None and field.check and (problem := field.check(value)):
            raise SetupError(f"{name}={value!r} {problem}")


def canonical_values(config: ConfigDict, fields: Fields) -> dict[str, Any]:
    """The values of a checked configuration as nested dicts, in their canonical form."""
    values = config.to_dict()
    for name, field in fields.items():
        if field.canonical:
            *groups, last = name.split(".")
            group = functools.reduce(operator.getitem, groups, values)
            group[last] = field.canonical(group[last])
    return values


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested dicts by dotted names."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def full_name(argument: str, fields: Iterable[str]) -> str:
    """The field that an argument of a function is set by: `data.classes` for `classes`.

    An argument that no field, or more than one, is named after stays as it is.
    """
    names = [name for name in fields if name.rpartition(".")[2] == argument]
    return names[0] if len(names) == 1 else argument


# --- What values are allowed --------------------------------------------------


def at_least(least: float) -> Check:
    def check(value):
        if value != value:
            return "is not a number"
        return None if value >= least else f"is below {least}"

    return check


def below(limit: float) -> Check:
    return lambda value: None if value < limit else f"is not below {limit}"


def share(value: float) -> str | None:
    """A number from 0 to 1."""
    return None if 0 <= value <= 1 else "is not in [0, 1]"


def finite(value: float) -> str | None:
    return None if math.isfinite(value) else "is not finite"


def one_of(allowed: Iterable[str]) -> Check:
    """One of some words. A table that is given here may grow later."""
    return lambda value: (
        None if value in allowed else f"is unknown{did_you_mean(value, allowed)}"
    )


def numbers(count: int) -> Check:
    def check(value):
        are_numbers = all(isinstance(v, (int, float)) for v in value)
        is_right = len(value) == count and are_numbers
        return None if is_right else f"is not {count} numbers"

    return check


def ascending(value: tuple[float, float]) -> str | None:
    """Two positive numbers, the smaller one first."""
    is_range = 0 < value[0] <= value[1]
    return None if is_range else "is no range of positive numbers"


def patterns(value: tuple[str, ...]) -> str | None:
    """Regular expressions."""
    for pattern in value:
        try:
            re.compile(pattern)
        except (TypeError, re.error) as error:
            return f"holds {pattern!r}, which is no regular expression: {error}"
    return None


def every(*checks: Check) -> Check:
    """All of several checks; the first that fails says what is wrong."""
    return lambda value: next(filter(None, (check(value) for check in checks)), None)
