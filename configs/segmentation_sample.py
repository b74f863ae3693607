"""Semantic segmentation on a sample: sea, land and lakes on a picture of the Earth.

python main.py --config=configs/segmentation_sample.py
"""

from focalnet_jax.errors import SetupError
from focalnet_jax.train import default_config


def get_config(variant: str = ""):
    if variant:
        raise SetupError(
            f"configs/segmentation_sample.py has no variants, given {variant!r}"
        )
    config = default_config("semantic_segmentation")
    config.num_steps = 600
    config.batch_size = 8
    config.learning_rate = 1e-3
    config.warmup_learning_rate = 1e-6
    config.final_learning_rate = 0.0
    config.learning_rate_batch_size = 0
    config.schedule = "poly"
    config.warmup_steps = 50
    config.weight_decay = 0.05

    config.model.name = "focalnet_tiny_srf"
    config.model.num_classes = 3
    config.model.depths = (1, 1, 2, 1)
    config.model.embed_dim = 32
    config.model.drop_path_rate = 0.1
    config.model.head_channels = 64
    config.model.auxiliary_channels = 32

    config.data.name = "satellite"
    config.data.train_split = "train"
    config.data.test_split = "test"
    config.data.scale = (128, 128)
    config.data.crop_size = 128
    config.data.mean = (0.5, 0.5, 0.5)
    config.data.std = (0.25, 0.25, 0.25)

    config.checkpoint.every_steps = 200
    config.evaluate_every_steps = 200
    config.log_every_steps = 10
    return config
