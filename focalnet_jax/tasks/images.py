"""Fields of the configuration that tasks on images share, and what they describe."""

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from focalnet_jax.data import (
    INTERPOLATIONS,
    PIXELS,
    EvalTransform,
    RandAugment,
    Source,
    TrainTransform,
    open_source,
)
from focalnet_jax.data.sources.layout import FOLDER
from focalnet_jax.errors import OptionError, SetupError, arguments_spelt, counted
from focalnet_jax.fields import Field, Fields
from focalnet_jax.image_size import ImageSizes, height_and_width
from focalnet_jax.models import FocalNetEncoder
from focalnet_jax.models.modulation import MODULATIONS
from focalnet_jax.models.options import FLOAT_TYPES, NUM_CLASSES, OPTION_VALUES
from focalnet_jax.models.size import Model
from focalnet_jax.models.variants import ENCODER_OPTIONS, VARIANTS
from focalnet_jax.paths import absolute_text
from focalnet_jax.preprocessing import CROP, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from focalnet_jax.values import (
    SHARE,
    Number,
    Several,
    Text,
    Values,
    ascending,
    values_like,
)


def attribute_meanings(kind: type) -> dict[str, str]:
    """What a class's docstring says of its attributes, as sentences, by name.

    It is empty where Python leaves docstrings out.
    """
    section = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2]
    meanings = {}
    for names, meaning in re.findall(r"^  (\w[\w, ]*): (.*(?:\n    .*)*)", section, re.M):
        sentence = " ".join(meaning.split())
        for name in names.split(", "):
            meanings[name] = sentence[0].upper() + sentence[1:]
    return meanings


# The options of a model are explained where they are defined.
_MEANINGS = attribute_meanings(FocalNetEncoder)


# On the command line, these have names.
_NAMED = {
    "modulation": Text(MODULATIONS),
    "dtype": Text(FLOAT_TYPES),
    "param_dtype": Text(FLOAT_TYPES),
}


def _values_of(option: str) -> Values:
    if option in _NAMED:
        return _NAMED[option]
    return OPTION_VALUES.get(option) or values_like(ENCODER_OPTIONS[option].default)


def _is_another_data_set(old: str, new: str) -> bool:
    """An image folder may have been moved."""
    return not (old.startswith(FOLDER) and new.startswith(FOLDER))


def _absolute_folder(name: str) -> str:
    if not name.startswith(FOLDER):
        return name
    return FOLDER + absolute_text(name.removeprefix(FOLDER))


def _absolute_classes(classes: str) -> str:
    return classes if classes == "imagenet2012" else absolute_text(classes)


M = TypeVar("M", bound=Model)

# What the names of parameters begin with that belong to one task alone: those of a
# classifier's head, and of what paints masked images.
OF_HEADS = ("head/", "decoder/", "mask_token")

MODEL_FIELDS: Fields = {
    "model.name": Field("focalnet_tiny_srf", "The variant of FocalNet.", Text(VARIANTS)),
    "model.num_classes": Field(1000, "Outputs of the head.", NUM_CLASSES),
} | {
    f"model.{option}": Field(
        None,
        _MEANINGS.get(option, f"The option `{option}` of `create_model`."),
        _values_of(option),
    )
    for option in ENCODER_OPTIONS
}

IMAGE_FIELDS: Fields = {
    "data.name": Field(
        "imagenet2012",
        "The data set, as TFDS spells it, or `folder:DIR`.",
        decides_examples=_is_another_data_set,
        absolute=_absolute_folder,
    ),
    "data.data_dir": Field(
        None,
        "Where data sets of TFDS lie; by default TFDS's own place.",
        Text(),
        absolute=absolute_text,
    ),
    "data.classes": Field(
        None,
        "For image folders only: the list of classes by which labels are numbered. By "
        'default it is the list of directories. Others are "imagenet2012", and a file '
        "with the name of a class in each line.",
        Text(),
        absolute=_absolute_classes,
    ),
    "data.files": Field(
        None,
        "For image folders only: a CSV file with the columns `file`, `class` and "
        "`split`, which takes the place of directories of splits and classes.",
        Text(),
        absolute=absolute_text,
    ),
    "data.train_split": Field("train", "The split to train on.", decides_examples=True),
    "data.test_split": Field("validation", "The split to evaluate on."),
    "data.image_size": Field(
        224,
        "The size of images in pixels: a number for squares, or `(height, width)`, such "
        "as `(360, 880)`.",
        ImageSizes(),
    ),
    "data.interpolation": Field(
        "bicubic",
        'How training images are resized; "random" takes bicubic or bilinear.',
        Text((*INTERPOLATIONS, "random")),
    ),
    "data.mean": Field(
        IMAGENET_MEAN,
        "The mean of pixels in [0, 1], by channel.",
        Several(SHARE, least=3, most=3),
    ),
    "data.std": Field(
        IMAGENET_STD,
        "The standard deviation of pixels in [0, 1], by channel.",
        Several(Number(1e-3, 1e3), least=3, most=3),
    ),
    "data.crop_area": Field(
        TrainTransform.crop_area,
        "The least and the greatest share of an image that a training crop covers.",
        Several(Number(0, 1, excludes_least=True), least=2, most=2, check=ascending),
    ),
    "data.crop_aspect": Field(
        TrainTransform.crop_aspect,
        "The least and the greatest ratio of the crop's width to its height.",
        Several(Number(1e-3, 1e3), least=2, most=2, check=ascending),
    ),
    "data.flip": Field(True, "Whether half of the training images are mirrored."),
    "data.rand_augment": Field(
        None,
        'A policy of RandAugment in timm\'s spelling, such as "rand-m9-mstd0.5-inc1".',
        Text(),
    ),
    "data.color_jitter": Field(
        0.0,
        "Brightness, contrast and saturation are multiplied by numbers from 1 - j to "
        "1 + j, in random order. timm leaves this out where there is RandAugment; here "
        "both can be.",
        Number(0, 1e3),
    ),
    "data.pixels": Field(
        "exact",
        '"exact" makes the pixels that PIL makes; "fast" makes similar ones sooner.',
        Text(PIXELS),
    ),
    "data.eval_crop": Field(
        Preprocessing.crop,
        "The share of the resized image that evaluation sees: of its shorter side, if "
        "images are squares.",
        CROP,
    ),
    "data.eval_interpolation": Field(
        "bicubic", "How images are resized for evaluation.", Text(INTERPOLATIONS)
    ),
}


