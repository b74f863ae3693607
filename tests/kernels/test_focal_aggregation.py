"""The kernels, interpreted, agree with XLA's convolutions in float64."""

import dataclasses
import pathlib

import numpy as np
import pytest
from aggregation_cases import (
    EVERYTHING,
    Case,
    by_kernels,
    differences,
    draw_inputs,
    in_float64,
)
from mutated import mutated_module

from focalnet_jax.kernels import bands, focal_aggregation

# Sums of some hundred products in float32, whose roundings are 6e-8 of a term.
EXACT = 1e-6
# Results are rounded to bfloat16, and so are the maps that the backward pass begins with:
# each time by up to 2^-9 of a value. Errors of several levels add up.
ROUNDED = 4 * 2**-9


def draw_cases(count: int) -> list[Case]:
    """Random shapes, levels, windows and dtypes."""
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(count):
        height, width = rng.integers(1, 12, size=2)
        levels = rng.integers(1, 6)
        sizes = tuple(tuple(1 + 2 * rng.integers(0, 4, size=2)) for _ in range(levels))
        cuts = [bands.Bands(height, width, sizes, rows) for rows in range(1, height + 1)]
        allowed = [cut.rows for cut in cuts if cut.rows >= cut.whole_halo]
        cases.append(
            Case(
                *map(int, (height, width)),
                images=int(rng.integers(1, 18)),
                channels=int(rng.choice([1, 3, 96, 128, 130, 192])),
                sizes=tuple((int(h), int(w)) for h, w in sizes),
                rows=int(rng.choice(allowed)),
                dtype=str(rng.choice(["float32", "bfloat16"])),
            )
        )
    return cases


CASES = [
    EVERYTHING,
    Case(4, 17, images=2, channels=3, sizes=((3, 3), (3, 5)), rows=4, dtype="bfloat16"),
    Case(1, 6, images=1, channels=2, sizes=((1, 13),), rows=1),
]


def check(case):
    inputs = draw_inputs(case)
    given, expected = by_kernels(case, inputs), in_float64(case, inputs)
    bound = EXACT if case.dtype == "float32" else ROUNDED
    worst = differences(given, expected)
    assert np.max([*worst.values()]) < bound, worst


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64(case):
    check(case)


@pytest.mark.extended
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", draw_cases(60), ids=str)
def test_agrees_with_float64_for_any_shape(case):
    check(case)


@pytest.mark.extended
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("window", [9, 13, 31])
def test_large_windows(window):
    check(Case(16, 15, images=1, channels=4, sizes=((window, window),), rows=16))


