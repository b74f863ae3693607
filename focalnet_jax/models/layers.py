"""Layers that the blocks of a FocalNet, and operators in them, are made of."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from focalnet_jax.models import initializers
from focalnet_jax.ops.dense_product import dense
from focalnet_jax.ops.layer_norm import layer_norm

Weights = tuple[jax.Array, jax.Array]


class LayerNorm(nn.Module):
    """Normalises each position over its channels, `[..., c] -> [..., c]`.

    Attributes:
      dtype, param_dtype: of the result and of the parameters.
    """

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def __call__(self, x: jax.Array) -> jax.Array:
        return layer_norm(x.astype(self.dtype), *self.weights(x.shape[-1]))

    @nn.compact
    def weights(self, channels: int) -> Weights:
        """Scale and bias, `[c]`."""
        scale = self.param("scale", nn.initializers.ones, (channels,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
        return scale, bias


class Dense(nn.Module):
    """A dense layer, `[..., c] -> [..., features]`, that begins as in the official code.

    Attributes:
      features: channels of the result.
      kernel_init, bias_init: make the parameters.
      dtype, param_dtype: of the computation and of the parameters.
    """

    features: int
    kernel_init: nn.initializers.Initializer = initializers.linear_kernel
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def __call__(self, x: jax.Array) -> jax.Array:
        return dense(x.astype(self.dtype), *self.weights(x.shape[-1]))

    @nn.compact
    def weights(self, channels: int) -> Weights:
        """Kernel and bias, `[channels, features]` and `[features]`."""
        shape = channels, self.features
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, shape[1:], self.param_dtype)
        return kernel, bias


class DropPath(nn.Module):
    """Stochastic depth: drops the whole branch for a random part of the batch.

    Huang et al., arXiv 1603.09382. What is kept is scaled up, as in timm's `DropPath`.

    Attributes:
      rate: the probability of dropping; an array where one program serves several rates.
    """

    rate: float | jax.Array

    @nn.compact
    def __call__(self, batch: int, *, train: bool) -> jax.Array | None:
        """What the branch of each image is multiplied by, `[batch]`; None for nothing."""
        if not train or (isinstance(self.rate, (int, float)) and self.rate == 0):
            return None
        keep_rate = 1 - self.rate
        keep = jax.random.bernoulli(self.make_rng("drop_path"), keep_rate, (batch,))
        return jnp.where(keep, 1 / keep_rate, 0.0)
