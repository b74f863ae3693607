"""Every field of a run's configuration, with its default and its meaning.

A recipe in `configs/` starts from `default_config()` and sets what it is about. The
command line sets scalars: `--config.batch_size=256`. Nothing in a recipe copies one
field into another, since the command line comes later: what follows from several fields
(the number of steps, the scaled learning rate) is computed where it is used.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict, config_dict

from focalnet_jax.data import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    INTERPOLATIONS,
    PIXELS,
    RandAugment,
    TrainTransform,
)
from focalnet_jax.errors import SetupError, did_you_mean
from focalnet_jax.models import FocalNet, create_model, list_models
from focalnet_jax.models.variants import ENCODER_OPTIONS
from focalnet_jax.tasks.augment import ERASING_MODES, Mixing, RandomErasing

WEIGHT_DECAY_MASKS = ("nominal", "none")
BEST_METRICS = (
    *("test/top1", "test/top5", "test/loss"),
    *("test_ema/top1", "test_ema/top5", "test_ema/loss"),  # with ema_decay
)


def default_config() -> ConfigDict:
    """A new configuration; fields can be set in it, but not added."""
    config = ConfigDict()

    config.seed = 0  # of initialisation, order of examples, augmentation, drop path
    config.batch_size = 1024  # images in a step, over all devices
    config.num_epochs = 300.0
    config.num_steps = config_dict.placeholder(int)  # if set, in place of num_epochs

    # Learning rate: linear warmup, then a cosine, both per step. The three rates hold
    # for a batch of `learning_rate_batch_size` and scale with batch_size; 0: as given.
    config.learning_rate = 1e-3
    config.warmup_learning_rate = 1e-6
    config.final_learning_rate = 1e-5
    config.learning_rate_batch_size = 1024
    config.warmup_epochs = 20.0
    config.warmup_prefix = False  # True: the cosine begins where the warmup ends

    # AdamW.
    config.adam_b1 = 0.9
    config.adam_b2 = 0.999
    config.adam_eps = 1e-8
    config.weight_decay = 0.05
    config.weight_decay_mask = "nominal"  # matrices and kernels; "none": no parameter
    config.clip_norm = 5.0  # greatest global norm of the gradient; 0: unlimited
    config.label_smoothing = 0.1
    # Decay of the average of parameters that is evaluated beside them, such as 0.9999;
    # 0: no average.
    config.ema_decay = 0.0
    # Steps whose loss, gradient or weights are not finite leave everything as it was, and
    # one more than this stops the run.
    config.max_nonfinite_steps = 0
    # Parts that a batch is taken in, one after the other: less memory, the same step.
    config.accumulate_steps = 1

    # Fine-tuning. Names of parameters are as in "layers_0/blocks_1/mlp/fc1/kernel", and
    # patterns regular expressions that they begin with.
    config.layer_decay = 1.0  # learning rate of a block over that of the next one
    config.frozen = ()  # patterns of what stays as it is: ("patch_embed", "layers_[01]")
    config.learning_rate_factors = ()  # such as (("head", 10.0),), on top of the decay

    # Augmentation of batches, in the training step.
    config.random_erasing = 0.0  # share of the images that lose a rectangle
    config.random_erasing_mode = "pixel"  # noise; "rand": one colour; "const": the mean
    config.mixup_alpha = 0.0  # shares are from Beta(alpha, alpha); 0: no mixup
    config.cutmix_alpha = 0.0  # the same of cutmix
    config.mix_probability = 1.0  # share of the batches that are mixed
    config.mix_switch_probability = 0.5  # share of cutmix in these, if there are both

    # Parameters to start from: a workdir or a checkpoint in it.
    config.init_from = config_dict.placeholder(str)
    config.reset_head = False  # but for the head, which starts anew, for any classes

    config.model = ConfigDict()
    config.model.name = "focalnet_tiny_srf"
    config.model.num_classes = 1000
    # Any option of `create_model`; those that are None keep the variant's value.
    for option in ENCODER_OPTIONS:
        config.model[option] = config_dict.placeholder(_option_type(option))

    config.data = ConfigDict()
    config.data.name = "imagenet2012"  # as TFDS spells it, or folder:DIR
    config.data.data_dir = config_dict.placeholder(str)  # None: TFDS's own place
    # Of a folder, what labels count; None: its directories. "imagenet2012", or a file.
    config.data.classes = config_dict.placeholder(str)
    config.data.train_split = "train"
    config.data.test_split = "validation"
    # If set, the training split has to have as many. To compile without data.
    config.data.num_train_examples = config_dict.placeholder(int)
    config.data.image_size = 224
    config.data.interpolation = "bicubic"  # in training; "random": that or bilinear
    config.data.mean = IMAGENET_MEAN  # of pixels in [0, 1]
    config.data.std = IMAGENET_STD
    config.data.crop_area = (0.08, 1.0)  # share of the image in a training crop
    config.data.crop_aspect = (3 / 4, 4 / 3)  # its width / height
    config.data.flip = True
    # A policy in timm's spelling, such as "rand-m9-mstd0.5-inc1"; None: none.
    config.data.rand_augment = config_dict.placeholder(str)
    # Brightness, contrast and saturation within 1 - j to 1 + j, in random order. timm
    # leaves it out where there is RandAugment; here both can be.
    config.data.color_jitter = 0.0
    config.data.pixels = "exact"  # equal to PIL's; "fast": near them, see the README
    config.data.eval_crop = 0.875  # share of the shorter side that evaluation sees
    config.data.eval_interpolation = "bicubic"
    # Images that can't be decoded, and are skipped by each process before one stops it.
    config.data.max_bad_records = 0
    config.data.threads = 2  # that decode, in this process or in each worker
    config.data.workers = 0  # processes that decode; 0: this one

    # Devices: rows of a batch are split over `data` and `fsdp`, parameters over `fsdp`,
    # the height of images over `spatial`.
    config.mesh = ConfigDict()
    config.mesh.data = -1  # -1: all devices that the others leave
    config.mesh.fsdp = 1
    config.mesh.spatial = 1

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 1000  # the last step is always kept
    # If set, also at the next logged step when so many minutes have passed.
    config.checkpoint.every_minutes = config_dict.placeholder(float)
    config.checkpoint.keep = 2  # the newest ones
    # If set, one of BEST_METRICS: the checkpoint that is best by it is kept, too.
    config.checkpoint.best_metric = config_dict.placeholder(str)

    config.evaluate_every_steps = 5000  # and at the end
    config.log_every_steps = 50
    config.profile_steps = ()  # first and last step of a trace for TensorBoard: (10, 12)
    # If set, a project of Weights & Biases that has the metrics, too: pip install wandb
    config.wandb_project = config_dict.placeholder(str)

    return config.lock()


def _option_type(option: str) -> type:
    if option in ("dtype", "param_dtype"):
        return str  # by name
    if option == "embed_dim":
        return int
    default = ENCODER_OPTIONS[option].default
    return tuple if default is dataclasses.MISSING else type(default)


def check_config(config: ConfigDict) -> FrozenConfigDict:
    """Checks what can be checked before data or devices are touched, and freezes.

    Raises:
      SetupError: naming the field, what was given and what is allowed.
    """
    _check_fields(config.to_dict(), default_config().to_dict(), prefix="")
    at_least = {
        "seed": 0,
        "batch_size": 1,
        "num_epochs": 0,
        "num_steps": 0,
        "learning_rate": 0,
        "warmup_learning_rate": 0,
        "final_learning_rate": 0,
        "learning_rate_batch_size": 0,
        "warmup_epochs": 0,
        "adam_b1": 0,
        "adam_b2": 0,
        "adam_eps": 0,
        "weight_decay": 0,
        "clip_norm": 0,
        "label_smoothing": 0,
        "accumulate_steps": 1,
        "ema_decay": 0,
        "max_nonfinite_steps": 0,
        "layer_decay": 0,
        "mixup_alpha": 0,
        "cutmix_alpha": 0,
        "data.num_train_examples": 1,
        "data.image_size": 1,
        "data.color_jitter": 0,
        "data.max_bad_records": 0,
        "data.threads": 1,
        "data.workers": 0,
        "mesh.fsdp": 1,
        "mesh.spatial": 1,
        "checkpoint.every_steps": 1,
        "checkpoint.every_minutes": 0,
        "checkpoint.keep": 1,
        "evaluate_every_steps": 1,
        "log_every_steps": 1,
    }
    for field, least in at_least.items():
        value = _get(config, field)
        if value is not None and not value >= least:
            raise SetupError(f"{field}={value!r} is below {least}")
    if config.mesh.data < 1 and config.mesh.data != -1:
        raise SetupError(f"mesh.data={config.mesh.data} is neither -1 nor above 0")
    for field in ("label_smoothing", "adam_b1", "adam_b2", "ema_decay"):
        if not config[field] < 1:
            raise SetupError(f"{field}={config[field]} is not below 1")
    for field in ("mixup_alpha", "cutmix_alpha"):
        if not math.isfinite(config[field]):
            raise SetupError(f"{field}={config[field]} is not finite")
    if config.reset_head and not config.init_from:
        raise SetupError("reset_head=True needs init_from, whose head is left out")
    _check_patterns("frozen", config.frozen)
    for pair in config.learning_rate_factors:
        if len(pair) != 2 or not isinstance(pair[1], (int, float)):
            raise SetupError(
                f"learning_rate_factors={config.learning_rate_factors} is not of pairs "
                "of a pattern and a number, such as (('head', 10.0),)"
            )
    _check_patterns("learning_rate_factors", [p for p, _ in config.learning_rate_factors])
    for field in ("random_erasing", "mix_probability", "mix_switch_probability"):
        if not 0 <= config[field] <= 1:
            raise SetupError(f"{field}={config[field]} is not in [0, 1]")
    if not 0 < config.data.eval_crop <= 1:
        raise SetupError(f"data.eval_crop={config.data.eval_crop} is not in (0, 1]")
    for field in ("data.crop_area", "data.crop_aspect"):
        value = _numbers(config, field, count=2)
        if not 0 < value[0] <= value[1]:
            raise SetupError(f"{field}={value} is no range of positive numbers")
    if config.data.crop_area[1] > 1:
        raise SetupError(f"data.crop_area={config.data.crop_area} is more than an image")
    _numbers(config, "data.mean", count=3)
    if min(_numbers(config, "data.std", count=3)) <= 0:
        raise SetupError(f"data.std={config.data.std} is not above 0 in every channel")
    _check_choice(config, "weight_decay_mask", WEIGHT_DECAY_MASKS)
    _check_choice(config, "random_erasing_mode", ERASING_MODES)
    _check_choice(config, "data.interpolation", (*INTERPOLATIONS, "random"))
    _check_choice(config, "data.eval_interpolation", INTERPOLATIONS)
    _check_choice(config, "data.pixels", PIXELS)
    if steps := config.profile_steps:
        first, last = _numbers(config, "profile_steps", count=2)
        if not 1 <= first <= last:
            raise SetupError(f"profile_steps={steps} is no range of steps")
    if best := config.checkpoint.best_metric:
        _check_choice(config, "checkpoint.best_metric", BEST_METRICS)
        if best.startswith("test_ema/") and not config.ema_decay:
            raise SetupError(f"checkpoint.best_metric={best!r} needs ema_decay above 0")
    train_transform_of(config)
    _check_choice(config, "model.name", list_models())
    model = model_of(config)
    if not model.num_classes:
        raise SetupError("model.num_classes=0 makes no classifier: nothing to train")
    if model.encoder.in_channels != 3:
        raise SetupError(
            f"model.in_channels={model.encoder.in_channels}, but images are read as RGB"
        )
    least = model.encoder.smallest_image()
    if config.data.image_size < least:
        raise SetupError(
            f"data.image_size={config.data.image_size} is too small for "
            f"{config.model.name}, which needs {least} (or model.pad_to_patch=True)"
        )
    return FrozenConfigDict(config)


def check_field_name(name: str) -> None:
    """Raises SetupError unless the dotted `name` is a field of the configuration."""
    fields = list(field_names(default_config()))
    if name not in fields:
        raise SetupError(f"the config has no field {name}{did_you_mean(name, fields)}")


def field_names(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """The dotted names of all fields that hold values."""
    for name in config:
        if isinstance(config[name], ConfigDict):
            yield from field_names(config[name], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _check_fields(given: dict, known: dict, *, prefix: str) -> None:
    for field in given:
        if field not in known:
            hint = did_you_mean(field, known)
            raise SetupError(f"the config has an unknown field {prefix}{field}{hint}")
    for field, default in known.items():
        if field not in given:
            raise SetupError(f"the config lacks the field {prefix}{field}")
        if isinstance(default, dict):
            _check_fields(given[field], default, prefix=f"{prefix}{field}.")


def _check_choice(config: ConfigDict, field: str, allowed) -> None:
    value = _get(config, field)
    if value not in allowed:
        raise SetupError(f"{field}={value!r} is unknown{did_you_mean(value, allowed)}")


def _check_patterns(field: str, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (TypeError, re.error) as error:
            raise SetupError(
                f"{field}: {pattern!r} is no regular expression: {error}"
            ) from error


def _numbers(config: ConfigDict, field: str, *, count: int) -> tuple[float, ...]:
    value = _get(config, field)
    if len(value) != count or not all(isinstance(v, (int, float)) for v in value):
        raise SetupError(f"{field}={value} is not {count} numbers")
    return value


def _get(config: ConfigDict, field: str) -> Any:
    for name in field.split("."):
        config = config[name]
    return config


def model_overrides(config: ConfigDict) -> dict[str, Any]:
    """The arguments of `create_model` beside the name that the config sets."""
    given = config.model.to_dict().items()
    return {
        option: value for option, value in given if option != "name" and value is not None
    }


def model_of(config: ConfigDict) -> FocalNet:
    """The model that the config describes.

    Raises:
      SetupError: a value that the model doesn't allow.
    """
    try:
        return create_model(config.model.name, **model_overrides(config))
    except (TypeError, ValueError) as error:
        raise SetupError(f"model.{error}") from error


def train_transform_of(config: ConfigDict) -> TrainTransform:
    """What the config does to each training image on the host.

    Raises:
      SetupError: `data.rand_augment` is no policy.
    """
    policy = config.data.rand_augment
    return TrainTransform(
        config.data.image_size,
        crop_area=config.data.crop_area,
        crop_aspect=config.data.crop_aspect,
        flip=config.data.flip,
        interpolation=config.data.interpolation,
        rand_augment=RandAugment.parse(policy) if policy else None,
        color_jitter=config.data.color_jitter,
        fill=tuple(min(255, round(255 * mean)) for mean in config.data.mean),
        pixels=config.data.pixels,
    )


def erasing_of(config: ConfigDict) -> RandomErasing | None:
    """The random erasing that the config describes; None: off."""
    erasing = RandomErasing(config.random_erasing, mode=config.random_erasing_mode)
    return erasing if erasing.probability else None


def mixing_of(config: ConfigDict) -> Mixing | None:
    """The mixup and cutmix that the config describes; None: neither."""
    mixing = Mixing(
        mixup_alpha=config.mixup_alpha,
        cutmix_alpha=config.cutmix_alpha,
        probability=config.mix_probability,
        switch_probability=config.mix_switch_probability,
    )
    is_on = mixing.probability and (mixing.mixup_alpha or mixing.cutmix_alpha)
    return mixing if is_on else None


def total_steps(config: ConfigDict, num_examples: int) -> int:
    """The number of steps of the whole run."""
    if config.num_steps is not None:
        return config.num_steps
    return steps_of_epochs(config, config.num_epochs, num_examples)


def steps_of_epochs(config: ConfigDict, epochs: float, num_examples: int) -> int:
    """Steps that see `epochs * num_examples` images, rounded up."""
    return math.ceil(epochs * num_examples / config.batch_size)
