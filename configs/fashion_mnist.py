"""A small FocalNet on Fashion-MNIST: a real data set, big enough to see learning.

    python -m focalnet_jax.data.prepare idx:DIR --name=fashion_mnist
    python main.py --config=configs/fashion_mnist.py

DIR holds the four files of https://github.com/zalandoresearch/fashion-mnist, 30 MB; or
let TFDS fetch them, which needs TensorFlow: `pip install '.[prepare]'` and
`tfds build fashion_mnist --file_format=array_record`. Debian has them as a package,
dataset-fashion-mnist.

91.16 % of the 10,000 test images are classified rightly (top-1), after 16 minutes on two
CPU cores. The accuracy after each epoch is in benchmarks/results/fashion_mnist.jsonl.
"""

from focalnet_jax.errors import SetupError
from focalnet_jax.train import default_config


def get_config(variant: str = ""):
    if variant:
        raise SetupError(f"configs/fashion_mnist.py has no variants, given {variant!r}")
    config = default_config()
    config.num_epochs = 12.0
    config.batch_size = 96
    config.learning_rate = 6e-3
    config.warmup_learning_rate = 1e-5
    config.final_learning_rate = 1e-5
    config.learning_rate_batch_size = 96
    config.warmup_epochs = 0.5
    config.adam_b2 = 0.97  # there are few steps
    config.label_smoothing = 0.0

    config.model.name = "focalnet_tiny_srf"
    config.model.num_classes = 10
    config.model.depths = (1, 1)
    config.model.embed_dim = 64
    config.model.focal_levels = (2, 1)
    config.model.focal_windows = (3, 3)
    config.model.use_conv_embed = True

    config.data.name = "fashion_mnist"
    config.data.num_train_examples = 60_000
    config.data.test_split = "test"
    config.data.image_size = 28
    config.data.crop_area = (0.9, 1.0)
    config.data.crop_aspect = (0.95, 1.05)
    config.data.eval_crop = 1.0
    config.data.threads = 1  # the images are so small that more get in each other's way
    config.data.mean = (0.5, 0.5, 0.5)
    config.data.std = (0.5, 0.5, 0.5)

    config.checkpoint.every_steps = 625  # an epoch
    config.evaluate_every_steps = 625
    config.log_every_steps = 25
    return config
