"""FocalNets (Focal Modulation Networks, arXiv 2203.11926) in JAX."""

from focalnet_jax import convert
from focalnet_jax.heads import create_segmenter
from focalnet_jax.models import (
    count_multiply_adds,
    count_params,
    create_backbone,
    create_masked_model,
    create_model,
    list_models,
)
from focalnet_jax.pretrained import load_model

__version__ = "0.1.0"

__all__ = [
    "convert",
    "count_multiply_adds",
    "count_params",
    "create_backbone",
    "create_masked_model",
    "create_model",
    "create_segmenter",
    "list_models",
    "load_model",
]
