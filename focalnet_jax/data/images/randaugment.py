"""RandAugment as timm has it: Cubuk et al., arXiv 1909.13719, with timm's variations.

A policy is spelt as in timm, `rand-m9-mstd0.5-inc1` in the recipe. Drawing and doing are
apart: `RandAugment.draw` says which operations an image gets and by how much, and
`apply_operations` does them, by `exact` or `fast`.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from focalnet_jax.errors import SetupError

_FULL_LEVEL = 10.0  # of a magnitude, whatever the policy's own

_NUMBER = r"\d+(?:\.\d+)?"
_PART = (
    rf"m(?P<m>{_NUMBER})|mstd(?P<mstd>{_NUMBER}|inf)|mmax(?P<mmax>{_NUMBER})"
    r"|inc(?P<inc>[01])|n(?P<n>[1-9]\d*)|p(?P<p>0?\.\d+|[01](?:\.0*)?)"
)


class Operation(NamedTuple):
    """One operation on an image.

    Attributes:
      name: as in timm.
      argument: how much of it, in the unit of `exact`; None where it has none.
      interpolation: of a geometric operation, else None.
    """

    name: str
    argument: Any = None
    interpolation: str | None = None


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """A policy: each image gets `layers` operations, each with some probability.

    Attributes:
      magnitude: mean of the magnitude, of which 10 is the full one.
      magnitude_std: its standard deviation; infinite: uniform from 0 to `magnitude`.
      greatest_magnitude: draws are clipped to 0 and this.
      increasing: whether every operation does more at a greater magnitude.
      layers: operations drawn for an image, with replacement.
      probability: of doing an operation that was drawn.
    """

    magnitude: float = 10
    magnitude_std: float = 0.0
    greatest_magnitude: float = _FULL_LEVEL
    increasing: bool = False
    layers: int = 2
    probability: float = 0.5

    @classmethod
    def parse(cls, policy: str) -> "RandAugment":
        """Reads `rand-m9-mstd0.5-inc1` and the like.

        Raises:
          SetupError: a part that is not one of m, mstd, mmax, inc, n and p with a number,
            or is given twice. timm's sets of operations (`t`) are not here.
        """
        kind, *parts = policy.split("-")
        matches = [re.fullmatch(_PART, part) for part in parts]
        if kind == "rand" and all(matches):
            given = {match.lastgroup: float(match[match.lastgroup]) for match in matches}
            if len(given) == len(parts):  # none twice
                return cls._from_values(**given)
        raise SetupError(
            f"data.rand_augment={policy!r} is no policy such as 'rand-m9-mstd0.5-inc1': "
            "'rand', then any of m (magnitude), mstd (its standard deviation), mmax (its "
            "limit), inc (0 or 1), n (operations an image), p (probability of each)"
        )

    @classmethod
    def _from_values(cls, m=_FULL_LEVEL, mstd=0.0, mmax=_FULL_LEVEL, inc=0, n=2, p=0.5):
        return cls(
            magnitude=m,
            # As in timm: there is no infinity to spell there.
            magnitude_std=float("inf") if mstd > 100 else mstd,
            greatest_magnitude=mmax,
            increasing=bool(inc),
            layers=int(n),
            probability=p,
        )

    def draw(
        self, rng: np.random.Generator, interpolations: Sequence[str]
    ) -> list[Operation]:
        """Draws what to do to an image; geometry takes one of `interpolations`."""
        names = INCREASING_OPERATIONS if self.increasing else OPERATIONS
        drawn = [names[i] for i in rng.integers(len(names), size=self.layers)]
        operations = []
        for name in drawn:
            if rng.random() >= self.probability:
                continue
            kind = _KINDS[name]
            argument = interpolation = None
            if kind.argument:
                argument = kind.argument(self._draw_magnitude(rng) / _FULL_LEVEL, rng)
            if kind.is_geometric:
                interpolation = interpolations[rng.integers(len(interpolations))]
            operations.append(Operation(name, argument, interpolation))
        return operations

    def _draw_magnitude(self, rng: np.random.Generator) -> float:
        magnitude = self.magnitude
        if self.magnitude_std == float("inf"):
            magnitude = rng.uniform(0, magnitude)
        elif self.magnitude_std > 0:
            magnitude = rng.normal(magnitude, self.magnitude_std)
        return min(max(magnitude, 0.0), self.greatest_magnitude)


def apply_operations(
    image: Any, operations: Sequence[Operation], images: ModuleType, *, fill
) -> Any:
    """Does the operations one after the other.

    Args:
      image: of the type that `images` works on.
      operations: from `RandAugment.draw`.
      images: `exact` or `fast`.
      fill: RGB levels where geometry leaves the image.
    """
    for name, argument, interpolation in operations:
        kind = _KINDS[name]
        arguments, options = [], {}
        if kind.levels:
            arguments = [_level_table(name, argument)]
        elif kind.matrix:
            arguments = [kind.matrix(argument, *images.size_of(image))]
        elif kind.argument:
            arguments = [argument]
        if kind.is_geometric:
            options = {"fill": fill, "interpolation": interpolation}
        image = getattr(images, kind.function)(image, *arguments, **options)
    return image


@functools.cache
def _level_table(name: str, argument: int | None) -> tuple[int, ...]:
    return tuple(map(_KINDS[name].levels(argument), range(256)))


class _Kind(NamedTuple):
    """What a name stands for.

    Attributes:
      function: of the images' modules.
      argument: from the magnitude, as a share of the full one, to the argument.
      is_geometric: takes `fill` and `interpolation`.
      matrix: for affine maps, from the argument and the image's width and height to what
        `exact.affine` takes.
      levels: for operations on levels, from the argument to a function of a level.
    """

    function: str
    argument: Callable[[float, np.random.Generator], Any] | None = None
    is_geometric: bool = False
    matrix: Callable[[float, int, int], tuple[float, ...]] | None = None
    levels: Callable[[Any], Callable[[int], int]] | None = None


def _either_sign(value: float, rng: np.random.Generator) -> float:
    return -value if rng.random() > 0.5 else value


def _geometric(function: str, greatest: float, matrix=None) -> _Kind:
    return _Kind(
        function,
        lambda share, rng: _either_sign(share * greatest, rng),
        is_geometric=True,
        matrix=matrix,
    )


def _enhancing(function: str) -> _Kind:
    """From a tenth of the property to almost twice as much; 5 leaves it as it is."""
    return _Kind(function, lambda share, rng: share * 1.8 + 0.1)


def _enhancing_increasing(function: str) -> _Kind:
    """Less or more of the property; 0 leaves it as it is."""
    return _Kind(
        function, lambda share, rng: max(0.1, 1.0 + _either_sign(share * 0.9, rng))
    )


def _by_level(argument: Callable[[float], int], levels) -> _Kind:
    return _Kind("map_levels", lambda share, rng: argument(share), levels=levels)


def _posterized(bits: int) -> Callable[[int], int]:
    """Keeps the highest bits of a level."""
    mask = ~(2 ** (8 - bits) - 1) & 255
    return lambda level: level & mask


def _solarized(threshold: int) -> Callable[[int], int]:
    """Inverts levels from a threshold on."""
    return lambda level: level if level < threshold else 255 - level


def _solarized_by_adding(addend: int) -> Callable[[int], int]:
    """Brightens the darker half."""
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
    # By a share of the width or the height.
    "TranslateXRel": _geometric("affine", 0.45, lambda x, w, h: (1, 0, x * w, 0, 1, 0)),
    "TranslateYRel": _geometric("affine", 0.45, lambda y, w, h: (1, 0, 0, 0, 1, y * h)),
}
# All that come in two variants are in one of the sets each.
OPERATIONS = tuple(name for name in _KINDS if not name.endswith("Increasing"))
INCREASING_OPERATIONS = tuple(
    name for name in _KINDS if name + "Increasing" not in _KINDS
)
