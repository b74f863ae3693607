"""Kernels of positions, interpreted, agree with plain JAX in float64."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mutated import mutated_module
from positionwise_cases import (
    FUNCTIONS,
    Case,
    by_kernels,
    differences,
    draw_inputs,
    in_float64,
)

from focalnet_jax.kernels import layers, positionwise

# Sums of some hundred products in float32, whose roundings are 6e-8 of a term.
EXACT = 2e-6
# Weights, maps and cotangents are rounded to bfloat16 on the way, and so are the operands
# of products: each time by up to 2^-9 of a value.
ROUNDED = 8 * 2**-9

# Tiles that fit, and tiles that reach beyond positions and images.
SHAPES = [
    dict(),
    dict(positions=4, images=16, tile=(2, 8), cores=2),
    dict(positions=5, images=3, channels=130, tile=(5, 8), dtype="bfloat16"),
]
CASES = [Case(function, **shape) for function in FUNCTIONS for shape in SHAPES]


def check(case):
    inputs = draw_inputs(case)
    worst = differences(by_kernels(case, inputs), in_float64(case, inputs))
    bound = EXACT if case.dtype == "float32" else ROUNDED
    assert np.max([*worst.values()]) < bound, worst


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64(case):
    check(case)


def draw_cases(count: int) -> list[Case]:
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(count):
        tile, steps, cores = (int(rng.integers(1, most)) for most in (8, 4, 3))
        positions = tile * steps * cores
        if cores == 1:  # Several cores have as many tiles each.
            positions -= int(rng.integers(tile))
        cases.append(
            Case(
                str(rng.choice([*FUNCTIONS])),
                positions=positions,
                images=int(rng.integers(1, 20)),
                # With fewer, norms cancel so much that float32 has few digits left.
                channels=int(rng.choice([5, 96, 128, 130])),
                tile=(tile, int(rng.choice([8, 16]))),
                cores=cores,
                dtype=str(rng.choice(["float32", "bfloat16"])),
            )
        )
    return cases


@pytest.mark.extended
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", draw_cases(60), ids=str)
def test_agrees_with_float64_for_any_shape(case):
    check(case)


# --- Tiles -------------------------------------------------------------------


def tiles_for(positions, images, channels, hidden, *, vmem=128 << 20, **options):
    """Those of an MLP in bfloat16."""
    maps = jax.ShapeDtypeStruct((positions, images, channels), jnp.bfloat16)
    weights = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        for shape in ((channels, hidden), (hidden, channels))
    ]

    def mlp(arguments, keep):
        [x], _, (fc1, fc2) = arguments
        return [keep(x @ fc1.astype(x.dtype)) @ fc2.astype(x.dtype)]

    arguments = positionwise.Arguments([maps], [], weights)
    return positionwise.choose_tiles(mlp, arguments, vmem=vmem, **options)


def test_tiles_divide_what_they_can():
    tiles = tiles_for(196, 64, 512, 2048)
    assert (196 % tiles.positions, tiles.images) == (0, 64)
    assert tiles.grid == (1, 1, 196 // tiles.positions)
    # So many images are cut, but not so that many of them are empty.
    tiles = tiles_for(196, 100, 512, 2048)
    assert tiles.grid[1] * tiles.images < 110
    assert tiles_for(7, 3, 96, 384).images == positionwise.SUBLANES


def test_cores_share_tiles_if_they_can():
    assert tiles_for(196, 64, 512, 2048, cores=2).grid[:2] == (2, 1)
    assert tiles_for(1, 64, 512, 2048, cores=2).grid == (1, 1, 1)


def test_weights_that_do_not_fit_have_no_tiles():
    assert tiles_for(49, 64, 1024, 4096, backward=True) is not None
    assert tiles_for(49, 64, 1024, 4096, backward=True, vmem=32 << 20) is None
    assert tiles_for(49, 64, 1024, 4096, vmem=32 << 20) is not None


# --- Mistakes ----------------------------------------------------------------

# What a slip of the hand would make of kernels and layers, and what it is noticed by. The
# default run tries the first three.
MISTAKES = {
    "gradients that start anew for each tile": (
        "@pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))",
        "@pl.when(pl.program_id(2) == 0)",
        Case("projection"),
    ),
    "positions beyond the last one": (
        "return start + jax.lax.broadcasted_iota(jnp.int32, shape, axis) < size",
        "return start + jax.lax.broadcasted_iota(jnp.int32, shape, axis) < 2 * size",
        Case("projection"),
    ),
    "a core that begins where the other one does": (
        "lambda core, i, p: (core * steps + p, i, 0),",
        "lambda core, i, p: (p, i, 0),",
        Case("projection", positions=4, images=8, tile=(2, 8), cores=2),
    ),
    "factors of the first images for all": (
        "lambda core, i, p: (i, 0))]",
        "lambda core, i, p: (0, 0))]",
        Case("prenorm_branches"),
    ),
    "gradients of one core": (
        "return of_maps, [w.sum(0) for w in of_weights]",
        "return of_maps, [w[0] for w in of_weights]",
        Case("projection", positions=4, images=8, tile=(2, 8), cores=2),
    ),
    "gradients of the last tile": (
        "ref[0] += value",
        "ref[0] = value",
        Case("projection"),
    ),
    "no gradient through what is kept": (
        "lambda _, cotangent: (cotangent, None)",
        "lambda _, cotangent: (0 * cotangent, None)",
        Case("prenorm_branches"),
    ),
    "a bias that is left out": (
        "return _product(x, kernel, False) + bias",
        "return _product(x, kernel, False)",
        Case("modulated"),
    ),
    "a matrix that is not transposed in the gradient": (
        "back = _ROWS_BY_MATRIX if is_transposed else _ROWS_BY_TRANSPOSE",
        "back = _ROWS_BY_MATRIX",
        Case("modulated"),
    ),
    "parts in another order": (
        "itertools.pairwise(ends)]",
        "itertools.pairwise(ends)][::-1]",
        Case("projection", channels=3),
    ),
    "a variance about 0": (
        "jnp.square(x).mean(-1, keepdims=True) + epsilon",
        "jnp.square(x + 1).mean(-1, keepdims=True) + epsilon",
        Case("biased_norm"),
    ),
    "a norm whose gradient forgets the mean": (
        "of_x = of_normalized - of_normalized.mean(-1, keepdims=True) - ",
        "of_x = of_normalized - ",
        Case("biased_norm"),
    ),
    "a norm whose gradient forgets the deviation": (
        "- normalized * along",
        "- 0 * along",
        Case("biased_norm"),
    ),
    "a norm whose gradient forgets the scale": (
        "of_normalized = cotangent * scale",
        "of_normalized = cotangent",
        Case("biased_norm"),
    ),
    "an epsilon of another size": (
        "epsilon: float = 1e-5",
        "epsilon: float = 1e-1",
        Case("biased_norm"),
    ),
    "a GELU without its slope": (
        "(slope * cotangent,)",
        "(cotangent,)",
        Case("prenorm_branches"),
    ),
    "scales that are left out": (
        "y = y * scale\n",
        "pass\n",
        Case("postnorm_branches"),
    ),
    "factors of the wrong images": (
        "keep = jnp.broadcast_to(keep, of_images.shape)",
        "keep = jnp.broadcast_to(keep[::-1], of_images.shape)",
        Case("prenorm_branches"),
    ),
}
SOURCES = {
    name: pathlib.Path(module.__file__).read_text(encoding="utf-8")
    for name, module in (("kernels", positionwise), ("layers", layers))
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_fit_the_source(mistake):
    old, *_ = MISTAKES[mistake]
    assert sum(source.count(old) for source in SOURCES.values()) == 1


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "mistake",
    [
        pytest.param(name, marks=[] if index < 3 else pytest.mark.extended)
        for index, name in enumerate(MISTAKES)
    ],
)
def test_a_mistake_is_noticed(mistake):
    old, new, case = MISTAKES[mistake]
    inputs = draw_inputs(case)
    expected = in_float64(case, inputs)
    try:
        given = by_kernels(case, inputs, **mutated_module(SOURCES, old, new))
    except TypeError:  # Shapes that don't fit are noticed, too.
        return
    # A result may also be NaN, of what lies beyond an array.
    worst = differences(given, expected)
    assert not np.max([*worst.values()]) < 100 * EXACT, worst
