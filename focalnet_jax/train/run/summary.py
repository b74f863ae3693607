"""`summary.html`: a run's curves and last values, to be opened anywhere."""

import base64
import html
import json
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from etils import epath

from focalnet_jax.pages import Figure, page, svg
from focalnet_jax.paths import write_whole
from focalnet_jax.tasks.base import Metric

METRICS = "metrics.jsonl"

# The colour of a curve, by what the metric's name begins with.
_COLORS = {"train": "#1f5fa8", "test": "#c2571a", "test_ema": "#2e7d4f"}


class Picture(NamedTuple):
    """A picture of some curves.

    Attributes:
      title: stands above it.
      metrics: groups of names; the first group's curves are solid, the others' dashed.
        Metrics that a run doesn't have are left out.
      from_zero: whether the vertical axis begins at 0.
      logarithmic: whether it is logarithmic.
    """

    title: str
    metrics: tuple[tuple[str, ...], ...]
    from_zero: bool = False
    logarithmic: bool = False


def pictures_of(metrics: Mapping[str, Metric], *, unit: str) -> tuple[Picture, ...]:
    """The pictures of a run: those of its task's metrics, then those of every run.

    Args:
      metrics: of the task.
      unit: what the task calls an example, in the plural.
    """
    # The loss of training has a picture, whether or not evaluation has a loss, too.
    titles = dict.fromkeys(["loss", *(metric.picture for metric in metrics.values())])
    of_task = []
    for title in titles:
        names = [name for name, metric in metrics.items() if metric.picture == title]
        if title == "loss" and "loss" not in names:
            names.insert(0, "loss")
        groups = [tuple(f"{split}/{name}" for split in _COLORS) for name in names]
        of_task.append(Picture(title, tuple(groups)))
    norms = (("train/gradient_norm",), ("train/weight_norm",))
    speed = (f"train/{unit}_per_second",)
    return (
        *of_task,
        Picture("learning rate", (("train/learning_rate",),)),
        Picture("norms", norms, logarithmic=True),
        Picture(f"{unit} a second", (speed,), from_zero=True),
        Picture(
            "share of the time without input", (("train/input_wait",),), from_zero=True
        ),
        Picture("model FLOPs utilization", (("train/mfu",),), from_zero=True),
    )


class Lines(NamedTuple):
    """The lines of `metrics.jsonl`.

    Attributes:
      good: those that hold a step and metrics.
      bad: the numbers, from 1 on, of those that don't. The last one is none of them if it
        has no end: that is how a crash leaves it.
    """

    good: list[str]
    bad: list[int]


def read_lines(path: epath.Path) -> Lines:
    """Reads `metrics.jsonl`, which may be missing or damaged."""
    lines = Lines([], [])
    if not path.exists():
        return lines
    *whole, last = path.read_bytes().split(b"\n")
    for number, line in enumerate([*whole, last], start=1):
        if _is_record(line):
            lines.good.append(line.decode("utf-8"))
        elif number <= len(whole):
            lines.bad.append(number)
    return lines


def _is_record(line: bytes) -> bool:
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return False
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return False
    # NaN is neither above nor below anything.
    return all(
        type(value) in (int, float) and abs(value) <= sys.float_info.max
        for value in record.values()
    )


def write_summary(
    workdir: epath.Path, *, title: str, pictures: Sequence[Picture]
) -> None:
    """Makes a page of `metrics.jsonl` and the descriptions beside it."""
    metrics = [json.loads(line) for line in read_lines(workdir / METRICS).good]
    if not metrics:  # The run was told to end before its first line.
        return
    last = {name: value for line in metrics for name, value in line.items()}
    rows = "\n".join(
        f"<tr><td>{html.escape(name)}</td><td>{_spelt(value)}</td></tr>"
        for name, value in last.items()
    )
    shown = "\n".join(
        f'<h2>{_title(path)}</h2>\n<img alt="{_title(path)}" style="max-width: 100%" '
        f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        for path in sorted(workdir.glob("test*_*.png"))
    )
    tables = [path.name for path in sorted(workdir.glob("test*_*.txt"))]
    details = "\n".join(
        f"<details><summary>{name}</summary>"
        f"<pre>{html.escape(path.read_bytes().decode('utf-8', 'replace'))}</pre>"
        "</details>"
        for name in (*tables, "config.json", "versions.json", "model.json")
        if (path := workdir / name).exists()
    )
    body = f"""{curves(metrics, pictures)}
<h2>Last values</h2>
<table>{rows}</table>
{shown}
{details}"""
    write_whole(workdir / "summary.html", page(title, body))


def curves(
    metrics: Sequence[Mapping[str, float]],
    pictures: Sequence[Picture],
    *,
    mark: int | None = None,
) -> str:
    """HTML of a figure for each picture, side by side where the page is wide enough.

    Args:
      metrics: as the lines of `metrics.jsonl`, in order.
      pictures: what belongs together.
      mark: a step that gets a dotted line.
    """
    figures = draw_curves(metrics, pictures)
    if mark is not None:
        for figure in figures:
            figure.axes[0].axvline(mark, color="#888888", linestyle=":", linewidth=1.2)
    return f'<div class="curves">{"".join(map(svg, figures))}</div>'


def draw_curves(
    metrics: Sequence[Mapping[str, float]], pictures: Sequence[Picture]
) -> list[Figure]:
    """A figure for each picture, with a curve of each of its metrics over the steps.

    Args:
      metrics: as the lines of `metrics.jsonl`, in order.
      pictures: those of which nothing is known are left out.
    """
    known = {name for line in metrics for name in line}
    figures = []
    for picture in pictures:
        if known & {name for group in picture.metrics for name in group}:
            figure = Figure(figsize=(5, 2.8), layout="constrained")
            _draw(figure.subplots(), picture, metrics)
            figures.append(figure)
    return figures


def _draw(axes, picture: Picture, metrics: Sequence[Mapping[str, float]]) -> None:
    for index, group in enumerate(picture.metrics):
        for name in group:
            points = [(line["step"], line[name]) for line in metrics if name in line]
            if points:
                axes.plot(
                    *zip(*points),
                    color=_COLORS[name.partition("/")[0]],
                    linestyle="--" if index else "-",
                    marker="." if len(points) < 30 else "",
                    linewidth=1.2,
                    label=name,
                )
    if picture.logarithmic:
        axes.set_yscale("log")
    if picture.from_zero:
        axes.set_ylim(0, 1.1 * max(axes.get_ylim()[1], 0.01))
    axes.set_title(picture.title, fontsize=10, loc="left")
    axes.set_xlabel("step", fontsize=8)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, frameon=False)


def _title(path: epath.Path) -> str:
    """The name of a file as words."""
    return html.escape(path.stem.replace("_", " "))


def _spelt(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
