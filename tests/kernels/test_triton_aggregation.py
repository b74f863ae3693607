"""The kernels for GPUs, interpreted, agree with XLA's convolutions in float64."""

import dataclasses
import functools
import pathlib

import aggregation_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from aggregation_cases import differences, draw_inputs, in_float64
from mutated import mutated_module
from one_by_one import one_by_one

from focalnet_jax.kernels import triton_aggregation
from focalnet_jax.ops.gelu import gelu_and_derivative, gelu_and_derivative_without_erf

ACTIVATIONS = {
    "float64": functools.partial(gelu_and_derivative, exact=True),
    "float32": gelu_and_derivative_without_erf,
    "bfloat16": functools.partial(gelu_and_derivative, exact=False),
}
# Of the largest value.
BOUNDS = {
    # Sums of some hundred products, whose roundings are 1e-16 of a term.
    "float64": 1e-13,
    # The roundings are 6e-8 of a term, and the GELU's error is 1e-7.
    "float32": 1e-6,
    # Results are rounded to bfloat16, and so is each level: by up to 2^-9 of a value.
    "bfloat16": 4 * 2**-9,
}


@dataclasses.dataclass(frozen=True)
class Case(aggregation_cases.Case):
    """Attributes: `programs` for the gradient of a depthwise kernel. `rows` is unused."""

    rows: int = 0
    dtype: str = "float64"
    programs: int = 1024


# The last tiles of rows, columns and channels are not full; some sizes are even. The
# columns of the second kernel are shared by two programs, one of which has one too many.
# So are the images.
EVERYTHING = Case(
    height=8,
    width=9,
    images=3,
    channels=66,
    sizes=((3, 2), (4, 5)),
    programs=8,
)


def in_numpy(x):
    """The GELU and its derivative, exactly."""
    x = np.asarray(x)
    share, density = scipy.special.ndtr(x), np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    return x * share, share + x * density


def by_kernels(
    case: Case, inputs: dict, kernels=triton_aggregation, activate=None
) -> dict:
    """What the kernels of a module compute, interpreted."""
    activate = activate or ACTIVATIONS[case.dtype]

    def compute(context, gates, kernels_of_levels, cotangent):
        arrays = context, gates, kernels_of_levels
        options = dict(activate=activate, interpret=True)
        total, mean, saved = kernels.forward(*arrays, save=True, **options)
        of_context, of_gates, of_kernels = kernels.backward(
            *arrays, saved, mean, cotangent, **options
        )
        return dict(
            total=total,
            mean=mean,
            saved=saved,
            of_context=of_context,
            of_gates=of_gates,
            of_kernels=of_kernels,
        )

    inputs = jax.tree.map(lambda a: jnp.asarray(a, case.dtype), inputs)
    arrays = (inputs[name] for name in ("context", "gates", "kernels", "cotangent"))
    programs, kernels.PROGRAMS = kernels.PROGRAMS, case.programs
    try:
        results = jax.jit(compute)(*arrays)
    finally:
        kernels.PROGRAMS = programs
    return jax.tree.map(lambda a: np.asarray(a, np.float64), results)


def check(case):
    inputs = draw_inputs(case)
    worst = differences(by_kernels(case, inputs), in_float64(case, inputs))
    assert np.max([*worst.values()]) < BOUNDS[case.dtype], worst


def draw_cases(count: int) -> list[Case]:
    """Random shapes, levels, windows and dtypes."""
    rng = np.random.default_rng(0)
    return [
        Case(
            *map(int, rng.integers(1, 20, size=2)),
            images=int(rng.integers(1, 6)),
            channels=int(rng.choice([1, 3, 16, 24, 64, 70, 96])),
            sizes=tuple(
                (int(height), int(width))
                for height, width in rng.integers(1, 10, size=(rng.integers(1, 6), 2))
            ),
            dtype=str(rng.choice(["float64", "float32", "bfloat16"])),
            programs=int(rng.choice([1, 8, 1024])),
        )
        for _ in range(count)
    ]


