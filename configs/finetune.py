"""Fine-tuning on ImageNet-1K, from weights of ImageNet-22K or from others.

    python -m focalnet_jax.convert focalnet_large_lrf_384.pth start --head=in22k_to_in1k
    python main.py --config=configs/finetune.py:large_fl3 --config.init_from=start
    python main.py --config=configs/finetune.py:base_lrf,224 --config.init_from=RUN \
        --config.reset_head=True
    python main.py --config=configs/finetune.py:tiny_lrf,224 --config.init_from=RUN \
        --config.reset_head=True --config.model.num_classes=10 \
        --config.data.name=cifar10 --config.data.test_split=test \
        --config.data.num_train_examples=50000

The image size stands after a comma, such as 224 or 360x880; it is 384 by default. The
official release has no recipe for this. 30 epochs, a learning rate of 3e-5, stochastic
depth of 0.3, and neither mixup nor cutmix are the paper's values from memory, not checked
against its text. The rest is our choice: batch size and warmup are guesses, and what
regularises is as in configs/base.py. The abstract reports top-1 of 86.5 (at 224) and 87.3
(at 384) for a model pretrained on ImageNet-22K. These numbers are not measured here.
"""

from focalnet_jax.errors import SetupError
from focalnet_jax.image_size import height_and_width, parse_image_size
from focalnet_jax.train import default_config


def get_config(variant: str = ""):
    variant, _, image_size = (variant or "base_lrf").partition(",")
    try:
        image_size = parse_image_size(image_size or 384)
    except ValueError as error:
        raise SetupError(
            f"configs/finetune.py: {image_size!r} is no image size; for example "
            f"configs/finetune.py:{variant},384 or configs/finetune.py:{variant},360x880"
        ) from error

    config = default_config()
    config.batch_size = 512
    config.num_epochs = 30.0

    config.learning_rate = 3e-5
    config.warmup_learning_rate = 3e-8
    config.final_learning_rate = 3e-7
    config.learning_rate_batch_size = 512
    config.warmup_epochs = 1.0

    config.weight_decay = 0.05
    config.clip_norm = 5.0
    config.label_smoothing = 0.1

    config.random_erasing = 0.25

    config.model.name = f"focalnet_{variant}"
    config.model.num_classes = 1000
    config.model.drop_path_rate = 0.3
    config.model.dtype = "bfloat16"

    config.data.name = "imagenet2012"
    config.data.train_split = "train"
    config.data.num_train_examples = 1_281_167
    config.data.test_split = "validation"
    config.data.image_size = image_size
    # At 384, all of the shorter side, as timm evaluates the official weights.
    config.data.eval_crop = 0.875 if min(height_and_width(image_size)) < 384 else 1.0
    config.data.rand_augment = "rand-m9-mstd0.5-inc1"
    config.data.workers = 8

    config.checkpoint.every_steps = 2502  # an epoch, at this batch size
    config.evaluate_every_steps = 2502
    config.log_every_steps = 50
    return config
