"""The kernels, interpreted, agree with XLA's convolutions in float64."""

import pathlib
import types

import numpy as np
import pytest

from focalnet_jax.kernels import focal_aggregation
from tests.kernels.aggregation_cases import (
    EVERYTHING,
    Case,
    by_kernels,
    differences,
    draw_inputs,
    in_float64,
)

# Sums of some hundred products in float32, whose roundings are 6e-8 of a term.
EXACT = 2e-6
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
        bands = [
            focal_aggregation.Bands(height, width, sizes, rows)
            for rows in range(1, height + 1)
        ]
        allowed = [b.rows for b in bands if b.rows >= b.whole_halo]
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
    assert max(worst.values()) < bound, worst


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


# What a slip of the hand would have made of the kernels. The first few are tried in each
# run of the tests.
MISTAKES = {
    "a tap off by one": (
        "y - height // 2, x - width // 2)\n\n    def add",
        "y - height // 2, x)\n\n    def add",
    ),
}


def mutated(old: str, new: str):
    """The module of the kernels with a piece of its source replaced."""
    source = pathlib.Path(focal_aggregation.__file__).read_text()
    assert source.count(old) == 1, "the source has changed; this mistake needs a new form"
    module = types.ModuleType("mutated_focal_aggregation")
    exec(source.replace(old, new), module.__dict__)
    return module
