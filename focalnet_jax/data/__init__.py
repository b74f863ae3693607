"""Input: TFDS data sets, read and transformed by Grain into batches of numpy arrays."""

from focalnet_jax.data.pipeline import Batch, Shard, eval_batches, train_batches
from focalnet_jax.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from focalnet_jax.data.sources import Source, check_label, open_source
from focalnet_jax.data.transforms import INTERPOLATIONS, EvalTransform, TrainTransform

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "INTERPOLATIONS",
    "Batch",
    "EvalTransform",
    "Preprocessing",
    "Shard",
    "Source",
    "TrainTransform",
    "check_label",
    "eval_batches",
    "open_source",
    "train_batches",
]
