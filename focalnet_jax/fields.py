"""Fields of a configuration: of each the default, what is allowed and what it means.

A table of fields is all there is to know about them: it makes the configuration, checks
one, reads the command line, and fills the page of documentation. Names are dotted:
`data.image_size`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict, config_dict

from focalnet_jax.errors import SetupError, did_you_mean, shown
from focalnet_jax.values import Flag, NotAllowed, Values, values_like


@dataclasses.dataclass(frozen=True)
class Field:
    """One field.

    Attributes:
      default: its value in a new configuration; None for a field that may be unset.
      meaning: what it does, as a sentence or two.
      values: what it takes when it is set. Without it, a field takes all values of the
        type of its default, which then isn't None.
      decides_examples: whether a run that goes on must have the value of its beginning,
        since another one would have it see other examples; or a function of both values
        that says whether they lead to other examples.
      absolute: of a field that may name a place: its value such that it doesn't depend on
        where one stands.
    """

    default: Any
    meaning: str
    values: Values | None = None
    decides_examples: bool | Callable[[Any, Any], bool] = False
    absolute: Callable[[Any], Any] | None = None

    @property
    def takes(self) -> Values:
        """What values are allowed when the field is set."""
        return values_like(self.default) if self.values is None else self.values

    @property
    def may_be_unset(self) -> bool:
        """Whether None is allowed, too."""
        return self.default is None

    def convert(self, value: Any) -> Any:
        """The value as its one Python type; an empty text unsets what may be unset.

        Raises:
          NotAllowed: with the sentence that follows on the value.
        """
        if self.may_be_unset and (value is None or _is_empty(value)):
            return None
        return self.takes.convert(value)

    def read(self, text: str) -> Any:
        """The value that a text of the command line spells; raises as `convert`.

        `None` and an empty text unset what may be unset.
        """
        if self.may_be_unset and text in ("", "None"):
            return None
        return self.takes.read(text)


Fields = Mapping[str, Field]
"""Fields by their dotted names."""


def _is_empty(value: Any) -> bool:
    return isinstance(value, str) and not value


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
        group[last] = field.default
        # ml_collections has the types of fields that are unset, or that take several.
        if field.may_be_unset or field.takes.kind is object:
            kind = field.takes.kind
            group[last] = config_dict.FieldReference(field.default, field_type=kind)
    return config.lock()


def check_fields(config: ConfigDict, fields: Fields) -> FrozenConfigDict:
    """Checks that a configuration has these fields and no others, and their values.

    Returns:
      the configuration, frozen, with each value as the one type of its field: 1.0 for 1
      where the field is a fraction, and tuples for lists.

    Raises:
      SetupError: naming the field, what was given and what is allowed.
    """
    try:
        given = flatten(config.to_dict())
    except config_dict.RequiredValueError as error:
        raise SetupError(f"the config lacks a value: {error}") from error
    for name in given:
        check_is_no_group(name, fields)
        if name not in fields:
            raise SetupError(
                f"the config has an unknown field {name}{did_you_mean(name, fields)}"
            )
    checked = {}
    for name, field in fields.items():
        if name not in given:
            raise SetupError(f"the config lacks the field {name}")
        checked[name] = converted(name, field, given[name])
    return FrozenConfigDict(unflatten(checked))


def check_is_no_group(name: str, fields: Iterable[str]) -> None:
    """Raises SetupError for the name of a group, which has no value of its own."""
    if inner := [field for field in fields if field.startswith(f"{name}.")]:
        few = ", ".join([*inner[:3], *(["..."] if len(inner) > 3 else [])])
        raise SetupError(f"{name} is a group of fields, which are set one by one: {few}")


def read_field(name: str, field: Field, text: str | bool) -> Any:
    """The value that somebody has typed for a field.

    Args:
      name: of the field.
      field: what it takes.
      text: what was typed; True or False for a flag that was only named.

    Raises:
      SetupError: naming the field, what was given and what is allowed.
    """
    if not isinstance(text, str):
        if not isinstance(field.takes, Flag):
            raise SetupError(f"{name} needs a value: {field.takes}")
        return text
    try:
        return field.read(text)
    except NotAllowed as problem:
        is_plain = text and text.isprintable() and len(text) <= 80
        typed = text if is_plain else shown(text)
        raise SetupError(f"{name}={typed} {problem}") from problem


def converted(name: str, field: Field, value: Any) -> Any:
    """The value of a field as its one Python type; raises as `read_field`."""
    try:
        return field.convert(value)
    except NotAllowed as problem:
        raise SetupError(f"{name}={shown(value)} {problem}") from problem


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested dicts by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts of values by dotted names; the inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, last = name.split(".")
        group = tree
        for part in groups:
            group = group.setdefault(part, {})
        group[last] = value
    return tree


def full_name(argument: str, fields: Iterable[str]) -> str:
    """The field that an argument of a function is set by: `data.classes` for `classes`.

    An argument that no field, or more than one, is named after stays as it is.
    """
    names = [name for name in fields if name.rpartition(".")[2] == argument]
    return names[0] if len(names) == 1 else argument
