"""Layers that heads for dense prediction are made of.

Reference code: mmcv, `mmcv/cnn/bricks/conv_module.py`, and `torch.nn.BatchNorm2d`.

Maps are `[b, h, w, c]`. With `valid`, int32 `[b, 2]`, the images are smaller than their
canvas: what lies below and to the right of that height and width doesn't count.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from focalnet_jax.ops.canvas import inside, zero_outside
from focalnet_jax.ops.dense_product import dense_product
from focalnet_jax.placement import place_map, sizes_divide

# `kaiming_normal_(mode="fan_out", nonlinearity="relu")` of torch, which isn't truncated.
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class BatchNorm(nn.Module):
    """Normalises each channel over a batch, as `torch.nn.BatchNorm2d`.

    Ioffe and Szegedy, arXiv 1502.03167. The conventions are torch's:

    - `momentum` is the share of the newest batch in the running averages. (In Flax's
      `nn.BatchNorm` it is the share of what was there before.)
    - A batch is normalised by its biased variance, the sum of squares over n. The running
      average is one of unbiased variances, with n - 1 in place of n. (Flax has the biased
      one in both places.)
    - `count` is the number of batches that the averages have taken in. It isn't read.

    A batch that is split over devices is normalised by the statistics of the whole batch,
    as torch's `SyncBatchNorm` does.

    Attributes:
      momentum: see above.
      epsilon: is added to the variance.
      dtype, param_dtype: of the result, and of the parameters and averages. Statistics
        are computed in float32 at least.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, valid: jax.Array | None = None
    ) -> jax.Array:
        """Maps `[b, h, w, c]` to the same shape.

        In training the collection `batch_stats` has to be mutable.

        Raises:
          ValueError: one position alone, of which there is no variance, in training.
        """
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        averages = [
            self.variable("batch_stats", name, make, None, shape, self.param_dtype)
            for name, make in (("mean", zeros), ("var", ones))
        ]
        count = self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if train:
            mean, variance, number = _statistics(wide, valid)
            if not self.is_initializing():
                unbiased = variance * (number / jnp.maximum(number - 1, 1))
                for average, new in zip(averages, (mean, unbiased)):
                    old = average.value
                    average.value = old + self.momentum * (new.astype(old.dtype) - old)
                count.value = count.value + 1
        else:
            mean, variance = (average.value for average in averages)
        factor = scale * jax.lax.rsqrt(variance + self.epsilon)
        return ((wide - mean) * factor + bias).astype(self.dtype)


def _statistics(
    x: jax.Array, valid: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array | int]:
    """Mean and biased variance of each channel, and the number of positions."""
    if x.size == x.shape[-1]:
        raise ValueError(
            f"BatchNorm has one position for each channel, in a map of shape {x.shape}, "
            "and so no variance: train with 2 images or more at a time"
        )
    axes = range(x.ndim - 1)
    if valid is None:
        mean = x.mean(axes)
        return mean, jnp.square(x - mean).mean(axes), x.size // x.shape[-1]
    is_inside = inside(valid, x.shape[1:-1])
    number = jnp.maximum(is_inside.sum(dtype=x.dtype), 1)
    mean = jnp.where(is_inside, x, 0).sum(axes) / number
    variance = jnp.where(is_inside, jnp.square(x - mean), 0).sum(axes) / number
    return mean, variance, number


class Conv(nn.Module):
    """A convolution with stride 1 that keeps the size of maps.

    Attributes:
      features: channels of the result.
      size: of the kernel, an odd number.
      use_bias: has a bias that begins at zero.
      kernel_init: makes the kernel, `[size, size, c, features]`.
      dtype, param_dtype: of the computation and of the parameters.
    """

    features: int
    size: int
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = kaiming_normal
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[b, h, w, c]` to `[b, h, w, features]`."""
        shape = self.size, self.size, x.shape[-1], self.features
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.size == 1:
            x = dense_product(x, kernel[0, 0])
        else:
            # XLA's partitioner gets the kernel's gradient wrong where a map is split into
            # unequal parts.
            whole = not sizes_divide(x.shape[1:-1])
            x = jax.lax.conv_general_dilated(
                place_map(x, whole=whole),
                kernel,
                window_strides=(1, 1),
                padding="SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        if self.use_bias:
            bias = self.param(
                "bias", nn.initializers.zeros, (self.features,), self.param_dtype
            )
            x = x + bias.astype(self.dtype)
        return place_map(x)


class ConvModule(nn.Module):
    """A convolution without bias, BatchNorm and ReLU, as mmcv's `ConvModule`.

    Attributes:
      features: channels of the result.
      size: of the kernel, an odd number.
      dtype, param_dtype: of the computation and of the parameters.
    """

    features: int
    size: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, valid: jax.Array | None = None
    ) -> jax.Array:
        """Maps `[b, h, w, c]` to `[b, h, w, features]`.

        Raises:
          ValueError: as `BatchNorm`.
        """
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        if self.size > 1:
            x = zero_outside(x, valid)
        x = Conv(self.features, self.size, name="conv", **types)(x)
        return nn.relu(BatchNorm(name="bn", **types)(x, train=train, valid=valid))
