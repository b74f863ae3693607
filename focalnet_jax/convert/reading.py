"""All that may be said of how weights are read, and what may differ from the model."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from focalnet_jax.errors import SetupError, argument, shown
from focalnet_jax.image_size import ImageSize, parse_image_size
from focalnet_jax.values import SEED, Flag, NotAllowed, Several, Text

HEADS = ("reset", "in22k_to_in1k")


@dataclasses.dataclass(frozen=True)
class _Name(Text):
    """A name in a file, or a pattern of names; they may have any letters, or none."""

    def _convert(self, value: Any) -> str:
        if not isinstance(value, str):
            raise self._refuse()
        return str(value)


def _is_given(value: str) -> str | None:
    return None if value else "is empty: leave it out to take all names"


# What the attributes of `Changes` and `Reading` take. The variants know their own names,
# and `image_size` is read by `parse_image_size`.
_VALUES = {
    "head": Text(HEADS),
    "resize_kernels": Flag(),
    "add_levels": Flag(),
    "allow_nan": Flag(),
    "seed": SEED,
    "name": Text(),
    "wrapper": _Name(noun="name"),
    "prefix": _Name(noun="name", check=_is_given),
    "ignore": Several(_Name(noun="pattern"), most=10**6),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Changes:
    """What may differ between the weights and the model. The default allows nothing.

    Another number of channels needs no permission: a model with other `in_channels` than
    3 gets the stem of RGB weights adapted, and a note says how.

    Attributes:
      head: `"reset"` makes what stands after the encoder anew: the head of a classifier,
        for any number of classes, the norms of a backbone, the decoder and the mask token
        of a masked model, or the norms and heads of a segmenter. A segmenter made of
        another one keeps all but the last layer of its heads. `"in22k_to_in1k"` keeps the
        first 1,000 of the 21,842 rows of the released ImageNet-22K heads, which are the
        classes of ImageNet-1K.
      resize_kernels: zero-pad or crop depthwise kernels around their centre, as the
        official recipes for dense prediction do; those of causal nets at their start.
      add_levels: keep the focal levels of the weights and add those that the model has
        beyond them. The gates of added levels are zero, and their kernels are those of
        a new model. The result of the model changes nevertheless, because the global
        level averages the last level, and because a normalised modulator is divided by
        the number of levels.
      allow_nan: allow NaN and infinity.
      seed: the seed of all new parameters.
    """

    head: str | None = None
    resize_kernels: bool = False
    add_levels: bool = False
    allow_nan: bool = False
    seed: int = 0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in _VALUES or (value is None and field.default is None):
                continue
            try:
                value = _VALUES[field.name].convert(value)
            except NotAllowed as problem:
                raise SetupError(
                    f"{argument(field.name)}={shown(value)} {problem}"
                ) from problem
            object.__setattr__(self, field.name, value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading(Changes):
    """All that may be said of how weights are read, into a model that is found for them.

    `load_model` and the command lines take these, so that each of them takes what an
    error names. Attributes, beside those of `Changes`:
      name: the name of the variant. None takes the recorded one or the nearest one.
      image_size: size in pixels of the images that the model is for: a number for
        squares, or height and width. None takes the recorded or the usual one.
      wrapper: the entry of a file that holds the weights.
      prefix: take only the names that begin so.
      ignore: shell-style patterns of names to leave out.
    """

    name: str | None = None
    image_size: ImageSize | None = None
    wrapper: str | None = None
    prefix: str | None = None
    ignore: Sequence[str] = ()

    def __post_init__(self):
        super().__post_init__()
        if self.image_size is None:
            return
        try:
            size = parse_image_size(self.image_size)
        except ValueError as error:
            raise SetupError(
                f"{argument('image_size')}={shown(self.image_size)} {error}"
            ) from error
        object.__setattr__(self, "image_size", size)
