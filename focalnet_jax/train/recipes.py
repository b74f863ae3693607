"""Recipes: files with a function `get_config(variant)`, found by name or by path.

The project's own lie in `configs/` of a checkout, and in the installed package.
"""

import importlib.util
import inspect
import os
import pathlib
import re
from collections.abc import Callable, Iterable

from ml_collections import ConfigDict

from focalnet_jax.errors import SetupError, did_you_mean, first_line
from focalnet_jax.tasks.registry import TASKS
from focalnet_jax.train.config import all_fields

_PACKAGE = pathlib.Path(__file__).parents[1]
DEFAULT = "digits"


def own_recipes() -> dict[str, pathlib.Path]:
    """The project's recipes by name."""
    for directory in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        if paths := sorted(directory.glob("[a-z]*.py")):
            return {path.stem: path for path in paths}
    return {}


def find_recipe(recipe: str) -> str:
    """The path of a recipe, with its variant: `digits`, `base:tiny_srf`, `mine.py:large`.

    `configs/base.py` finds the project's own where there is no such file, so that
    commands of the documentation work outside a checkout, too.

    Raises:
      SetupError: there is no such recipe.
    """
    given, colon, variant = recipe.partition(":")
    given = os.path.normpath(given)
    own = own_recipes()
    path = pathlib.Path(given)
    if path.suffix != ".py" or not path.is_file():
        name = given.removeprefix("configs/").removesuffix(".py")
        if name not in own:
            choice = [f"configs/{name}.py" for name in own] if path.suffix else own
            raise SetupError(f"there is no recipe {given!r}{did_you_mean(given, choice)}")
        path = own[name]
    return f"{path}{colon}{variant}"


def load_recipe(recipe: str) -> ConfigDict:
    """The configuration of a recipe, to be changed or checked.

    Args:
      recipe: as for `find_recipe`.

    Raises:
      SetupError: there is no such recipe, it can't be read, it has no such variant, or it
        sets a field that doesn't exist.
    """
    path, _, variant = find_recipe(recipe).partition(":")
    get_config = _load_function(path)
    if variant and not inspect.signature(get_config).parameters:
        raise SetupError(f"{path} has no variants, given {variant!r}")
    try:
        config = get_config(*([variant] if variant else []))
    except (AttributeError, KeyError, TypeError) as error:
        # ml_collections has no classes of its own for these errors.
        text = str(error)
        if misspelt := re.search(r'Key "(\w+)" does not exist', text):
            names = {part for task in TASKS for part in _parts(all_fields(task))}
            hint = did_you_mean(misspelt[1], names)
            raise SetupError(f"{path}: there is no field {misspelt[1]}{hint}") from error
        if "override field" in text:
            raise SetupError(f"{path}: {first_line(error)}{_takes(text)}") from error
        raise
    if not isinstance(config, ConfigDict) or "task" not in config:
        raise SetupError(
            f"{path}: get_config has to return a configuration from "
            "focalnet_jax.train.default_config()"
        )
    return config


def _takes(text: str) -> str:
    """What the field takes that an error of ml_collections is about."""
    last = re.search(r"override field '(\w+)'", text)
    takes = {
        f"; {name} takes {field.takes}"
        for task in TASKS
        for name, field in all_fields(task).items()
        if last and name.rpartition(".")[2] == last[1]
    }
    return takes.pop() if len(takes) == 1 else ""


def _load_function(path: str) -> Callable[..., ConfigDict]:
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise SetupError(f"{path}, line {error.lineno}: {error.msg}") from error
    if not hasattr(module, "get_config"):
        raise SetupError(f"{path} is no recipe: it has no function get_config")
    return module.get_config


def _parts(names: Iterable[str]) -> set[str]:
    """The words between the dots."""
    return {part for name in names for part in name.split(".")}
