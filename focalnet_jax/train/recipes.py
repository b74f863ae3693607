"""Recipes: files with a function `get_config(variant)`, found by name or by path.

The project's own lie in `configs/` of a checkout, and in the installed package.
"""

import contextlib
import importlib.util
import inspect
import os
import pathlib
import re
import traceback
from collections.abc import Callable, Iterable, Iterator

from ml_collections import ConfigDict

from focalnet_jax.errors import (
    SetupError,
    did_you_mean,
    first_line,
    is_library,
    place_in_own_code,
    shown,
)
from focalnet_jax.paths import with_home
from focalnet_jax.tasks.registry import TASKS
from focalnet_jax.train.config import all_fields

_PACKAGE = pathlib.Path(__file__).parents[1]
_CHECKOUT = _PACKAGE.parent if (_PACKAGE.parent / "main.py").is_file() else None
DEFAULT = "digits"


def own_recipes() -> dict[str, pathlib.Path]:
    """The project's recipes by name."""
    for directory in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        if paths := sorted(directory.glob("[a-z]*.py")):
            return {path.stem: path for path in paths}
    return {}


def find_recipe(recipe: str) -> str:
    """The path of a recipe, with its variant: `digits`, `base:tiny_srf`, `mine.py:large`.

    A path is looked for where one stands, and then in the checkout, if there is one. And
    `configs/base.py` finds the project's own where there is no such file, so that
    commands of the documentation work outside a checkout, too.

    Raises:
      SetupError: there is no such recipe.
    """
    given, colon, variant = recipe.partition(":")
    path = pathlib.Path(os.path.normpath(with_home(given)))
    places = [pathlib.Path(), _CHECKOUT] if _CHECKOUT else [pathlib.Path()]
    for place in places:
        if path.suffix == ".py" and (place / path).is_file():
            return f"{place / path}{colon}{variant}"
    own = own_recipes()
    name = path.as_posix().removeprefix("configs/").removesuffix(".py")
    if name in own:
        return f"{own[name]}{colon}{variant}"
    choice = [*own]
    if path.suffix:
        choice = [f"configs/{name}.py" for name in own] + _recipes_beside(path)
    looked = " and ".join(dict.fromkeys(map(_spelt, places)))
    raise SetupError(
        f"there is no recipe {given!r}{did_you_mean(given, choice)} (paths are looked "
        f"for in {looked})"
    )


def _recipes_beside(path: pathlib.Path) -> list[str]:
    """The Python files that lie where a recipe was looked for in vain."""
    try:
        return [str(beside) for beside in path.parent.glob("*.py")]
    except OSError:
        return []


def _spelt(place: pathlib.Path) -> str:
    try:
        return str(place.resolve())
    except FileNotFoundError:
        return "the current directory (which has been deleted)"


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
    with _errors_placed(path):
        config = get_config(*([variant] if variant else []))
    if not isinstance(config, ConfigDict) or "task" not in config:
        raise SetupError(
            f"{path}: get_config has to return a configuration from "
            "focalnet_jax.train.default_config()"
        )
    return config


def _misfit(error: BaseException) -> str | None:
    """What an error of ml_collections means that is about a value of another type."""
    found = re.search(
        r"override field '(?P<field>\w+)' .*?\. (?P<value>.*) is of original type "
        r"<class '(?P<given>.*)'> and cannot be casted to type <class '(?P<kind>.*)'>",
        str(error),
        re.DOTALL,
    )
    if not found:
        return None
    if found["kind"].endswith("ConfigDict"):
        return f"{found['field']} is a group of fields, which are set one by one"
    takes = {
        f"{name} takes {field.takes}"
        for task in TASKS
        for name, field in all_fields(task).items()
        if name.rpartition(".")[2] == found["field"]
    }
    problem = f"{found['field']} takes a value of the type {found['kind']}"
    if len(takes) == 1:
        problem = takes.pop()
    value = shown(found["value"])
    if found["given"] != "str":  # Its text is that of Python without quotes.
        value = value[1:-1]
    return f"{problem}, given {value} of the type {found['given']}"


def _load_function(path: str) -> Callable[..., ConfigDict]:
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
    assert spec is not None  # The file is one of Python.
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _errors_placed(path):
        spec.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise SetupError(f"{path} is no recipe: it has no function get_config")
    return module.get_config


class _PlacedError(SetupError):
    """An error of a recipe that names the line."""


@contextlib.contextmanager
def _errors_placed(path: str) -> Iterator[None]:
    """Raises SetupError, with the line of the recipe, for all that goes wrong in it."""
    try:
        yield
    except _PlacedError:
        raise
    except SetupError as error:
        # Recipes that raise one themselves say what they need to.
        is_own = not is_library(traceback.extract_tb(error.__traceback__)[-1].filename)
        place = None if is_own else place_in_own_code(error)
        if place is None:
            raise
        raise _PlacedError(f"{error.marked}\n  {place}") from error
    except (Exception, SystemExit) as error:
        place = place_in_own_code(error) or path
        raise _PlacedError(f"{_problem(error)}\n  {place}") from error


def _problem(error: BaseException) -> str:
    """What is wrong with a recipe that raises an error."""
    # ml_collections has no classes of its own for these errors.
    if misspelt := re.search(r'Key "(\w+)" does not exist', str(error)):
        names = {part for task in TASKS for part in _parts(all_fields(task))}
        return f"there is no field {misspelt[1]}{did_you_mean(misspelt[1], names)}"
    if misfit := _misfit(error):
        return misfit
    if isinstance(error, SyntaxError):
        return f"the recipe can't be read: {error.msg}"
    if isinstance(error, SystemExit):
        return "the recipe ends the program"
    return f"the recipe fails: {type(error).__name__}: {first_line(error)}"


def _parts(names: Iterable[str]) -> set[str]:
    """The words between the dots."""
    return {part for name in names for part in name.split(".")}
