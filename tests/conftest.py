"""Set-up that all tests share: eight fake CPU devices, tiny models, prepared digits."""

import os

# Before jax is imported anywhere.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",  # halves the time, which is compilation
    ]
)

import jax
import pytest

from focalnet_jax.data import open_source
from focalnet_jax.train import default_config


@pytest.fixture
def float64():
    """Arrays may be float64 in this test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A directory in which the digits are prepared."""
    directory = str(tmp_path_factory.mktemp("tfds"))
    open_source("digits", split="train", data_dir=directory)
    return directory


@pytest.fixture
def tiny_config(data_dir):
    """A run on the digits that takes seconds: dropout, drop path and shuffling on."""
    config = default_config()
    config.batch_size = 16
    config.num_steps = 6
    config.learning_rate = 1e-2
    config.learning_rate_batch_size = 0
    config.warmup_epochs = 0.02
    config.model.num_classes = 10
    config.model.depths = (1, 1)
    config.model.embed_dim = 8
    config.model.focal_levels = (2, 1)
    config.model.focal_windows = (3, 3)
    config.model.drop_path_rate = 0.3
    config.model.drop_rate = 0.1
    config.data.name = "digits"
    config.data.data_dir = data_dir
    config.data.test_split = "test"
    config.data.image_size = 16
    config.checkpoint.every_steps = 3
    config.log_every_steps = 1
    return config
