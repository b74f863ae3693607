"""Layers that the blocks of a FocalNet, and operators in them, are made of."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from focalnet_jax.models import initializers
from focalnet_jax.ops import gelu

# The epsilon is torch's; that of Flax is 1e-6. Flax's default way to the variance, the
# mean of squares minus the square of the mean, loses digits where the mean is large.
LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)

# A dense layer whose weights begin as in the official code.
Dense = functools.partial(nn.Dense, kernel_init=initializers.linear_kernel)


class Mlp(nn.Module):
    """Two dense layers with a GELU between them, `[..., c] -> [..., c]`.

    Attributes:
      hidden_dim: channels between the two layers.
      drop_rate: dropout after each layer.
      dtype, param_dtype: of the computation and of the parameters.
    """

    hidden_dim: int
    drop_rate: float = 0.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        y = gelu(Dense(self.hidden_dim, name="fc1", **types)(x))
        y = nn.Dropout(self.drop_rate)(y, deterministic=not train)
        y = Dense(x.shape[-1], name="fc2", **types)(y)
        return nn.Dropout(self.drop_rate)(y, deterministic=not train)


class DropPath(nn.Module):
    """Stochastic depth: drops the whole branch for a random part of the batch.

    Huang et al., arXiv 1603.09382. What is kept is scaled up, as in timm's `DropPath`.

    Attributes:
      rate: the probability of dropping; an array where one program serves several rates.
    """

    rate: float | jax.Array

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if not train or (isinstance(self.rate, (int, float)) and self.rate == 0):
            return x
        keep_rate = 1 - self.rate
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        keep = jax.random.bernoulli(self.make_rng("drop_path"), keep_rate, shape)
        return jnp.where(keep, x / jnp.asarray(keep_rate, x.dtype), 0)
