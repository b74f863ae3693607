"""Recipes: files with a function `get_config(variant)`, found by name or by path.

The project's own lie in `configs/` of a checkout, and in the installed package.
"""

import importlib.util
import pathlib
import re
from collections.abc import Iterable

from ml_collections import ConfigDict

from focalnet_jax.errors import SetupError, did_you_mean
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
      SetupError: there is no such recipe, it has no such variant, or it sets a field
        that doesn't exist.
    """
    path, _, variant = find_recipe(recipe).partition(":")
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return module.get_config(*([variant] if variant else []))
    except AttributeError as error:
        # ml_collections has no class of its own for this error.
        if misspelt := re.search(r'Key "(\w+)" does not exist', str(error)):
            names = {part for task in TASKS for part in _parts(all_fields(task))}
            hint = did_you_mean(misspelt[1], names)
            raise SetupError(f"{path}: there is no field {misspelt[1]}{hint}") from error
        raise


def _parts(names: Iterable[str]) -> set[str]:
    """The words between the dots."""
    return {part for name in names for part in name.split(".")}
