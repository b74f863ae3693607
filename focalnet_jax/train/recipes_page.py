"""The page of documentation that shows all recipes and what they set.

python -m focalnet_jax.train.recipes_page > docs/recipes.md
"""

import ast
import pathlib
import re
from collections.abc import Iterator

from focalnet_jax import command_line
from focalnet_jax.fields import flatten
from focalnet_jax.train.config import default_config
from focalnet_jax.train.fields_page import as_code
from focalnet_jax.train.recipes import load_recipe, own_recipes

_HEAD = """\
# Recipes

The command `python -m focalnet_jax.train.recipes_page > docs/recipes.md` makes this page
from the recipes in `configs/`. To change the page, change a recipe and run the command
again.

A recipe says what a run learns, from which data and how. [Training](training.md#recipes)
explains how one is chosen, changed and written. For each recipe this page has the text on
top of its file, with the commands and the results to expect, and a table of the fields
that it changes. The tables are those of the recipes without a variant.
[Configuration](configuration.md) explains the fields."""


def page(recipes: dict[str, pathlib.Path]) -> str:
    """The page in Markdown.

    Args:
      recipes: paths of recipes by name.
    """
    parts = [_HEAD]
    for name, path in recipes.items():
        docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        title, _, text = docstring.partition("\n")
        parts += [f"## `{name}`: {title.removesuffix('.')}", *_fenced(text.strip("\n"))]
        parts.append(_changes(path))
    return "\n\n".join(parts) + "\n"


def _fenced(text: str) -> Iterator[str]:
    """The paragraphs of a docstring; those that are indented become fenced blocks."""
    for paragraph in re.split(r"\n\s*\n", text):
        if not paragraph.startswith("    "):
            yield paragraph
            continue
        lines = [line.removeprefix("    ") for line in paragraph.splitlines()]
        language = "" if lines[0].startswith("python ") else "text"
        yield "\n".join([f"```{language}", *lines, "```"])


def _changes(path: pathlib.Path) -> str:
    """A table of the fields that a recipe changes."""
    config = load_recipe(str(path))
    defaults = flatten(default_config(config.task).to_dict())
    rows = [
        f"| `{field}` | {as_code(value)} | {as_code(defaults[field])} |"
        for field, value in flatten(config.to_dict()).items()
        if value != defaults[field]
    ]
    return "\n".join(["| field | value | default |", "|---|---|---|", *rows])


def main() -> bool:
    print(page(own_recipes()), end="")
    return True


if __name__ == "__main__":
    command_line.run(main)
