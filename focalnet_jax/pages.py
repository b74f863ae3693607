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
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto;
       padding: 0 1em; color: #222; background: #fff }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .15em .8em; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
svg { width: 100%; height: auto }
summary { cursor: pointer; margin: 1em 0 }
.PASS { color: #0a6b2d } .FAIL { color: #b00020 }
"""


def page(title: str, body: str) -> str:
    """Makes a whole HTML page of `body`, which is HTML; `title` is plain text."""
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>{_STYLE}</style>
<h1>{html.escape(title)}</h1>
{body}
</html>
"""


def svg(figure: Figure) -> str:
    """Draws a figure as an SVG element for an HTML page."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def colour_table(name: str) -> str:
    """256 colours from that of the lowest to that of the highest number.

    Args:
      name: of one of matplotlib's colour maps.

    Returns:
      Three bytes for each colour, red, green and blue, as base64.
    """
    table = colormaps[name](np.linspace(0, 1, 256), bytes=True)[:, :3]
    return base64.b64encode(table.tobytes()).decode()
