"""FocalNets as Flax Linen modules."""

from focalnet_jax.models.encoder import FocalNetEncoder
from focalnet_jax.models.focalnet import FocalNet, FocalNetBackbone
from focalnet_jax.models.masked import MaskedFocalNet
from focalnet_jax.models.modulation import MODULATIONS, FocalModulation
from focalnet_jax.models.size import (
    abstract_params,
    abstract_variables,
    count_multiply_adds,
    count_params,
)
from focalnet_jax.models.variants import (
    create_backbone,
    create_masked_model,
    create_model,
    list_models,
)

__all__ = [
    "MODULATIONS",
    "FocalModulation",
    "FocalNet",
    "FocalNetBackbone",
    "FocalNetEncoder",
    "MaskedFocalNet",
    "abstract_params",
    "abstract_variables",
    "count_multiply_adds",
    "count_params",
    "create_backbone",
    "create_masked_model",
    "create_model",
    "list_models",
]
