"""A recipe with an operator of its own: each position sees the mean of its row."""

import jax.numpy as jnp
from flax import linen as nn

from focalnet_jax.models import MODULATIONS
from focalnet_jax.train import load_recipe


class RowMean(nn.Module):
    focal_level: int

    @nn.compact
    def __call__(self, x, *, train):
        query, context = jnp.split(nn.Dense(2 * x.shape[-1], name="f")(x), 2, axis=-1)
        modulator = context.mean(axis=-2, keepdims=True) * self.focal_level
        return nn.Dense(x.shape[-1], name="proj")(query * modulator), {}


MODULATIONS["row_mean"] = RowMean


def get_config(variant=""):
    config = load_recipe("digits")
    config.model.modulation = "row_mean"
    return config
