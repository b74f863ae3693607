"""The page of documentation that lists all fields of a configuration.

python -m focalnet_jax.train.fields_page > docs/configuration.md
"""

from collections.abc import Iterator
from typing import Any

from focalnet_jax import command_line
from focalnet_jax.fields import Field, Fields
from focalnet_jax.tasks.registry import TASKS
from focalnet_jax.train.config import RUN_FIELDS

_HEAD = """\
# Configuration

The command `python -m focalnet_jax.train.fields_page > docs/configuration.md` makes this
page from the tables of fields in the code. To change the page, change a field and run the
command again.

A recipe is a Python file with a function `get_config`. It starts from
`default_config(task)`, which has all fields of this page, and changes some of them. The
command line changes fields after the recipe, here after one for ImageNet-1K:

```
python main.py --config=configs/base.py --config.batch_size=256 \\
    --config.model.depths="(2,2,6,2)" --noconfig.data.flip
```

The tables say which values each field takes. In an interval such as [0, 1), a round
bracket excludes the number beside it. Infinities and what is not a number are never
allowed. A value that a field does not take ends the program with one line, before
anything is read, compiled or written. Whole numbers may be written as `1000`, `1_000` or
`1e3`. If a field is given several times on the command line, the last value counts.

A field whose default is "unset" has no value until somebody gives it one.
`--config.FIELD=None` unsets it again. The docstring of `FocalNetEncoder` in
`focalnet_jax/models/encoder.py` explains the options of `create_model`.

A misspelt field is an error, and the message names the nearest field. A run that goes on
may change its fields, except for those that decide which examples a step sees. The tables
mark these fields with "fixed"."""


def page(run_fields: Fields, task_fields: dict[str, Fields]) -> str:
    """The page in Markdown.

    Args:
      run_fields: the fields that every run has.
      task_fields: the fields of each task, by the task's name.
    """
    parts = [_HEAD, *_section("Fields of every run", run_fields)]
    for task, fields in task_fields.items():
        parts += _section(f"Fields of the task `{task}`", fields)
    return "\n\n".join(parts) + "\n"


def _section(title: str, fields: Fields) -> Iterator[str]:
    """A heading, and a table for each group of fields."""
    yield f"## {title}"
    groups: dict[str, dict[str, Field]] = {}
    for name, field in fields.items():
        groups.setdefault(name.rpartition(".")[0], {})[name] = field
    for group, members in groups.items():
        yield f"### `{group}`" if group else "### Without a group"
        rows = [_row(name, field) for name, field in members.items()]
        head = ["| field | default | values | meaning |", "|---|---|---|---|"]
        yield "\n".join([*head, *rows])


def _row(name: str, field: Field) -> str:
    meaning = field.meaning + (" (fixed)" if field.decides_examples else "")
    cells = f"`{name}`", _default(field), str(field.takes), meaning
    # An upright stroke would begin another cell.
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _default(field: Field) -> str:
    return "unset" if field.may_be_unset else as_code(field.default)


def as_code(value: Any) -> str:
    """The value of a field in a cell of a table."""
    return "unset" if value is None else f"`{_short(value)}`"


def _short(value: Any) -> str:
    """A value as Python writes it, but fractions with four digits."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))}{',' if len(value) == 1 else ''})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> bool:
    print(page(RUN_FIELDS, {name: task.fields for name, task in TASKS.items()}), end="")
    return True


if __name__ == "__main__":
    command_line.run(main)
