"""The configuration of a run on a folder of photographs, by the number of images.

These values are where to begin, for photographs as people have them: from a dozen to some
ten thousands. Each of them is a field of the configuration, and `--config.FIELD=VALUE`
sets another value.
"""

import math
import os
from collections.abc import Collection
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from focalnet_jax.data import INTERPOLATIONS
from focalnet_jax.fields import converted
from focalnet_jax.image_size import ImageSize
from focalnet_jax.preprocessing import Preprocessing
from focalnet_jax.train import default_config
from focalnet_jax.train.config import all_fields, check_field_name, total_steps
from focalnet_jax.weights.description import FREE_OPTIONS, ModelDescription

# What a run from scratch trains, where nobody names a variant and there are few images: a
# FocalNet of 3.2 million parameters. A larger one would learn them by heart sooner, and
# takes nine times as long.
SMALL_NET = dict(depths=(1, 1, 2, 1), embed_dim=48)


class _Pace(NamedTuple):
    """What depends on the number of images to train on.

    Attributes:
      images: the row is for up to so many.
      epochs: of a run from weights.
      epochs_from_scratch: of one without. Few images take more epochs, since an epoch of
        them is only a few steps; and new weights take several times as many as trained
        ones.
      size_from_scratch: of images in pixels, of a run without weights, which have a size
        of their own. Small images make up for the epochs on a CPU.
      strong: whether images are changed much: RandAugment, and a random rectangle erased.
        With few images and few steps that slows down more than it helps.
    """

    images: float
    epochs: float
    epochs_from_scratch: float
    size_from_scratch: int
    strong: bool


PACES = (
    _Pace(200, 60, 200, 96, False),
    _Pace(1_000, 30, 120, 96, False),
    _Pace(5_000, 20, 100, 96, True),
    _Pace(20_000, 15, 100, 128, True),
    _Pace(math.inf, 10, 90, 224, True),
)


def pace_of(images: int) -> _Pace:
    """The row for a number of images to train on."""
    return next(pace for pace in PACES if images <= pace.images)


def batch_size_of(images: int, *, devices: int = 1) -> int:
    """The batch for a number of images to train on.

    It is a power of two from 4 to 64, such that an epoch of 32 images or more has at
    least eight steps: the learning rates below are for batches of this size. Fewer than 4
    images are one batch. Several devices take as many rows each, so it may be rounded up.
    """
    power = 2 ** int(math.log2(max(images / 8, 1)))
    least = min(4, images)
    return -(-min(max(power, least), 64) // devices) * devices


def make_config(
    *,
    images: int,
    num_classes: int,
    start: ModelDescription | None,
    name: str | None = None,
    options: dict[str, Any] | None = None,
    image_size: ImageSize | None = None,
    seed: int = 0,
    devices: int = 1,
) -> ConfigDict:
    """The configuration, but for what `set_pace` adds to it.

    Args:
      images: how many there are to train on.
      num_classes: of the data set.
      start: describes the weights that the run starts from; None for new ones.
      name: of the variant, for a run from scratch; None for a small one.
      options: of the model that somebody has given.
      image_size: if somebody has given one.
      seed: of the run.
      devices: how many share a batch.

    Raises:
      SetupError: a value of an option that it does not take.
    """
    pace = pace_of(images)
    config = default_config()
    config.seed = seed
    config.batch_size = batch_size_of(images, devices=devices)

    # Rates are taken as they are, for batches of up to 64.
    config.learning_rate_batch_size = 0
    config.warmup_learning_rate = 1e-6
    config.final_learning_rate = 1e-6
    config.warmup_prefix = True
    config.weight_decay = 0.05
    config.clip_norm = 1.0  # Small batches have a bad one now and then.
    config.label_smoothing = 0.1

    config.data.flip = True  # Writing and digits want --noconfig.data.flip.
    # Threads decode; photographs of a telephone take longer to decode than to learn.
    config.data.threads = min(os.cpu_count() or 1, 8)
    if start is not None:
        config.num_epochs = float(pace.epochs)
        # The head is new and learns at the whole rate. Each block below learns at 0.8 of
        # the rate of the next one, since trained weights are worth the more the nearer to
        # the image they are: Bao et al., arXiv 2106.08254.
        config.learning_rate = 5e-4
        config.layer_decay = 0.8
        config.model.drop_path_rate = 0.1
        config.data.crop_area = (0.4, 1.0)
        config.data.color_jitter = 0.2
        _set_model(config, start.name, _options_of(start) | (options or {}))
        _set_preprocessing(config, start.preprocessing)
    else:
        config.num_epochs = float(pace.epochs_from_scratch)
        config.learning_rate = 1e-3
        config.model.drop_path_rate = 0.1
        config.data.crop_area = (0.25, 1.0)
        config.data.color_jitter = 0.4
        config.data.image_size = pace.size_from_scratch
        config.data.eval_crop = 0.95
        is_small = name is None and images <= 5_000
        net = SMALL_NET if is_small else {}
        _set_model(config, name or "focalnet_tiny_srf", net | (options or {}))
    if pace.strong:
        config.data.rand_augment = "rand-m9-mstd0.5-inc1"
        config.random_erasing = 0.25
    if image_size is not None:
        config.data.image_size = image_size
    config.model.num_classes = num_classes

    config.checkpoint.keep = 1
    config.checkpoint.every_minutes = 5.0
    config.checkpoint.best_metric = "test/top1"
    return config


def set_pace(config: ConfigDict, *, images: int, given: Collection[str]) -> None:
    """Sets what follows from the length of the run, which somebody may have changed.

    Args:
      config: with what the command line sets.
      images: how many there are to train on.
      given: the names of the fields that the command line sets; they stay.
    """
    steps = max(total_steps(config, images), 1)
    steps_of_epoch = max(math.ceil(images / config.batch_size), 1)
    epochs = steps * config.batch_size / images
    # At most 40 times, since each time may save a checkpoint; and no more than once in
    # an epoch.
    every = steps_of_epoch * math.ceil(epochs / 40)
    followers = {
        "warmup_epochs": min(epochs / 10, 5.0),
        "evaluate_every_steps": every,
        # About ten lines of a short run, and fifty of a long one.
        "log_every_steps": max(steps // 50, min(math.ceil(steps / 10), 10)),
        # The best one is saved anyway, and `every_minutes` saves others.
        "checkpoint.every_steps": 5 * every,
    }
    new = {name: v for name, v in followers.items() if name not in given}
    config.update_from_flattened_dict(new)


def _options_of(start: ModelDescription) -> dict[str, Any]:
    """The options of the encoder that weights need."""
    free = (*FREE_OPTIONS, "num_classes")
    return {name: v for name, v in start.overrides.items() if name not in free}


def _set_model(config: ConfigDict, name: str, options: dict[str, Any]) -> None:
    config.model.name = name
    for option, value in options.items():
        field = f"model.{option}"
        check_field_name(field, config.task)
        config.model[option] = converted(field, all_fields(config.task)[field], value)


def _set_preprocessing(config: ConfigDict, preprocessing: Preprocessing) -> None:
    """Prepares images as for the weights."""
    config.data.image_size = preprocessing.image_size
    config.data.mean = preprocessing.mean
    config.data.std = preprocessing.std
    config.data.eval_crop = preprocessing.crop
    # Weights may come with a filter of PIL that training doesn't offer.
    if preprocessing.interpolation in INTERPOLATIONS:
        config.data.eval_interpolation = preprocessing.interpolation
