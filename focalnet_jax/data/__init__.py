"""Input: data sets, read and transformed by Grain into batches of numpy arrays."""

from focalnet_jax.data.bad_records import BadRecordError, BadRecords
from focalnet_jax.data.images.exact import INTERPOLATIONS
from focalnet_jax.data.images.randaugment import RandAugment
from focalnet_jax.data.images.transforms import (
    PIXELS,
    EvalTransform,
    TrainTransform,
    image_operations,
)
from focalnet_jax.data.pipeline import Batch, eval_batches, train_batches
from focalnet_jax.data.sources.opening import Source, check_label, open_source
from focalnet_jax.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "INTERPOLATIONS",
    "PIXELS",
    "BadRecordError",
    "BadRecords",
    "Batch",
    "EvalTransform",
    "Preprocessing",
    "RandAugment",
    "Source",
    "TrainTransform",
    "check_label",
    "eval_batches",
    "image_operations",
    "open_source",
    "train_batches",
]
