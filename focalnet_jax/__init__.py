"""FocalNets (Focal Modulation Networks, arXiv 2203.11926) in JAX."""

from focalnet_jax.models import (
    count_multiply_adds,
    count_params,
    create_backbone,
    create_model,
    list_models,
)

__all__ = [
    "count_multiply_adds",
    "count_params",
    "create_backbone",
    "create_model",
    "list_models",
]
