"""`summary.html`: a run's curves and last values, to be opened anywhere."""

import html
import json
from collections.abc import Sequence

import matplotlib.figure
from etils import epath

from focalnet_jax.pages import page, svg
from focalnet_jax.paths import write_whole

# By what a metric's name begins with; top-5 and weights are dashed.
_COLORS = {"train": "#1f5fa8", "test": "#c2571a", "test_ema": "#2e7d4f"}
# Title, and the metrics of a picture; those that a run doesn't have are left out.
_PICTURES = (
    ("loss", ("train/loss", "test/loss", "test_ema/loss")),
    ("accuracy", ("test/top1", "test_ema/top1", "test/top5")),
    ("learning rate", ("train/learning_rate",)),
    ("norms", ("train/gradient_norm", "train/weight_norm")),
    ("images a second", ("train/images_per_second",)),
    ("share of the time without input", ("train/input_wait",)),
    ("model FLOPs utilization", ("train/mfu",)),
)
_FROM_ZERO = [title for title, _ in _PICTURES[4:]]


def write_summary(workdir: epath.Path, *, title: str) -> None:
    """Makes a page of `metrics.jsonl` and the descriptions beside it."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    if not metrics:
        return
    last = {name: value for line in metrics for name, value in line.items()}
    rows = "\n".join(
        f"<tr><td>{html.escape(name)}</td><td>{_spelt(value)}</td></tr>"
        for name, value in last.items()
    )
    details = "\n".join(
        f"<details><summary>{name}</summary><pre>{html.escape(path.read_text())}</pre>"
        "</details>"
        for name in ("config.json", "versions.json", "model.json")
        if (path := workdir / name).exists()
    )
    body = f"""{svg(curves(metrics))}
<h2>Last values</h2>
<table>{rows}</table>
{details}"""
    write_whole(workdir / "summary.html", page(title, body))


def curves(metrics: Sequence[dict[str, float]]) -> matplotlib.figure.Figure:
    """A figure with a curve of each metric over the steps.

    Args:
      metrics: as the lines of `metrics.jsonl`, in order.
    """
    found = [
        (title, [name for name in names if any(name in line for line in metrics)])
        for title, names in _PICTURES
    ]
    found = [(title, names) for title, names in found if names]
    rows = -(-len(found) // 2)
    figure = matplotlib.figure.Figure(figsize=(10, 2.8 * rows), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(rows, 2, squeeze=False).flat, found):
        for name in names:
            points = [(line["step"], line[name]) for line in metrics if name in line]
            axes.plot(
                *zip(*points),
                color=_COLORS[name.partition("/")[0]],
                linestyle="--" if name.endswith(("top5", "weight_norm")) else "-",
                marker="." if len(points) < 30 else "",
                linewidth=1.2,
                label=name,
            )
        if title == "norms":
            axes.set_yscale("log")
        if title in _FROM_ZERO:
            axes.set_ylim(0, 1.1 * max(axes.get_ylim()[1], 0.01))
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=8, frameon=False)
    for axes in figure.axes[len(found) :]:
        axes.remove()
    figure.supxlabel("step", fontsize=9)
    return figure


def _spelt(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
