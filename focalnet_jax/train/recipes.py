"""Recipes: files with a function `get_config(variant)`, found by name or by path.

The project's own lie in `configs/` of a checkout, and in the installed package.
"""

import importlib.util
import pathlib

from ml_collections import ConfigDict

from focalnet_jax.errors import SetupError, did_you_mean

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

    A file that is there goes before a recipe of that name. `configs/base.py` finds the
    project's own where there is no such file, so that commands work outside a checkout.

    Raises:
      SetupError: there is no such recipe.
    """
    given, colon, variant = recipe.partition(":")
    own = own_recipes()
    path = pathlib.Path(given)
    if not path.is_file():
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
      SetupError: there is no such recipe, or it has no such variant.
    """
    path, _, variant = find_recipe(recipe).partition(":")
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*([variant] if variant else []))
