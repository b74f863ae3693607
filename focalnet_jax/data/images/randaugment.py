"""RandAugment, Cubuk et al., arXiv 1909.13719, with the variations that timm has.

A policy is spelt as in timm; that of the recipe is `rand-m9-mstd0.5-inc1`.
`RandAugment.draw` decides which operations an image gets, and how strong they are.
`apply_operations` then applies them, with the functions of `exact` or `fast`.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from focalnet_jax.errors import SetupError, argument, shown

_FULL_MAGNITUDE = 10.0  # the magnitude at which the range of every operation ends

_NUMBER = r"\d+(?:\.\d+)?"
_PART = (
    rf"m(?P<m>{_NUMBER})|mstd(?P<mstd>{_NUMBER}|inf)|mmax(?P<mmax>{_NUMBER})"
    r"|inc(?P<inc>[01])|n(?P<n>[1-9]\d*)|p(?P<p>0?\.\d+|[01](?:\.0*)?)"
)

# Beyond twice the full magnitude, operations have no meaning.
_LIMITS = {"m": 100, "mmax": 20, "n": 100}


class Operation(NamedTuple):
    """One operation on an image.

    Attributes:
      name: its name in timm.
      amount: the number that the operation takes, such as the degrees of a rotation, a
        factor of contrast, or the bits that are kept; None if it takes none.
      interpolation: the interpolation of a geometric operation; None for others.
    """

    name: str
    amount: Any = None
    interpolation: str | None = None


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """A policy: `layers` operations are drawn, and each is applied with a probability.

    Attributes:
      magnitude: the mean of the magnitudes; the range of every operation ends at 10.
      magnitude_std: their standard deviation. If it is infinite, they are uniform from 0
        to `magnitude`.
      greatest_magnitude: magnitudes are clipped to the range from 0 to this number.
      increasing: whether every operation becomes stronger with the magnitude.
      layers: the number of operations that are drawn for an image, with replacement.
      probability: the probability that an operation that was drawn is applied.
    """

    magnitude: float = 10
    magnitude_std: float = 0.0
    greatest_magnitude: float = _FULL_MAGNITUDE
    increasing: bool = False
    layers: int = 2
    probability: float = 0.5

    @classmethod
    def parse(cls, policy: str) -> "RandAugment":
        """Reads a policy such as `rand-m9-mstd0.5-inc1`.

        Raises:
          SetupError: a part is not one of m, mstd, mmax, inc, n and p with a number, or
            is given twice. timm's part `t`, sets of operations, is not supported.
        """
        kind, *parts = policy.split("-")
        matches = [match for part in parts if (match := re.fullmatch(_PART, part))]
        if kind == "rand" and len(matches) == len(parts):
            given = {name: float(m[name]) for m in matches if (name := m.lastgroup)}
            too_large = [k for k, most in _LIMITS.items() if given.get(k, 0) > most]
            if too_large:
                limits = ", ".join(f"{k} is {_LIMITS[k]} at most" for k in too_large)
                raise SetupError(f"{argument('policy')}={shown(policy)}: {limits}")
            if len(given) == len(parts):  # No part is given twice.
                return cls._from_values(**given)
        raise SetupError(
            f"{argument('policy')}={shown(policy)} is no policy such as "
            "'rand-m9-mstd0.5-inc1': 'rand', then any of m (magnitude), mstd (its "
            "standard deviation), mmax (its limit), inc (0 or 1), n (operations an "
            "image), p (probability of each)"
        )

    @classmethod
    def _from_values(
        cls, m=_FULL_MAGNITUDE, mstd=0.0, mmax=_FULL_MAGNITUDE, inc=0, n=2, p=0.5
    ):
        return cls(
            magnitude=m,
            # In timm, a number above 100 stands for infinity.
            magnitude_std=float("inf") if mstd > 100 else mstd,
            greatest_magnitude=mmax,
            increasing=bool(inc),
            layers=int(n),
            probability=p,
        )

    def draw(
        self, rng: np.random.Generator, interpolations: Sequence[str]
    ) -> list[Operation]:
        """Draws the operations for an image.

        Args:
          rng: the random generator.
          interpolations: the names from which each geometric operation draws one.
        """
        names = INCREASING_OPERATIONS if self.increasing else OPERATIONS
        drawn = [names[i] for i in rng.integers(len(names), size=self.layers)]
        operations = []
        for name in drawn:
            if rng.random() >= self.probability:
                continue
            kind = _KINDS[name]
            amount = interpolation = None
            if kind.amount:
                amount = kind.amount(self._draw_magnitude(rng) / _FULL_MAGNITUDE, rng)
            if kind.is_geometric:
                interpolation = interpolations[int(rng.integers(len(interpolations)))]
            operations.append(Operation(name, amount, interpolation))
        return operations

    def _draw_magnitude(self, rng: np.random.Generator) -> float:
        magnitude = self.magnitude
        if self.magnitude_std == float("inf"):
            magnitude = rng.uniform(0, magnitude)
        elif self.magnitude_std > 0:
            magnitude = rng.normal(magnitude, self.magnitude_std)
        return min(max(magnitude, 0.0), self.greatest_magnitude)


def apply_operations(
    image: Any,
    operations: Sequence[Operation],
    images: ModuleType,
    *,
    fill: tuple[int, int, int],
) -> Any:
    """Applies operations to an image, one after the other.

    Args:
      image: an image of the type that `images` works on.
      operations: the operations, from `RandAugment.draw`.
      images: the module `exact` or `fast`.
      fill: the RGB levels of pixels that a geometric operation takes from outside of the
        image.
    """
    for name, amount, interpolation in operations:
        kind = _KINDS[name]
        arguments, options = [], {}
        if kind.levels:
            arguments = [_level_table(kind.levels, amount)]
        elif kind.matrix:
            arguments = [kind.matrix(amount, *images.size_of(image))]
        elif kind.amount:
            arguments = [amount]
        if kind.is_geometric:
            options = {"fill": fill, "interpolation": interpolation}
        image = getattr(images, kind.function)(image, *arguments, **options)
    return image


@functools.cache
def _level_table(
    levels: Callable[[Any], Callable[[int], int]], amount: int | None
) -> tuple[int, ...]:
    """What each of the 256 levels becomes."""
    return tuple(map(levels(amount), range(256)))


class _Kind(NamedTuple):
    """How the operation of a name is drawn and applied.

    Attributes:
      function: the name of a function in `exact` and `fast`.
      amount: draws the amount, given the magnitude as a share of the full one, 10; None
        if the operation takes no amount.
      is_geometric: whether the function takes `fill` and `interpolation`.
      matrix: for affine maps, a function from the amount and the image's width and
        height to the matrix that `exact.affine` takes.
      levels: for operations on levels, a function from the amount to a function that
        maps an old level to a new one.
    """

    function: str
    amount: Callable[[float, np.random.Generator], Any] | None = None
    is_geometric: bool = False
    matrix: Callable[[float, int, int], tuple[float, ...]] | None = None
    levels: Callable[[Any], Callable[[int], int]] | None = None


def _either_sign(value: float, rng: np.random.Generator) -> float:
    """The value, or its negative with a probability of one half."""
    return -value if rng.random() > 0.5 else value


def _geometric(function: str, greatest: float, matrix=None) -> _Kind:
    """An operation whose amount is at most `greatest`, with either sign."""
    return _Kind(
        function,
        lambda share, rng: _either_sign(share * greatest, rng),
        is_geometric=True,
        matrix=matrix,
    )


def _enhancing(function: str) -> _Kind:
    """An operation by a factor from 0.1 to 1.9; magnitude 5 leaves the image as it is."""
    return _Kind(function, lambda share, rng: share * 1.8 + 0.1)


def _enhancing_increasing(function: str) -> _Kind:
    """An operation by a factor that moves away from 1 as the magnitude increases."""
    return _Kind(
        function, lambda share, rng: max(0.1, 1.0 + _either_sign(share * 0.9, rng))
    )


def _by_level(amount: Callable[[float], int], levels) -> _Kind:
    """An operation that maps each level to another one."""
    return _Kind("map_levels", lambda share, rng: amount(share), levels=levels)


def _posterized(bits: int) -> Callable[[int], int]:
    """Keeps the given number of highest bits of a level."""
    mask = ~(2 ** (8 - bits) - 1) & 255
    return lambda level: level & mask


def _solarized(threshold: int) -> Callable[[int], int]:
    """Inverts the levels from a threshold on."""
    return lambda level: level if level < threshold else 255 - level


def _solarized_by_adding(addend: int) -> Callable[[int], int]:
    """Adds a number to the levels of the darker half."""
    return lambda level: min(255, level + addend) if level < 128 else level


def _inverted(_) -> Callable[[int], int]:
    return lambda level: 255 - level


_KINDS = {
    "AutoContrast": _Kind("auto_contrast"),
    "Equalize": _Kind("equalize"),
    "Invert": _Kind("map_levels", levels=_inverted),
    "Rotate": _geometric("rotate", 30),  # degrees
    "Posterize": _by_level(lambda share: int(share * 4), _posterized),
    "PosterizeIncreasing": _by_level(lambda share: 4 - int(share * 4), _posterized),
    "Solarize": _by_level(lambda share: min(256, int(share * 256)), _solarized),
    "SolarizeIncreasing": _by_level(
        lambda share: 256 - min(256, int(share * 256)), _solarized
    ),
    "SolarizeAdd": _by_level(
        lambda share: min(128, int(share * 110)), _solarized_by_adding
    ),
    "Color": _enhancing("color"),
    "ColorIncreasing": _enhancing_increasing("color"),
    "Contrast": _enhancing("contrast"),
    "ContrastIncreasing": _enhancing_increasing("contrast"),
    "Brightness": _enhancing("brightness"),
    "BrightnessIncreasing": _enhancing_increasing("brightness"),
    "Sharpness": _enhancing("sharpness"),
    "SharpnessIncreasing": _enhancing_increasing("sharpness"),
    "ShearX": _geometric("affine", 0.3, lambda x, w, h: (1, x, 0, 0, 1, 0)),
    "ShearY": _geometric("affine", 0.3, lambda y, w, h: (1, 0, 0, y, 1, 0)),
    # The amount is a share of the width or the height.
    "TranslateXRel": _geometric("affine", 0.45, lambda x, w, h: (1, 0, x * w, 0, 1, 0)),
    "TranslateYRel": _geometric("affine", 0.45, lambda y, w, h: (1, 0, 0, 0, 1, y * h)),
}
# Each set has all operations that have one variant only. Of the others, each set has one
# variant: `INCREASING_OPERATIONS` has those that become stronger with the magnitude.
OPERATIONS = tuple(name for name in _KINDS if not name.endswith("Increasing"))
INCREASING_OPERATIONS = tuple(
    name for name in _KINDS if name + "Increasing" not in _KINDS
)
