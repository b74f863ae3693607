"""A page on which one points at an image and sees gates and modulator of that place.

It is a single file and needs no network. The numbers in it are rounded to bytes.
"""

import base64
import html
import importlib.resources
import io
import json
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image

from focalnet_jax.pages import SIGNED, UNSIGNED, Figure, colour_table, page
from focalnet_jax.visualize.figures import check_any
from focalnet_jax.visualize.inside import BlockMaps, Inside

_ENOUGH_PLACES = 7 * 7  # as in the last stage, of an image of 224 pixels

_BODY = """<style>{css}</style>
{predictions}
<main>
<section>
<div class="controls">
<label>block <select id="block"></select></label>
<label>shows <select id="overlay"></select></label>
<label>strength <input id="strength" type="range" min="0" max="100" value="65"></label>
</div>
<canvas id="look" tabindex="0" role="application" aria-label="The image"></canvas>
<p class="quiet">Point at a place, or use the arrow keys. A click holds the place, and
another one lets it go. <span id="scale"></span></p>
</section>
<section>
<p id="where"></p>
<h2>Gates</h2>
<div id="gates"></div>
<p class="quiet">Each level is a summary of the surroundings of a place: level 1 of the
nearest ones, each further level of wider ones, and the global level of the whole image.
The gate of a level is the number by which the net multiplies it at this place. A gate
below zero subtracts the level, and one near zero leaves it out.</p>
<h2>Modulator</h2>
<canvas id="values" role="img" aria-label="The channels"></canvas>
<p class="quiet">The modulator is made of the sum of the levels times their gates. There
is a line for each channel. Red is above zero, and blue below. All places of a block have
one scale, and each number is rounded to 1/127 of it.</p>
</section>
</main>
{figures}
<script type="application/json" id="data">{data}</script>
<script>{js}</script>
"""


def hover_page(
    inside: Inside,
    *,
    title: str,
    blocks: Sequence[BlockMaps],
    figures: Mapping[str, Figure],
) -> str:
    """Makes the page.

    Args:
      inside: from `look_inside`.
      title: of the page.
      blocks: those that can be chosen on it; each adds `h * w * c` bytes, and a third.
      figures: pictures that stand below, by what they show.

    Raises:
      SetupError: no blocks are given.
    """
    check_any(blocks, "blocks")
    image = io.BytesIO()
    PIL.Image.fromarray(inside.pixels).save(image, format="png")
    data = {
        "size": inside.pixels.shape[:2],
        "image": _address(image.getvalue()),
        "blocks": [_block(block, inside.strides[block.stage]) for block in blocks],
        "first": _first_shown(blocks),
        "colours": {"signed": colour_table(SIGNED), "unsigned": colour_table(UNSIGNED)},
    }
    shown = "\n".join(
        f'<figure><img src="{_address(png(figure))}" alt="{html.escape(name)}"></figure>'
        for name, figure in figures.items()
    )
    files = importlib.resources.files("focalnet_jax.visualize")
    return page(
        title,
        _BODY.format(
            css=files.joinpath("hover.css").read_text("utf-8"),
            js=files.joinpath("hover.js").read_text("utf-8"),
            predictions=_predictions(inside),
            figures=shown,
            data=json.dumps(data),
        ),
    )


def png(figure: Figure) -> bytes:
    """The PNG file of a figure."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()


def _predictions(inside: Inside) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(p.name)}<td>{p.probability:.2%}</tr>"
        for p in inside.predictions
    )
    return f"<table>{rows}</table>" if rows else ""


def _first_shown(blocks: Sequence[BlockMaps]) -> int:
    """The number of the block that the page begins with.

    It is the last one whose map has places enough to point at, or else the finest map.
    """
    sizes = [block.norm.size for block in blocks]
    enough = min(_ENOUGH_PLACES, max(sizes))
    return max(number for number, size in enumerate(sizes) if size >= enough)


def _block(block: BlockMaps, stride: tuple[int, int]) -> dict[str, object]:
    height, width, _ = block.gates.shape
    return {
        "name": block.name,
        "height": height,
        "width": width,
        "levels": block.level_names,
        "channels": block.modulator.shape[-1],
        "stride": stride,
        "gates": _rounded(block.gates),
        "modulator": _rounded(block.modulator),
    }


def _rounded(values: np.ndarray) -> dict[str, object]:
    """Numbers as signed bytes times a scale."""
    scale = max(float(np.abs(values).max()), 1e-30) / 127
    rounded = np.rint(values / scale).astype(np.int8)
    return {"scale": scale, "bytes": base64.b64encode(rounded.tobytes()).decode()}


def _address(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()