# What a slip of the hand would make of the kernels: a piece of their source, and another
# one. The default run tries the first four.
MISTAKES = {
    "a tap off by one, on the way there": (
        "top, left = program.at(y - height // 2, x - width // 2)",
        "top, left = program.at(y - height // 2, x - width // 2 + 1)",
    ),
    "a border that is not zeroed": (
        "lambda row, _: zero_row(row, sides), None)",
        "lambda row, _: zero_row(row, sides[1:]), None)",
    ),
    "gates of the wrong levels": (
        "gated = value * _gate(gates[at], level)",
        "gated = value * _gate(gates[at], level + 1)",
    ),
    "a kernel gradient off by one": (
        "column = program.at(y + row - height // 2, x - width // 2)",
        "column = program.at(y + row - height // 2, x - width // 2 + 1)",
    ),
    "a level without its halo": (
        "    program.for_halo_tiles(program.bands.halo(*beyond), tile)\n",
        "",
    ),
    "a mean over padding": (
        "mean = sums.sum(0, keepdims=True) / (height * width)",
        "mean = sums.sum(0, keepdims=True) / (height * (width + 2))",
    ),
    "a mean of the first band alone": (
        "mean = sums.sum(0, keepdims=True) /",
        "mean = sums[:1] /",
    ),
    "levels that are not added up": (
        "gated += running_total[at]",
        "gated += 0",
    ),
    "a kernel that is not flipped in the gradient": (
        "weight = kernel[height - 1 - row, width - 1 - tap]",
        "weight = kernel[row, tap]",
    ),
    "a kernel whose axes are swapped": (
        "weight = kernel[row, tap]",
        "weight = kernel[tap, row]",
    ),
    "buffers that are not exchanged": (
        "        source, target = target, source\n    level_sum[0, 0]",
        "    level_sum[0, 0]",
    ),
    "a global level with the gate of another one": (
        "value += global_context * _gate(gates[at], levels)",
        "value += global_context * _gate(gates[at], levels - 1)",
    ),
    "a global level that is added twice": (
        "            if bands.count == 1:\n",
        "            if True:\n",
    ),
    "a cotangent of the global level with another gate": (
        "total += given(*at) * gate(*at, levels)",
        "total += given(*at) * gate(*at, 0)",
    ),
    "a sum over the gate of another level": (
        "sums = [all_sums[None, None, ..., -1]]",
        "sums = [all_sums[None, None, ..., 0]]",
    ),
    "a GELU without its slope in the last level": (
        "source[program.at(*at)] = toward * slope",
        "source[program.at(*at)] = toward",
    ),
    "a mean without a cotangent": (
        "toward = given(*at) * gate(*at, levels - 1) + mean_cotangent",
        "toward = given(*at) * gate(*at, levels - 1)",
    ),
    "a gradient past the gate": (
        "value += given(*at) * gate(*at, level - 1)",
        "value += given(*at)",
    ),
    "a gradient with the gate of another level": (
        "value += given(*at) * gate(*at, level - 1)",
        "value += given(*at) * gate(*at, level)",
    ),
    "gate gradients that start anew for each block of channels": (
        "jnp.where(program.channel_block == 0, 0, total)",
        "jnp.zeros_like(total)",
    ),
    "gate gradients with the channels beyond the last one": (
        "product = _within(product, channels, axis=1, block=program.channel_block)",
        "pass",
    ),
    "kernel gradients with the images beyond the last one": (
        "total = _within(total, images, axis=0, block=program.image_block)",
        "pass",
    ),
    "a halo below the last band, and none below the first": (
        "@pl.when(self.is_in_map(rows))",
        "@pl.when(self.start > 0)",
    ),
    "a halo that is too small by a row": (
        "        return reach if self.count > 1 else 0",
        "        return max(reach - 1, 0) if self.count > 1 else 0",
    ),
    "a block at the edge that is not moved inward": (
        "return y + self.start - self.bands.first_row(self.start, halo)",
        "return y + halo",
    ),
    "rows beyond the map in the last band": (
        "self.is_in_map(y), lambda: run(y, x, width, carry), lambda: carry",
        "True, lambda: run(y, x, width, carry), lambda: carry",
    ),
}


SOURCES = {
    name: pathlib.Path(module.__file__).read_text(encoding="utf-8")
    for name, module in (("kernels", focal_aggregation), ("bands", bands))
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_fit_the_source(mistake):
    old, _ = MISTAKES[mistake]
    assert sum(source.count(old) for source in SOURCES.values()) == 1


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "mistake",
    [
        pytest.param(name, marks=[] if index < 4 else pytest.mark.extended)
        for index, name in enumerate(MISTAKES)
    ],
)
def test_a_mistake_is_noticed(mistake):
    """In a map whose images and channels have a rest, and bands, too, or in one band."""
    inputs = draw_inputs(EVERYTHING)
    expected = in_float64(EVERYTHING, inputs)
    for case in (EVERYTHING, dataclasses.replace(EVERYTHING, rows=EVERYTHING.height)):
        given = by_kernels(case, inputs, **mutated_module(SOURCES, *MISTAKES[mistake]))
        worst = differences(given, expected)
        # A result may also be NaN, of what lies beyond an array.
        if not np.max([*worst.values()]) < 100 * EXACT:
            return
    pytest.fail(f"nothing differs: {worst}")
