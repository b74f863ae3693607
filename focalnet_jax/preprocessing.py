"""How an image is prepared for a model, outside of a training run.

The numbers need numpy alone. PIL is loaded when the first image is prepared.
"""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from focalnet_jax.errors import SetupError, shown
from focalnet_jax.image_size import ImageSize, ImageSizes
from focalnet_jax.values import Flag, NotAllowed, Number, Several, Text

if TYPE_CHECKING:
    import PIL.Image

    from focalnet_jax.data.images.transforms import EvalTransform

# Mean and standard deviation of ImageNet's red, green and blue, for pixels in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming")

# A smaller crop would have images resized to more pixels than memory holds.
CROP = Number(0.1, 1)
# Others' pixels may be in [0, 65,535]. These leave float32 numbers far from infinity.
MEAN, STD = Number(-1e6, 1e6), Number(1e-6, 1e6)
# What each number may be, wherever it comes from: a file, a trainer or a caller.
VALUES = {
    "image_size": ImageSizes(),
    "mean": Several(MEAN, least=1, most=2**16, noun="list"),
    "std": Several(STD, least=1, most=2**16, noun="list"),
    "interpolation": Text(INTERPOLATIONS),
    "crop": CROP,
    "squash": Flag(),
    "floor_offsets": Flag(),
}

# Older files lack these, and so do files in which they are False.
NEWER = frozenset({"squash", "floor_offsets"})


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The evaluation transform and the normalisation that a model was trained for.

    Attributes:
      image_size: of the prepared image in pixels: a number for a square, or height and
        width. A pair of equal numbers becomes one number.
      mean: mean of the pixels in [0, 1], by channel.
      std: standard deviation of the pixels in [0, 1], by channel.
      interpolation: `"bicubic"`, `"bilinear"`, `"nearest"`, or PIL's `"lanczos"`, `"box"`
        or `"hamming"`.
      crop: share of the resized image that is kept, as in `EvalTransform`.
      squash: resizes both sides alike, so that the aspect ratio is lost.
      floor_offsets: rounds the place of the crop down, as transformers does.

    Raises:
      ValueError: a value is not allowed; the message names it.
    """

    image_size: ImageSize = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    crop: float = 0.875
    squash: bool = False
    floor_offsets: bool = False

    def __post_init__(self):
        for name, values in VALUES.items():
            given = getattr(self, name)
            try:
                object.__setattr__(self, name, values.convert(given))
            except NotAllowed as problem:
                raise ValueError(f"{name}={shown(given)} {problem}") from problem
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean={shown(self.mean)} and std={shown(self.std)} differ in their "
                "number of channels"
            )

    def __call__(
        self, image: "str | os.PathLike | bytes | PIL.Image.Image | np.ndarray"
    ) -> np.ndarray:
        """Prepares one image.

        Args:
          image: the path of an image file, the bytes of one, a PIL image, or a
            `uint8 [height, width, 3]` array.

        Returns:
          `float32 [height, width, channels]`, where mean and std say the number of
          channels: 3, or 1 for shades of grey.

        Raises:
          BadRecordError: the bytes are no whole image.
          SetupError: mean and std are for another number of channels.
          ValueError: an array is not of uint8 pixels of an image.
        """
        import PIL.Image

        channels = len(self.mean)
        if channels not in (1, 3):
            raise SetupError(
                f"the model takes {channels} channels, and image files have 1 or 3: make "
                f"arrays [height, width, {channels}] and pass them to "
                "preprocessing.normalize"
            )
        if hasattr(image, "__array__") and not isinstance(image, PIL.Image.Image):
            image = PIL.Image.fromarray(_checked_pixels(np.asarray(image)))
        if isinstance(image, (str, os.PathLike)):
            image = pathlib.Path(image).read_bytes()
        pixels = self.transform()(image)
        if channels == 1:
            pixels = np.asarray(PIL.Image.fromarray(pixels).convert("L"))[..., None]
        return self.normalize(pixels)

    def transform(self) -> "EvalTransform":
        """What makes the pixels of an image, before they are normalised."""
        from focalnet_jax.data.images.transforms import EvalTransform

        return EvalTransform(
            self.image_size,
            crop=self.crop,
            interpolation=self.interpolation,
            squash=self.squash,
            floor_offsets=self.floor_offsets,
        )

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """Makes `uint8 [..., channels]` float32: `(pixels / 255 - mean) / std`."""
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return (np.asarray(pixels, np.float32) / np.float32(255) - mean) / std

    def with_channels(self, channels: int) -> "Preprocessing":
        """The same for another number of channels than that of mean and std.

        A single channel gets the average of their numbers, and several repeat them.
        """

        def adapted(values):
            if channels == 1:
                return (sum(values) / len(values),)
            return tuple(itertools.islice(itertools.cycle(values), channels))

        if channels == len(self.mean):
            return self
        return dataclasses.replace(self, mean=adapted(self.mean), std=adapted(self.std))

    def to_json(self) -> dict[str, Any]:
        """The numbers by name, for a JSON file; a default that is newer is left out."""
        content = dataclasses.asdict(self)
        return {k: v for k, v in content.items() if k not in NEWER or v}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Preprocessing":
        """Makes a `Preprocessing` of what `to_json` gave.

        Args:
          content: may have other entries, which are ignored.

        Raises:
          KeyError: an entry is missing.
          TypeError: `content` is no mapping, or mean or std is no list.
          ValueError: a value is not allowed.
        """
        values = {
            field.name: content[field.name]
            for field in dataclasses.fields(cls)
            if field.name not in NEWER or field.name in content
        }
        return cls(**values | {name: tuple(values[name]) for name in ("mean", "std")})


def _checked_pixels(pixels: np.ndarray) -> np.ndarray:
    is_grey = pixels.ndim == 2
    if pixels.dtype != np.uint8 or not (is_grey or pixels.shape[2:] in ((3,), (4,))):
        raise ValueError(
            f"an image is {pixels.dtype} {list(pixels.shape)}, expected uint8 [height, "
            "width, 3]"
        )
    return pixels
