"""Draws `docs/focal_modulation.png`: what a block does with a map.

    python docs/draw_focal_modulation.py

The maps are computed from a small made-up scene. Averages stand for the depthwise kernels
that a net learns, and simple formulas stand for its gates and dense layers.
"""

import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle

SIZE = 25  # cells along a side of each map
CENTRE = SIZE // 2
KERNELS = (3, 5, 7)
TIMES = "\N{MULTIPLICATION SIGN}"
INK, QUIET = "#1f2933", "#52606d"
COLOURS = {
    "input": "bone",
    "query": "Blues",
    "context": "YlOrBr",
    "gates": "Purples",
    "modulator": "Greens",
}
PANELS = {"context": "#fdf3e1", "gates": "#f1eef8", "products": "#f4f4ee"}
TILE = 10.5
COLUMNS = (47, 63, 79, 95)
QUERY_Y, CONTEXT_Y, GATES_Y, PRODUCTS_Y, RIGHT_X = 67, 48, 29, 12, 114


def scene() -> np.ndarray:
    """A made-up map `[SIZE, SIZE]` from 0 to 1: a disc, a bar and dots."""
    y, x = np.mgrid[:SIZE, :SIZE]
    image = 0.1 + 0.1 * (x + y) / (2 * SIZE)
    image[np.hypot(y - 9, x - 10) < 6] = 0.75
    image[17:20, 4:22] = 0.5
    image[2:7:2, 18:24:2] = 1.0
    return image


