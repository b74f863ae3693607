"""Heads for dense prediction, and the models that have them, as Flax Linen modules."""

from focalnet_jax.heads.segmenter import Segmenter, SegmenterLogits, create_segmenter
from focalnet_jax.heads.upernet import FCNHead, UPerNetHead

__all__ = [
    "FCNHead",
    "Segmenter",
    "SegmenterLogits",
    "UPerNetHead",
    "create_segmenter",
]
