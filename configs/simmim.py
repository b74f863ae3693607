r"""Masked image modelling before training with labels: SimMIM.

    python main.py --config=configs/simmim.py --workdir=runs/simmim
    python main.py --config=configs/finetune.py:base_lrf,192 \
        --config.init_from=runs/simmim --config.reset_head=True
    python main.py --config=configs/simmim.py:digits --workdir=runs/simmim_digits
    python main.py --config.init_from=runs/simmim_digits --config.reset_head=True \
        --config.data.train_split='train[:100]' --workdir=runs/few_labels

The net paints patches of images that it isn't shown, and reads no labels. A run with
labels that starts from it has a new head.

Nobody has published FocalNets that were pretrained so. The values are those of the paper
of SimMIM for Swin-B in 100 epochs (Xie et al., arXiv 2111.09886, and its official files):
images of 192 pixels, of which squares of 32 are hidden with a share of 0.6; batch 2,048,
a rate of 8e-4 after 10 epochs of warmup, a weight decay of 0.05, and no augmentation but
crops and mirror images. They are not measured here at this size. For fine-tuning the
paper has 100 epochs, a rate of 5e-3 for a batch of 2,048, and `layer_decay` 0.9.

`digits` is for the handwritten digits, on two CPU cores; docs/training.md says what it
brings there.
"""

from focalnet_jax.errors import SetupError, did_you_mean
from focalnet_jax.models import list_models
from focalnet_jax.train import default_config, load_recipe

_DIGITS = "digits"


def get_config(variant: str = ""):
    variant = variant or "base_lrf"
    names = [name.removeprefix("focalnet_") for name in list_models()]
    if variant not in (*names, _DIGITS):
        hint = did_you_mean(variant, [*names, _DIGITS])
        raise SetupError(f"configs/simmim.py has no variant {variant!r}{hint}")

    config = default_config("masked_image_modeling")
    config.mask_ratio = 0.6
    config.mask_patch_size = 32

    config.batch_size = 2048
    config.num_epochs = 100.0
    config.learning_rate = 8e-4
    config.warmup_learning_rate = 4e-6
    config.final_learning_rate = 4e-5
    config.learning_rate_batch_size = 2048
    config.warmup_epochs = 10.0
    config.weight_decay = 0.05
    config.clip_norm = 5.0

    config.model.name = f"focalnet_{variant}"
    config.model.drop_path_rate = 0.0
    config.model.dtype = "bfloat16"

    config.data.name = "imagenet2012"
    config.data.train_split = "train"
    config.data.num_train_examples = 1_281_167
    config.data.test_split = "validation"
    config.data.image_size = 192
    config.data.crop_area = (0.67, 1.0)
    config.data.workers = 8

    config.checkpoint.every_steps = 625  # an epoch, at this batch size
    config.evaluate_every_steps = 6250
    if variant == _DIGITS:
        _on_digits(config)
    return config


def _on_digits(config):
    """The model and the images of configs/digits.py."""
    digits = load_recipe("digits")
    for group in ("model", "data", "checkpoint"):
        for field, value in digits[group].items():
            if field in config[group]:
                config[group][field] = value
    for field in (
        *("batch_size", "learning_rate", "warmup_learning_rate", "final_learning_rate"),
        *("learning_rate_batch_size", "evaluate_every_steps", "log_every_steps"),
    ):
        config[field] = digits[field]
    config.num_epochs = 100.0
    config.model.drop_path_rate = 0.0
    config.mask_patch_size = 4
    config.data.num_train_examples = None
