r"""Semantic segmentation on ADE20K: UPerNet, from weights of ImageNet-1K.

    python -m focalnet_jax.convert focalnet_base_lrf.pth start
    python main.py --config=configs/upernet_ade20k.py:base_lrf \
        --config.data.name=folder:ADEChallengeData2016 --config.init_from=start \
        --config.reset_head=True --config.resize_kernels=True
    python main.py --config=configs/upernet_ade20k.py:base_lrf --mode=eval \
        --config.data.name=folder:ADEChallengeData2016 \
        --config.eval_ratios="(0.5,0.75,1.0,1.25,1.5,1.75)" --config.eval_flip=True

The first command takes a file of the official release. The folder is the download
ADEChallengeData2016.zip, unpacked. The third command evaluates at several scales.

The values are those of the official release, `segmentation/configs/focalnet`: 160,000
steps of 16 crops of 512 pixels, AdamW with a rate of 6e-5 and a weight decay of 0.01, no
decay of norms, and stochastic depth of 0.3 for all variants. The kernels of the first
focal levels have 9 positions there, in place of the 3 of classification, and zeros around
those that the weights have.

The README of the official code reports these mIoU on the 2,000 images for validation, at
one scale and at several with mirror images. They are not measured here:

    tiny_srf     61 M parameters    46.5    47.2
    tiny_lrf     61 M               46.8    47.8
    small_srf    83 M               49.3    50.1
    small_lrf    84 M               49.1    50.1
    base_srf    124 M               50.2    51.1
    base_lrf    126 M               50.5    51.4
"""

from focalnet_jax.errors import SetupError, did_you_mean
from focalnet_jax.train import default_config

# The published mIoU at one scale, and at several with mirror images.
PUBLISHED = {
    "tiny_srf": ("46.5", "47.2"),
    "tiny_lrf": ("46.8", "47.8"),
    "small_srf": ("49.3", "50.1"),
    "small_lrf": ("49.1", "50.1"),
    "base_srf": ("50.2", "51.1"),
    "base_lrf": ("50.5", "51.4"),
}


def get_config(variant: str = ""):
    variant = variant or "base_lrf"
    if variant not in PUBLISHED:
        hint = did_you_mean(variant, PUBLISHED)
        raise SetupError(f"configs/upernet_ade20k.py has no variant {variant!r}{hint}")

    config = default_config("semantic_segmentation")
    config.published = (
        "mIoU {} % at one scale, {} % at ratios from 0.5 to 1.75 with mirror images "
        "(README of microsoft/FocalNet)"
    ).format(*PUBLISHED[variant])
    config.batch_size = 16
    config.num_steps = 160_000

    config.learning_rate = 6e-5
    config.warmup_learning_rate = 6e-11  # a millionth of the rate
    config.final_learning_rate = 0.0
    config.learning_rate_batch_size = 16
    config.schedule = "poly"
    config.schedule_power = 1.0
    config.warmup_steps = 1500

    config.weight_decay = 0.01
    config.weight_decay_mask = "all"
    config.no_weight_decay = (".*norm",)  # BatchNorm of the heads is called bn
    config.clip_norm = 0.0

    config.model.name = f"focalnet_{variant}"
    config.model.num_classes = 150
    config.model.focal_windows = (9, 9, 9, 9)
    config.model.drop_path_rate = 0.3
    config.model.dtype = "bfloat16"

    config.data.name = "folder:ADEChallengeData2016"
    config.data.classes = "ade20k"
    config.data.train_split = "training"
    config.data.num_train_examples = 20_210
    config.data.test_split = "validation"
    config.data.scale = (2048, 512)
    config.data.ratio_range = (0.5, 2.0)
    config.data.crop_size = 512
    config.data.workers = 8

    config.checkpoint.every_steps = 2000
    config.checkpoint.best_metric = "test/miou"
    config.evaluate_every_steps = 16_000
    config.log_every_steps = 50
    return config
