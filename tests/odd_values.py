"""Odd values of a field or an option, made from the description of what it takes."""

import decimal
import fractions
import functools
import math

import jax.numpy as jnp
import numpy as np

from focalnet_jax.values import Either, Flag, Number, Pair, Several, Text, Values, Whole

# What a recipe may hold by mistake, whatever the field is.
OBJECTS = [
    *(0, 1, -1, 2, 7, 10**6, 10**30, -(10**30), 10**400, 2**31, 2**32, 2**53 + 1),
    *(0.0, -0.0, 0.5, 1.0, 3.5, -0.5, 1e-300, 1e30, 1e300, math.inf, -math.inf, math.nan),
    *(None, True, False),
    *("", " ", "x", "1", "1e3", "None", "True", "a\nb", "a\0b", "é", "\udcff", "(1, 2)"),
    *("[", "x" * 10_000, "a{99999999999}", "(" * 3000),
    *((), (1,), (1, 2), (1, 2, 3), (2, 1), (1.5, 2.5), ("a", "b"), ("a", "a"), ("[",)),
    *(((),), ((1, 2), (3, 4)), (None,), (True, False), (math.nan,) * 3, (math.inf,) * 2),
    *((("head", 10.0),), (("head", math.nan),), (("head",),), (("head", "x"),)),
    *((("head", 1.0), ("head", 2.0)), (("head", 10**400),), tuple(range(2000))),
    *([], [1, 2], [1.0, 2.0, 3.0], ["a"], [["head", 2]], {1, 2}, {"a": 1}, range(2)),
    *(len, int, object(), b"x", 1j, fractions.Fraction(1, 2), decimal.Decimal(1)),
    *(np.float32(0.5), np.float64("nan"), np.int64(3), np.uint8(1), np.bool_(True)),
    *(np.array(3), np.array([1, 2]), np.array(["a"]), np.ones((2, 2)), np.str_("x")),
    *(jnp.array(1), jnp.array(0.5), jnp.array([1, 1]), jnp.ones((2, 2))),
]

# What a command line may hold by mistake.
TEXTS = [
    *("", " ", "0", "1", "-1", "+1", "007", "1e3", "1_000", "0x10", "1.5", "1.0", "-0"),
    *("1e30", "1e400", "-1e400", "1e-400", "inf", "-inf", "nan", "infinity", "9" * 5000),
    *(
        "None",
        "none",
        "true",
        "False",
        "yes",
        "abc",
        "é",
        "\uff11\uff12",
        "a b",
        "a\nb",
        "a\0b",
    ),
    *("1,2", "(1,2)", "[1,2]", "(1,", "1,", "()", "(,)", "'a'", '"a"', "('a','b')"),
    *("((1,2),(3,4))", "{'a':1}", "{1,2}", "lambda: 0", "__import__('os')", "1+1"),
    *("(" * 3000, "(" * 90 + ")" * 90, "a,b", "*", "[", "a{99999999999}", "(?i)a"),
    *("(('head',10.0),)", "('head',10.0)", "(('head',inf),)", "(('head',1e999),)"),
    *("99999999999999999999", "4294967295", "4294967296", "2147483648", "x" * 10_000),
]


@functools.singledispatch
def edges(values: Values) -> list:
    """Values at the edges of what is allowed, on both sides."""
    return []


@edges.register
def _(values: Whole):
    inside = [values.least, values.most, values.least + 1, *values.besides]
    outside = [values.least - 1, values.most + 1, values.least + 0.5, str(values.least)]
    return [*inside, *outside, float(values.least), np.int64(values.most)]


@edges.register
def _(values: Number):
    ends = [float(values.least), float(values.most)]
    beside = [math.nextafter(end, to) for end in ends for to in (-math.inf, math.inf)]
    return [*ends, *beside, sum(ends) / 2, np.float32(values.most), str(values.least)]


@edges.register
def _(values: Text):
    choices = [*(values.choices or ())]
    return [*choices, *(c.upper() for c in choices), *(c[:-1] for c in choices)]


@edges.register
def _(values: Several):
    part = example(values.of)
    lengths = {0, 1, values.least - 1, values.least, values.most, values.most + 1}
    right = [(part,) * length for length in sorted(lengths) if length >= 0]
    count = max(values.least, 1)
    wrong = [(*(part,) * (count - 1), edge) for edge in edges(values.of)]
    return [*right, *map(list, right), *wrong]


@edges.register
def _(values: Pair):
    first, second = example(values.first), example(values.second)
    return [
        *((first, edge) for edge in edges(values.second)),
        *((edge, second) for edge in ("", None, 1, "[")),
        [first, second],
        (first, second, second),
    ]


@edges.register
def _(values: Either):
    return [edge for one in values.of for edge in edges(one)]


def example(values: Values):
    """One value that is allowed."""
    if isinstance(values, Pair):
        return example(values.first), example(values.second)
    if isinstance(values, Several):
        return (example(values.of),) * max(values.least, 1)
    tried = [*edges(values), "x", 1, 0.5, True]
    return next(value for value in tried if values.allows(value))


def objects_for(values: Values) -> list:
    """Values of all kinds that Python has."""
    booleans = [True, False] if isinstance(values, Flag) else []
    return [*booleans, *edges(values), *OBJECTS]


def texts_for(values: Values) -> list[str]:
    """What may be typed for them."""
    return [*(str(edge) for edge in edges(values)), *TEXTS]
