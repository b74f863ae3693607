"""An HTML page that shows how two nets compare."""

import html
import pathlib

import numpy as np

from focalnet_jax.pages import Figure, page, svg
from focalnet_jax.parity.compare import Verdict
from focalnet_jax.paths import write_whole


def write_report(
    path: pathlib.Path, verdict: Verdict, *, title: str, setting: str
) -> None:
    """Writes an HTML page with the verdict, a plot of the errors over depth and a table.

    Args:
      path: where the page is written.
      verdict: the verdict to show.
      title: the title of the page.
      setting: a line about how the errors were measured.
    """
    rows = "\n".join(
        f"<tr><td>{html.escape(d.name)}</td><td>{d.max_error:.2e}</td>"
        f"<td>{d.mean_error:.2e}</td><td>{d.relative_error:.1e}</td>"
        f"<td>{d.cosine:.9f}</td></tr>"
        for d in verdict.differences
    )
    word = "PASS" if verdict.passes else "FAIL"
    body = f"""<p class="{word}"><strong>{html.escape(str(verdict))}</strong></p>
<p>{html.escape(setting)}. The relative error of a layer is the greatest |JAX - PyTorch|
over the greatest |PyTorch|.</p>
{picture(verdict)}
<table><tr><th>layer<th>max error<th>mean error<th>relative<th>cosine</tr>
{rows}
</table>"""
    write_whole(path, page(title, body))


def picture(verdict: Verdict) -> str:
    """Plots the relative error of each layer over depth, as an SVG element."""
    names = [d.name for d in verdict.differences]
    # A logarithmic axis has no place for zero, so an error of zero is drawn at its lower
    # end. It has none for infinity either.
    errors = [d.relative_error for d in verdict.differences]
    drawn = [e for e in [*errors, verdict.tolerance] if 0 < e < np.inf] or [1e-7]
    lowest = min(drawn) / 3
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    axes.semilogy([max(error, lowest) for error in errors], marker=".", color="#1f5fa8")
    above = [(i, e) for i, e in enumerate(errors) if not e <= verdict.tolerance]
    if above:
        axes.plot(*zip(*above), "o", color="#b00020")
    axes.axhline(
        max(verdict.tolerance, lowest), color="#b00020", linestyle="--", linewidth=1
    )
    axes.annotate(
        "tolerance",
        (0, max(verdict.tolerance, lowest)),
        xytext=(0, 3),
        textcoords="offset points",
        color="#b00020",
    )
    axes.set_ylim(top=4 * max(drawn))
    step = max(1, len(names) // 30)
    ticks = sorted({*range(0, len(names), step), len(names) - 1})
    axes.set_xticks(ticks, [names[i] for i in ticks], rotation=90, fontsize=7)
    axes.set_ylabel("max error / greatest value")
    axes.grid(axis="y", alpha=0.3)
    return svg(figure)