@dataclasses.dataclass(frozen=True)
class DataSets:
    """The data sets of a run.

    Attributes:
      name, data_dir, classes, files: as for `open_source`.
      train_split, test_split: splits of it.
    """

    name: str
    train_split: str
    test_split: str
    data_dir: str | None = None
    classes: str | None = None
    files: str | None = None

    def open(self, which: str) -> Source:
        """Opens one of the splits.

        Args:
          which: `"train_split"` or `"test_split"`.

        Raises:
          SetupError: as `open_source`, with the names of the configuration's fields.
        """

        def spell(argument: str) -> str:
            dashes, name = "--config." * argument.startswith("--"), argument.lstrip("-")
            return f"{dashes}data.{which if name == 'split' else name}"

        with arguments_spelt(spell):
            return open_source(
                self.name,
                split=getattr(self, which),
                data_dir=self.data_dir,
                classes=self.classes,
                files=self.files,
            )


def model_overrides(config: ConfigDict) -> dict[str, Any]:
    """The arguments of `create_model` beside the name that the config sets."""
    given = config.model.to_dict().items()
    return {
        option: value for option, value in given if option != "name" and value is not None
    }


def model_of(
    config: ConfigDict, create: Callable[..., M], *, size: str = "image_size"
) -> M:
    """The model that the config describes.

    Args:
      config: has the fields of models and images.
      create: makes a model of the name and `model_overrides`, as `create_model`.
      size: the field of `data` with the size of images.

    Raises:
      SetupError: a value that the model doesn't allow, or images that are too small.
    """
    try:
        model = create(config.model.name, **model_overrides(config))
    except OptionError as error:
        raise SetupError(f"model.{error.option}{error.problem}") from error
    if model.encoder.in_channels != 3:
        raise SetupError(
            f"model.in_channels={model.encoder.in_channels}, but images are read as RGB"
        )
    # JAX declares its options from 0.12 on.
    has_float64 = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    for option in ("dtype", "param_dtype"):
        if config.model[option] == "float64" and not has_float64:
            raise SetupError(
                f"model.{option}='float64' needs JAX_ENABLE_X64=1 in the environment: "
                "without it JAX computes in float32"
            )
    if model.encoder.spatial_rank != 2:
        raise SetupError(
            f"model.patch_size={model.encoder.patch_size} is for inputs with "
            f"{counted(model.encoder.spatial_rank, 'spatial axis', 'spatial axes')}, but "
            "images have 2"
        )
    least = model.encoder.smallest_input()
    sides = height_and_width(config.data[size])
    if any(side < needed for side, needed in zip(sides, least)):
        needed = " x ".join(map(str, least))
        raise SetupError(
            f"data.{size}={config.data[size]} is too small for "
            f"{config.model.name}, which needs {needed} (or model.pad_to_patch=True)"
        )
    return model


def train_transform_of(config: ConfigDict) -> TrainTransform:
    """What the config does to each training image on the host.

    Raises:
      SetupError: `data.rand_augment` is no policy.
    """
    rand_augment = None
    if policy := config.data.rand_augment:
        with arguments_spelt(lambda _: "data.rand_augment"):
            rand_augment = RandAugment.parse(policy)
    return TrainTransform(
        config.data.image_size,
        crop_area=config.data.crop_area,
        crop_aspect=config.data.crop_aspect,
        flip=config.data.flip,
        interpolation=config.data.interpolation,
        rand_augment=rand_augment,
        color_jitter=config.data.color_jitter,
        fill=tuple(min(255, round(255 * mean)) for mean in config.data.mean),
        pixels=config.data.pixels,
    )


def eval_transform_of(config: ConfigDict) -> EvalTransform:
    """What the config does to each image on the host for evaluation."""
    return EvalTransform(
        config.data.image_size,
        crop=config.data.eval_crop,
        interpolation=config.data.eval_interpolation,
    )


def preprocessing_of(config: ConfigDict) -> Preprocessing:
    """What whoever uses the parameters elsewhere has to do to an image."""
    return Preprocessing(
        image_size=config.data.image_size,
        mean=config.data.mean,
        std=config.data.std,
        interpolation=config.data.eval_interpolation,
        crop=config.data.eval_crop,
    )


def data_sets_of(config: ConfigDict) -> DataSets:
    """The data sets that the config names."""
    return DataSets(
        name=config.data.name,
        train_split=config.data.train_split,
        test_split=config.data.test_split,
        data_dir=config.data.data_dir,
        classes=config.data.classes,
        files=config.data.files,
    )


def normalize(images: jax.Array, *, mean, std) -> jax.Array:
    """Makes `uint8 [b, h, w, 3]` float32, `(x / 255 - mean) / std` by channel."""
    chex.assert_type(images, jnp.uint8)
    mean, std = jnp.array(mean, jnp.float32), jnp.array(std, jnp.float32)
    return (images.astype(jnp.float32) / 255 - mean) / std
