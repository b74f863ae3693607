"""Input: data sets, read and transformed by Grain into batches of numpy arrays."""

from focalnet_jax.data.bad_records import BadRecordError, BadRecords, WrongRecordError
from focalnet_jax.data.images.exact import INTERPOLATIONS
from focalnet_jax.data.images.randaugment import RandAugment
from focalnet_jax.data.images.segmentation import (
    EvalSegmentationTransform,
    TrainSegmentationTransform,
    resized_size,
    segmentation_operations,
)
from focalnet_jax.data.images.transforms import (
    PIXELS,
    EvalTransform,
    TrainTransform,
    image_operations,
)
from focalnet_jax.data.labels import Labels
from focalnet_jax.data.mask_labels import MaskLabels
from focalnet_jax.data.pipeline import (
    Batch,
    EvalRows,
    eval_batches,
    eval_batches_of,
    train_batches,
)
from focalnet_jax.data.records import Records
from focalnet_jax.data.sources.mask_classes import MaskClasses
from focalnet_jax.data.sources.opening import open_source
from focalnet_jax.data.sources.segmentation import (
    SegmentationSource,
    open_segmentation,
)
from focalnet_jax.data.sources.source import Source

__all__ = [
    "INTERPOLATIONS",
    "PIXELS",
    "BadRecordError",
    "BadRecords",
    "Batch",
    "EvalRows",
    "EvalSegmentationTransform",
    "EvalTransform",
    "Labels",
    "MaskClasses",
    "MaskLabels",
    "RandAugment",
    "Records",
    "SegmentationSource",
    "Source",
    "TrainSegmentationTransform",
    "TrainTransform",
    "WrongRecordError",
    "eval_batches",
    "eval_batches_of",
    "image_operations",
    "open_segmentation",
    "open_source",
    "resized_size",
    "segmentation_operations",
    "train_batches",
]