def averaged(x: np.ndarray, window: int) -> np.ndarray:
    """The mean over a square window, which repeats the edges of the map."""
    padded = np.pad(x, window // 2, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (window, window))
    return windows.mean((-1, -2))


def maps() -> dict[str, list[np.ndarray]]:
    """The maps of the picture by role; context, gates and products are by level."""
    x = scene()
    context = [x]
    for window in KERNELS:
        context.append(averaged(context[-1], window))
    context.append(np.full_like(x, context[-1].mean()))
    detail = averaged(abs(x - context[2]), 3)
    sharp = detail / detail.max()
    gates = [sharp, (1 - sharp) * x, (1 - sharp) * (1 - x), 0.3 + 0.3 * (1 - x)]
    products = [level * gate for level, gate in zip(context[1:], gates)]
    total = sum(products)
    query = 0.35 + 0.65 * x
    return dict(
        input=[x],
        query=[query],
        context=context,
        gates=gates,
        products=products,
        total=[total],
        output=[query * (0.2 + total)],
    )


class Picture:
    """Draws in units of a canvas, with the origin at the lower left."""

    def __init__(self, width: float, height: float):
        figure = plt.figure(figsize=(width / 10, height / 10), dpi=150)
        self.axes = figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
        self.axes.axis("off")

    def tile(self, x, y, values, colours, label=None, *, seen=None):
        """A map around (x, y); `seen` cells around its centre are framed."""
        half = TILE / 2
        extent = (x - half, x + half, y - half, y + half)
        self.axes.imshow(values, cmap=colours, vmin=0, vmax=1.05, extent=extent, zorder=3)
        self._frame(x, y, TILE, INK, 1.2)
        if seen is not None:
            self._frame(x, y, TILE * seen / SIZE, "#d64545", 1.8)
            self.axes.plot(x, y, ".", color="#d64545", markersize=4, zorder=5)
        if label:
            self.text(x, y - half - 1.8, label)

    def _frame(self, x, y, side, colour, width):
        corner = (x - side / 2, y - side / 2)
        self.axes.add_patch(
            Rectangle(corner, side, side, fill=False, ec=colour, lw=width, zorder=4)
        )

    def text(self, x, y, text, *, size=10, colour=INK, **options):
        options = dict(ha="center", va="center") | options
        self.axes.text(x, y, text, fontsize=size, color=colour, zorder=6, **options)

    def box(self, x, y, width, height, text="", *, colour="#e4e7eb", edge=QUIET, z=2):
        corner = (x - width / 2, y - height / 2)
        self.axes.add_patch(
            FancyBboxPatch(
                corner,
                width,
                height,
                boxstyle="round,pad=0,rounding_size=1.2",
                fc=colour,
                ec=edge,
                lw=1,
                zorder=z,
            )
        )
        self.text(x, y, text)

    def sign(self, x, y, text):
        """An operation on whole maps."""
        self.axes.add_patch(Circle((x, y), 1.7, fc="white", ec=INK, lw=1.2, zorder=5))
        self.text(x, y - 0.05, text, size=13)

    def arrow(self, *points):
        """A line through points, with a head at the last one."""
        style = dict(color=QUIET, lw=1.5, zorder=2, solid_joinstyle="round")
        self.axes.plot(*zip(*points[:-1]), **style)
        self.axes.annotate(
            "",
            points[-1],
            points[-2],
            arrowprops=dict(arrowstyle="-|>", color=QUIET, lw=1.5, shrinkA=0, shrinkB=0),
            zorder=2,
        )


def draw() -> Picture:
    picture, drawn = Picture(145, 78), maps()
    half = TILE / 2

    middle = (COLUMNS[0] + COLUMNS[-1]) / 2
    wide = COLUMNS[-1] - COLUMNS[0] + TILE + 4
    rows = dict(context=CONTEXT_Y, gates=GATES_Y, products=PRODUCTS_Y)
    for role, y in rows.items():
        colour = PANELS[role]
        picture.box(middle, y - 0.9, wide, TILE + 5.6, colour=colour, edge=colour, z=1)

    # The input and its three projections.
    picture.tile(8, CONTEXT_Y, drawn["input"][0], COLOURS["input"], "input")
    picture.box(19.5, CONTEXT_Y, 4, 44, "f", colour="#dfe7ee")
    picture.text(19.5, CONTEXT_Y + 24, "dense", size=9, colour=QUIET)
    picture.arrow((8 + half, CONTEXT_Y), (17.5, CONTEXT_Y))
    picture.tile(30, QUERY_Y, drawn["query"][0], COLOURS["query"], "query")
    picture.tile(30, CONTEXT_Y, drawn["context"][0], COLOURS["context"], "context")
    picture.arrow((21.5, QUERY_Y), (30 - half, QUERY_Y))
    picture.arrow((21.5, CONTEXT_Y), (30 - half, CONTEXT_Y))
    picture.arrow((21.5, GATES_Y), (middle - wide / 2, GATES_Y))
    picture.text(31, GATES_Y + 1.8, "gates", size=10)

    # The levels, their gates and the products.
    note = "Red: what the\nposition in the\ncentre has seen"
    picture.text(30, 36.2, note, size=8.5, colour="#d64545")
    picture.text(middle, PRODUCTS_Y - half - 1.8, "gated context")
    seen = (3, 7, 13, SIZE)
    names = [f"level {level}" for level in (1, 2, 3)] + ["global level"]
    for index, x in enumerate(COLUMNS):
        picture.tile(
            x,
            CONTEXT_Y,
            drawn["context"][index + 1],
            COLOURS["context"],
            names[index],
            seen=seen[index],
        )
        step = "mean of the\nmap, GELU"
        if index < len(KERNELS):
            step = f"depthwise\n{KERNELS[index]} {TIMES} {KERNELS[index]}, GELU"
        start = COLUMNS[index - 1] if index else 30
        between = (start + half + x - half) / 2
        picture.text(between, CONTEXT_Y + half + 4.4, step, size=8.5, colour=QUIET)
        picture.arrow((start + half, CONTEXT_Y), (x - half, CONTEXT_Y))
        picture.tile(x, GATES_Y, drawn["gates"][index], COLOURS["gates"])
        picture.text(x, GATES_Y - half - 1.8, f"gate {index + 1}")
        picture.tile(x, PRODUCTS_Y, drawn["products"][index], COLOURS["modulator"])
        picture.sign(x, (CONTEXT_Y + GATES_Y) / 2 - 0.9, TIMES)
        picture.arrow((x, GATES_Y - half - 3.1), (x, PRODUCTS_Y + half))
        if index:
            picture.sign((COLUMNS[index - 1] + x) / 2, PRODUCTS_Y, "+")

    # The sum, the modulator and the product with the query.
    total = drawn["total"][0]
    picture.arrow((COLUMNS[-1] + half, PRODUCTS_Y), (RIGHT_X - half, PRODUCTS_Y))
    picture.tile(RIGHT_X, PRODUCTS_Y, total, COLOURS["modulator"], "sum")
    picture.arrow((RIGHT_X, PRODUCTS_Y + half), (RIGHT_X, GATES_Y - 2))
    picture.box(RIGHT_X, GATES_Y, 9, 4, "h", colour="#dfe7ee")
    picture.text(RIGHT_X + 5.5, GATES_Y, "dense", size=9, colour=QUIET, ha="left")
    picture.arrow((RIGHT_X, GATES_Y + 2), (RIGHT_X, CONTEXT_Y - half - 3.4))
    picture.tile(RIGHT_X, CONTEXT_Y, 0.2 + total, COLOURS["modulator"], "modulator")
    picture.arrow((RIGHT_X, CONTEXT_Y + half), (RIGHT_X, QUERY_Y - 1.7))
    picture.arrow((30 + half, QUERY_Y), (RIGHT_X - 1.7, QUERY_Y))
    picture.sign(RIGHT_X, QUERY_Y, TIMES)
    picture.arrow((RIGHT_X + 1.7, QUERY_Y), (RIGHT_X + 5.5, QUERY_Y))
    picture.box(RIGHT_X + 9, QUERY_Y, 7, 4, "proj", colour="#dfe7ee")
    picture.text(RIGHT_X + 9, QUERY_Y - 3.6, "dense", size=9, colour=QUIET)
    picture.arrow((RIGHT_X + 12.5, QUERY_Y), (RIGHT_X + 17, QUERY_Y))
    output = drawn["output"][0]
    picture.tile(RIGHT_X + 17 + half, QUERY_Y, output, COLOURS["query"], "output")
    return picture


if __name__ == "__main__":
    draw()
    plt.savefig(pathlib.Path(__file__).with_name("focal_modulation.png"), dpi=150)