CASES = [
    EVERYTHING,
    Case(2, 17, images=2, channels=3, sizes=((3, 3), (3, 5)), dtype="bfloat16"),
    Case(1, 6, images=1, channels=16, sizes=((1, 13),), dtype="float32"),
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64(case):
    check(case)


@pytest.mark.extended
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", draw_cases(40), ids=str)
def test_agrees_with_float64_for_any_shape(case):
    check(case)


@pytest.mark.extended
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("window", [3, 5, 7, 9, 11, 13, 32])
def test_windows(window, dtype):
    check(Case(15, 14, images=2, channels=4, sizes=((window, window),), dtype=dtype))


@pytest.fixture(scope="module")
def everything():
    """The inputs of a case, and what they make in float64."""
    with jax.enable_x64(True):
        inputs = draw_inputs(EVERYTHING)
        return inputs, in_float64(EVERYTHING, inputs)


@pytest.mark.usefixtures("float64")
def test_nothing_is_read_or_written_beyond_an_array(everything):
    inputs, expected = everything
    with one_by_one(triton_aggregation):
        given = by_kernels(EVERYTHING, inputs, activate=in_numpy)
    worst = differences(given, expected)
    assert np.max([*worst.values()]) < BOUNDS["float64"], worst


# What a slip of the hand would make of the kernels: a piece of their source, and another
# one. The default run tries the first four.
MISTAKES = {
    "a tap off by one": (
        "values = _load(x, place.shifted(row - up, column - left))",
        "values = _load(x, place.shifted(row - up, column - left + 1))",
    ),
    "a kernel gradient off by one": (
        "right = group * columns + column - left",
        "right = group * columns + column - left + 1",
    ),
    "results that are written beyond the map": (
        "pltriton.store(view, values.astype(ref.dtype), mask=mask)",
        "pltriton.store(view, values.astype(ref.dtype))",
    ),
    "channels beyond the last one": (
        "pairs = zip(indices, shape, strict=True)",
        "pairs = zip(indices[:3], shape[:3], strict=True)",
    ),
    "a border that is not zeroed": (
        "pltriton.load(ref.at[indices], mask=mask, other=0)",
        "pltriton.load(ref.at[indices], other=0)",
    ),
    "a gate of the next level": (
        "total += _widen(context) * _gate(gates, level)",
        "total += _widen(context) * _gate(gates, level + 1)",
    ),
    "a global level with the gate of another one": (
        "total += activate(mean)[0] * _gate(gates, -1)",
        "total += activate(mean)[0] * _gate(gates, -2)",
    ),
    "a global level without the GELU": (
        "total += activate(mean)[0] * _gate(gates, -1)",
        "total += mean * _gate(gates, -1)",
    ),
    "a kernel that is not flipped in the gradient": (
        "jnp.flip(kernel, (0, 1)),",
        "kernel,",
    ),
    "a gradient that reaches as far as the kernel of even size": (
        "reach=(height - 1 - up, width - 1 - left),",
        "reach=(up, left),",
    ),
    "a gradient without the slope of the GELU": (
        "return ((toward + given * gate) * activate(before)[1],)",
        "return (toward + given * gate,)",
    ),
    "a gradient past the gate": (
        "return ((toward + given * gate) * activate(before)[1],)",
        "return ((toward + given) * activate(before)[1],)",
    ),
    "a gradient with the gate of another level": (
        "others = cotangent, gates[..., level - 1, None], saved[level - 1]",
        "others = cotangent, gates[..., level, None], saved[level - 1]",
    ),
    "the last level with the gate of the global one": (
        "toward = given * _gate(gates, -2) +",
        "toward = given * _gate(gates, -1) +",
    ),
    "a last level without the slope of its GELU": (
        "toward = (toward * activate(_widen(saved[-1]))[1])",
        "toward = (toward)",
    ),
    "a mean without a cotangent": (
        " + of_mean / math.prod(context.shape[1:3])",
        "",
    ),
    "a cotangent of the mean with another gate": (
        "of_mean = (given * _gate(gates, -1))",
        "of_mean = (given * _gate(gates, 0))",
    ),
    "a cotangent of the mean without a slope": (
        ".sum((1, 2), keepdims=True) * slope",
        ".sum((1, 2), keepdims=True)",
    ),
    "a kernel gradient from the map of the next level": (
        "_correlate(sources[level], toward",
        "_correlate(sources[level - 1], toward",
    ),
    "kernel gradients of a part of the images": (
        "return sums.sum(0).astype(kernel.dtype)",
        "return sums[0].astype(kernel.dtype)",
    ),
    "a rest of the images that is left out": (
        "images=pl.cdiv(images, parts),",
        "images=images // parts,",
    ),
    "a rest of the columns of a kernel that is left out": (
        "columns=pl.cdiv(kernel_width, groups),",
        "columns=kernel_width // groups,",
    ),
    "the first images for all parts": (
        "            part * images + image,\n",
        "            image,\n",
    ),
    "rows of the map that are left out": (
        "tiles = images * row_blocks * column_blocks",
        "tiles = images * column_blocks",
    ),
    "saved maps after the GELU": (
        "return (value, before) if save else (value,)",
        "return (value, value) if save else (value,)",
    ),
}
SOURCES = {
    "kernels": pathlib.Path(triton_aggregation.__file__).read_text(encoding="utf-8")
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_fit_the_source(mistake):
    assert SOURCES["kernels"].count(MISTAKES[mistake][0]) == 1


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "mistake",
    [
        pytest.param(name, marks=[] if index < 4 else pytest.mark.extended)
        for index, name in enumerate(MISTAKES)
    ],
)
def test_a_mistake_is_noticed(mistake, everything):
    inputs, expected = everything
    [kernels] = mutated_module(SOURCES, *MISTAKES[mistake]).values()
    try:
        with one_by_one(kernels):
            given = by_kernels(EVERYTHING, inputs, kernels, in_numpy)
    except AssertionError:  # A program left its arrays.
        return
    worst = differences(given, expected)
    assert np.max([*worst.values()]) > 1000 * BOUNDS["float64"], worst
