r"""Fine-tuning on ImageNet-1K, from weights of ImageNet-22K or from others.

    python -m focalnet_jax.convert focalnet_large_lrf_384.pth start --head=in22k_to_in1k
    python main.py --config=configs/finetune.py:large_fl3 --config.init_from=start
    python main.py --config=configs/finetune.py:base_lrf,224 --config.init_from=RUN \
        --config.reset_head=True --config.model.use_layerscale=True
    python main.py --config=configs/finetune.py:tiny_lrf,224 --config.init_from=RUN \
        --config.reset_head=True --config.model.num_classes=10 \
        --config.data.name=cifar10 --config.data.test_split=test \
        --config.data.num_train_examples=50000

The first command takes a file of the official release. RUN is the workdir of another run;
the last command fine-tunes it on CIFAR-10. The image size stands after a comma, such as
224 or 360x880; it is 384 by default. Models that were pretrained with configs/in22k.py
have LayerScale, as the command for base_lrf says.

The official release has no recipe for this. The values are those of the paper for
FocalNet-B and FocalNet-L (arXiv 2203.11926, Table 19): batch 1,024, 30 epochs, a rate
from 3e-5 to 5e-6 without warmup, a weight decay of 1e-8, stochastic depth of 0.3, and
neither mixup nor cutmix. The paper reports these top-1 accuracies after pretraining on
ImageNet-22K at 224 pixels (Table 4). They are not measured here:

    FocalNet-B     88.1 M parameters     85.6 at 224     86.5 at 384
    FocalNet-L    197.1 M parameters     86.5 at 224     87.3 at 384

By their parameters both are SRF models with patches that do not overlap. The released
large and xlarge weights are of other models, and for them nothing is published.
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
    config.batch_size = 1024
    config.num_epochs = 30.0

    config.learning_rate = 3e-5
    config.final_learning_rate = 5e-6
    config.learning_rate_batch_size = 1024
    config.warmup_epochs = 0.0

    config.weight_decay = 1e-8
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

    config.checkpoint.every_steps = 1251  # an epoch, at this batch size
    config.evaluate_every_steps = 1251
    config.log_every_steps = 50
    return config
