"""Layers that the blocks of a FocalNet, and operators in them, are made of."""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from focalnet_jax.models import initializers
from focalnet_jax.ops import gelu
from focalnet_jax.ops.dense_product import dense_product
from focalnet_jax.ops.fusion import cotangent_written_once
from focalnet_jax.ops.layer_norm import layer_norm


class LayerNorm(nn.Module):
    """Normalises each position over its channels, `[..., c] -> [..., c]`.

    Attributes:
      epsilon: is added to the variance. The default is torch's; that of Flax is 1e-6.
      dtype, param_dtype: of the result and of the parameters.
    """

    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        return layer_norm(x.astype(self.dtype), scale, bias, epsilon=self.epsilon)


class Dense(nn.Dense):
    """A dense layer, `[..., c] -> [..., d]`, that begins as in the official code."""

    kernel_init: nn.initializers.Initializer = initializers.linear_kernel
    dot_general: Callable = dense_product

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return cotangent_written_once(super().__call__(inputs))


class SplitDense(Dense):
    """A dense layer whose output is wanted in parts: `[..., c] -> [..., d]` for each.

    Each part is a product of its own with its columns of the one kernel. So no part is
    cut out of a wider map, and none has a width that a matrix unit dislikes because of
    another part.

    Attributes:
      parts: the channels of each part; they add up to `features`.
    """

    parts: Sequence[int] = ()

    @nn.compact
    def __call__(self, inputs: jax.Array) -> list[jax.Array]:
        chex.assert_equal(sum(self.parts), self.features)
        shape = inputs.shape[-1], self.features
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, shape[1:], self.param_dtype)
        product = self.dot_general or jax.lax.dot_general
        axes = ((inputs.ndim - 1,), (0,)), ((), ())
        ends = np.cumsum(self.parts)[:-1]

        def part(kernel, bias):
            x, kernel, bias = nn.dtypes.promote_dtype(
                inputs, kernel, bias, dtype=self.dtype
            )
            return cotangent_written_once(product(x, kernel, axes) + bias)

        # Cut before they are cast: so the parts of the gradient are joined uncast.
        kernels, biases = jnp.split(kernel, ends, axis=-1), jnp.split(bias, ends)
        return [part(kernel, bias) for kernel, bias in zip(kernels, biases)]


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
