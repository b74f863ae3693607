"""Fields of the configuration that tasks on images share, and what they describe."""

import dataclasses
import inspect
import re
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from focalnet_jax.data import (
    INTERPOLATIONS,
    PIXELS,
    EvalTransform,
    RandAugment,
    TrainTransform,
)
from focalnet_jax.errors import OptionError, SetupError, arguments_spelt
from focalnet_jax.fields import (
    Field,
    Fields,
    ascending,
    at_least,
    every,
    numbers,
    one_of,
)
from focalnet_jax.image_size import height_and_width, parse_image_size
from focalnet_jax.models import (
    FocalNet,
    FocalNetEncoder,
    create_model,
)
from focalnet_jax.models.variants import ENCODER_OPTIONS, VARIANTS
from focalnet_jax.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing


def _attribute_meanings(kind: type) -> dict[str, str]:
    """What a class's docstring says of its attributes, as sentences, by name."""
    section = inspect.getdoc(kind).partition("Attributes:\n")[2]
    meanings = {}
    for names, meaning in re.findall(r"^  (\w[\w, ]*): (.*(?:\n    .*)*)", section, re.M):
        sentence = " ".join(meaning.split())
        for name in names.split(", "):
            meanings[name] = sentence[0].upper() + sentence[1:]
    return meanings


# The options of a model are explained where they are defined.
_MEANINGS = _attribute_meanings(FocalNetEncoder) if FocalNetEncoder.__doc__ else {}


def _type_of(option: str) -> type:
    if option in ("dtype", "param_dtype"):
        return str  # by name
    if option == "embed_dim":
        return int
    default = ENCODER_OPTIONS[option].default
    return tuple if default is dataclasses.MISSING else type(default)


def _is_another_data_set(old: str, new: str) -> bool:
    """An image folder may have been moved."""
    return not (old.startswith("folder:") and new.startswith("folder:"))


def _part_of_an_image(value) -> str | None:
    return None if value[1] <= 1 else "is more than an image"


def _positive_numbers(value) -> str | None:
    return None if min(value) > 0 else "is not above 0 in every channel"


def _crop(value) -> str | None:
    return None if 0 < value <= 1 else "is not in (0, 1]"


def _image_size(value) -> str | None:
    try:
        parse_image_size(value)
    except ValueError as error:
        return str(error)
    return None


class _OneNumberOrTwo(type):
    def __instancecheck__(cls, value):
        return isinstance(value, (int, float, str, tuple, list))


class ImageSizeField(metaclass=_OneNumberOrTwo):
    """The type of a field for what `parse_image_size` takes, right or wrong."""


class _AsItStands(flags.ArgumentParser):
    """The value of a flag as it stands: it is read and checked with all other fields."""

    def parse(self, argument):
        return argument


config_flags.register_flag_parser_for_type(ImageSizeField, _AsItStands())


MODEL_FIELDS: Fields = {
    "model.name": Field(
        "focalnet_tiny_srf", "The variant of FocalNet.", one_of(VARIANTS)
    ),
    "model.num_classes": Field(1000, "Outputs of the head."),
} | {
    f"model.{option}": Field(
        None,
        _MEANINGS.get(option, f"The option `{option}` of `create_model`."),
        kind=_type_of(option),
    )
    for option in ENCODER_OPTIONS
}

IMAGE_FIELDS: Fields = {
    "data.name": Field(
        "imagenet2012",
        "The data set, as TFDS spells it, or `folder:DIR`.",
        decides_examples=_is_another_data_set,
    ),
    "data.data_dir": Field(
        None, "Where data sets of TFDS lie; by default TFDS's own place.", kind=str
    ),
    "data.classes": Field(
        None,
        "For image folders only: the list of classes by which labels are numbered. By "
        'default it is the list of directories. Others are "imagenet2012", and a file '
        "with the name of a class in each line.",
        kind=str,
    ),
    "data.train_split": Field("train", "The split to train on.", decides_examples=True),
    "data.test_split": Field("validation", "The split to evaluate on."),
    "data.image_size": Field(
        224,
        "The size of images in pixels: a number for squares, or `(height, width)`, such "
        "as `(360, 880)`.",
        _image_size,
        kind=ImageSizeField,
        canonical=parse_image_size,
    ),
    "data.interpolation": Field(
        "bicubic",
        'How training images are resized; "random" takes bicubic or bilinear.',
        one_of((*INTERPOLATIONS, "random")),
    ),
    "data.mean": Field(
        IMAGENET_MEAN, "The mean of pixels in [0, 1], by channel.", numbers(3)
    ),
    "data.std": Field(
        IMAGENET_STD,
        "The standard deviation of pixels in [0, 1], by channel.",
        every(numbers(3), _positive_numbers),
    ),
    "data.crop_area": Field(
        TrainTransform.crop_area,
        "The least and the greatest share of an image that a training crop covers.",
        every(numbers(2), ascending, _part_of_an_image),
    ),
    "data.crop_aspect": Field(
        TrainTransform.crop_aspect,
        "The least and the greatest ratio of the crop's width to its height.",
        every(numbers(2), ascending),
    ),
    "data.flip": Field(True, "Whether half of the training images are mirrored."),
    "data.rand_augment": Field(
        None,
        'A policy of RandAugment in timm\'s spelling, such as "rand-m9-mstd0.5-inc1".',
        kind=str,
    ),
    "data.color_jitter": Field(
        0.0,
        "Brightness, contrast and saturation are multiplied by numbers from 1 - j to "
        "1 + j, in random order. timm leaves this out where there is RandAugment; here "
        "both can be.",
        at_least(0),
    ),
    "data.pixels": Field(
        "exact",
        '"exact" makes the pixels that PIL makes; "fast" makes similar ones sooner.',
        one_of(PIXELS),
    ),
    "data.eval_crop": Field(
        Preprocessing.crop,
        "The share of the resized image that evaluation sees: of its shorter side, if "
        "images are squares.",
        _crop,
    ),
    "data.eval_interpolation": Field(
        "bicubic", "How images are resized for evaluation.", one_of(INTERPOLATIONS)
    ),
}


def model_overrides(config: ConfigDict) -> dict[str, Any]:
    """The arguments of `create_model` beside the name that the config sets."""
    given = config.model.to_dict().items()
    return {
        option: value for option, value in given if option != "name" and value is not None
    }


def model_of(config: ConfigDict) -> FocalNet:
    """The model that the config describes.

    Raises:
      SetupError: a value that the model doesn't allow, or images that are too small.
    """
    try:
        model = create_model(config.model.name, **model_overrides(config))
    except OptionError as error:
        raise SetupError(f"model.{error.option}{error.problem}") from error
    if model.encoder.in_channels != 3:
        raise SetupError(
            f"model.in_channels={model.encoder.in_channels}, but images are read as RGB"
        )
    least = model.encoder.smallest_image()
    if min(height_and_width(config.data.image_size)) < least:
        raise SetupError(
            f"data.image_size={config.data.image_size} is too small for "
            f"{config.model.name}, which needs {least} (or model.pad_to_patch=True)"
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
