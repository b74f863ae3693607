"""What was measured, beside what is published: a table, lines of JSON or of CSV."""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from focalnet_jax.csv_lines import with_names
from focalnet_jax.evaluate.data_sets import DATA_SETS
from focalnet_jax.evaluate.measure import Measured
from focalnet_jax.evaluate.published import Published
from focalnet_jax.image_size import ImageSize

_NOT_HERE = "not here"
_METRICS = ("top1", "top5")
_SOURCES = {
    "paper": "arXiv 2203.11926 and the official README",
    "timm": "the results of timm, whose evaluation keeps 0.9 of the shorter side",
}


class Result(NamedTuple):
    """A model on a data set.

    Attributes:
      weights: of the model, as they were given.
      variant: that the model is; None if it is none.
      image_size: of the images.
      data: the name of the data set.
      measured: None if the data set is not here.
      published: of the variant, on images of this size.
    """

    weights: str
    variant: str | None
    image_size: ImageSize | None
    data: str
    measured: Measured | None
    published: list[Published]


def text_table(results: Sequence[Result], *, metric: str) -> str:
    """A table with a row for each model and a column for each data set.

    Args:
      results: of models on the same data sets.
      metric: `"top1"` or `"top5"`.
    """
    names = list(dict.fromkeys(result.data for result in results))
    rows: dict[str, dict[str, str]] = {}
    for result in results:
        label = result.weights
        if result.variant and result.variant not in label:
            label = f"{label} ({result.variant})"
        rows.setdefault(label, {})[result.data] = _cell(result, metric)
    lines = [["", *(DATA_SETS[name].title for name in names)]]
    for label, cells in rows.items():  # A row that was cut short has fewer.
        lines.append([label, *(cells.get(name, "") for name in names)])
    widths = [max(map(len, column)) for column in zip(*lines)]
    title = f"top-{metric[-1]} in percent; in brackets what is published for 224 pixels"
    text = [title, ""]
    for first, *others in lines:
        cells = [other.rjust(width) for other, width in zip(others, widths[1:])]
        text.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join([*text, *_sources(results, metric)])


def _cell(result: Result, metric: str) -> str:
    """Such as `82.10 (82.1)`."""
    if result.measured is None:
        return _NOT_HERE
    cell = f"{100 * getattr(result.measured, metric):.2f}"
    shown = _shown(result, metric)
    return f"{cell} ({float(getattr(shown, metric)):.1f})" if shown else cell


def _shown(result: Result, metric: str) -> Published | None:
    """The first source that publishes a metric."""
    return next((p for p in result.published if getattr(p, metric)), None)


def _sources(results: Sequence[Result], metric: str) -> list[str]:
    """Says of which source the numbers in brackets are."""
    titles: dict[str, dict[str, None]] = {}
    for result in results:
        if result.measured and (shown := _shown(result, metric)):
            title = DATA_SETS[result.data].title
            titles.setdefault(shown.source, {})[title] = None
    lines = [
        f"published for {', '.join(names)}: {_SOURCES[source]}"
        for source, names in titles.items()
    ]
    return ["", *lines] if lines else []


# --- For programs ------------------------------------------------------------
#
# Each makes a function from a result to lines.


def as_json() -> Callable[[Result], list[str]]:
    return lambda result: [json.dumps(_entries(result))]


def as_csv() -> Callable[[Result], list[str]]:
    return with_names(_rows)


def _rows(result: Result) -> list[dict[str, Any]]:
    """A row for each published number, or one without such a number."""
    entries = _entries(result)
    published = entries.pop("published") or [{}]
    return [
        entries | {f"published_{name}": each.get(name) for name in Published._fields}
        for each in published
    ]


def _entries(result: Result) -> dict:
    """The entries of a result; accuracies are in percent."""
    measured = result.measured
    shares = {name: measured and 100 * getattr(measured, name) for name in _METRICS}
    counts = {name: getattr(measured, name, None) for name in ("images", "damaged")}
    published = [
        {
            "top1": float(each.top1),
            "top5": each.top5 and float(each.top5),
            "source": each.source,
        }
        for each in result.published
    ]
    return {
        "weights": result.weights,
        "variant": result.variant,
        "image_size": result.image_size,
        "data": result.data,
        "here": measured is not None,
        **shares,
        **counts,
        "published": published,
    }
