"""The official code's initialisation, which is PyTorch's with one exception.

microsoft/FocalNet draws the weights of `nn.Linear` from a truncated normal distribution.
It leaves the weights and biases of `nn.Conv2d` as PyTorch makes them
(`FocalNet._init_weights`).
"""

import math

import jax
from flax import linen as nn

# torch's `trunc_normal_(std=0.02)` cuts at -2 and 2, which is a hundred standard
# deviations. Normal numbers in float32 end at 5.5 deviations, so there is nothing to cut.
# Flax's `truncated_normal(0.02)` cuts at two deviations, and its own deviation is 0.0176.
linear_kernel = nn.initializers.normal(0.02)

# Uniform from -b to b, b = 1 / sqrt(fan_in): `kaiming_uniform_(a=sqrt(5))`, as
# `torch.nn.Conv2d` has it.
conv_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def conv_bias(fan_in: int) -> nn.initializers.Initializer:
    """Uniform from -b to b, b = 1 / sqrt(fan_in), as the bias of `torch.nn.Conv2d`.

    Args:
      fan_in: the number of inputs of one output: kernel area times channels in a group.
    """
    bound = 1 / math.sqrt(fan_in)

    def initialize(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)

    return initialize
