"""HTML pages. Each is a single file and needs no network to be looked at."""

import base64
import html
import io
import logging

# Where there is no home directory that it could write to, it does without, and says so.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

import numpy as np  # noqa: E402
from matplotlib import colormaps  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

__all__ = ["SIGNED", "UNSIGNED", "Figure", "colour_table", "page", "svg"]

# The colours of maps with a sign, and of those without one.
SIGNED, UNSIGNED = "RdBu_r", "magma"

_STYLE = """
:root { color-scheme: light dark; --text: #222; --page: #fff; --line: #ddd }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto;
       padding: 0 1em; color: var(--text); background: var(--page) }
/* A table that is wider than the page is scrolled, and not the page. */
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block;
        max-width: max-content; overflow-x: auto; margin: 0 0 1em }
th, td { padding: .15em .8em; text-align: right; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child { text-align: left }
svg { width: 100%; height: auto }
pre { overflow-x: auto; padding: .6em .8em; border: 1px solid var(--line) }
summary { cursor: pointer; margin: 1em 0 }
.texts td { text-align: left }
.PASS { color: #0a6b2d } .FAIL { color: #b00020 }
.bars { width: 12em } .bar { display: block; height: .7em; background: #2e7d4f }
.curves { display: grid; gap: 1em;
          grid-template-columns: repeat(auto-fit, minmax(min(24em, 100%), 1fr)) }
.pictures { display: grid; gap: 1em;
            grid-template-columns: repeat(auto-fill, minmax(10em, 1fr)) }
.pictures figure { margin: 0; overflow-wrap: anywhere }
.pictures img { width: 100%; aspect-ratio: 1; object-fit: contain;
                background: var(--line) }
@media (max-width: 40em) {
  body { margin: 1em auto }
  table { font-size: .9em }
  th, td { padding: .15em .35em }
  pre { white-space: pre-wrap; overflow-wrap: anywhere }
  .bars { display: none }
}
@media (prefers-color-scheme: dark) {
  :root { --text: #ddd; --page: #16181b; --line: #3a3e44 }
  a { color: #8ab4f8 }
  .PASS { color: #5fcf86 } .FAIL { color: #ff7b89 } .bar { background: #4fa873 }
  /* What is drawn in dark colours becomes light, and keeps its hues. */
  svg.figure { filter: invert(1) hue-rotate(180deg) }
}
"""


def page(title: str, body: str) -> str:
    """Makes a whole HTML page of `body`, which is HTML; `title` is plain text."""
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>
<style>{_STYLE}</style>
<h1>{html.escape(title)}</h1>
{body}
</html>
"""


def svg(figure: Figure) -> str:
    """Draws a figure as an SVG element for an HTML page, through which the page shows."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True)
    text = stream.getvalue()
    return text[text.index("<svg") :].replace("<svg ", '<svg class="figure" ', 1)


def colour_table(name: str) -> str:
    """256 colours from that of the lowest to that of the highest number.

    Args:
      name: of one of matplotlib's colour maps.

    Returns:
      Three bytes for each colour, red, green and blue, as base64.
    """
    table = colormaps[name](np.linspace(0, 1, 256), bytes=True)[:, :3]
    return base64.b64encode(table.tobytes()).decode()
