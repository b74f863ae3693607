"""What the stages of a FocalNet are made of: patch embeddings, blocks, and the stage.

A block stands around the operator, `focalnet_jax/models/modulation.py`.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from focalnet_jax.models import initializers
from focalnet_jax.models.layers import Dense, DropPath, LayerNorm, Weights
from focalnet_jax.models.modulation import (
    Modulation,
    Outputs,
    accepted,
    takes_norm,
    valid_for,
)
from focalnet_jax.ops.canvas import size_after, valid_after
from focalnet_jax.ops.positionwise import Layers, positionwise
from focalnet_jax.placement import place_map, sizes_divide

# What each block stores for the backward pass, which computes the rest again. "dots"
# stores the results of matrix products, so norms, GELUs and depthwise convolutions are
# computed twice. Kernels for TPUs are no matrix products, so there it is as "full".
REMAT_POLICIES = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class FocalNetBlock(nn.Module):
    """Modulation and MLP, each on a residual branch.

    The first branch is `x + scale(modulation(norm1(x)))`, and with `use_postln`
    `x + scale(norm1(modulation(x)))`. The second is the same with `mlp` and `norm2`.

    Attributes:
      modulation: makes the block's operator, such as a `functools.partial` of
        `FocalModulation` that sets its options. The block calls it with `name` and, if
        it takes them, `dtype` and `param_dtype`.
      mlp_ratio: width of the MLP over the width of the block.
      layerscale_value: what the scales of the channels begin as; None for no scales.
      use_postln: puts the norms after the operator and the MLP, not before them.
      drop_rate: dropout in the MLP.
      drop_path_rate: probability of dropping each branch.
      implementation: of the layers around the operator, see `ops/positionwise.py`.
      dtype, param_dtype: of the computation and of the parameters.
    """

    modulation: Modulation
    mlp_ratio: float = 4.0
    layerscale_value: float | None = None
    use_postln: bool = False
    drop_rate: float = 0.0
    drop_path_rate: float | jax.Array = 0.0
    implementation: str = "auto"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, valid: jax.Array | None = None
    ) -> tuple[jax.Array, Outputs]:
        """Maps `[b, *spatial, c]` to the same shape.

        Args:
          x: the map.
          train: whether there is dropout.
          valid: int `[b, rank]`, the size of each image on the canvas `x`; None for the
            size of the canvas.

        Returns:
          The result, and the outputs of the operator.
        """
        batch, channels = x.shape[0], x.shape[-1]
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)

        def scale(name):
            if self.layerscale_value is None:
                return None
            value = nn.initializers.constant(self.layerscale_value)
            return self.param(name, value, (channels,), self.param_dtype)

        norm1, norm2 = (LayerNorm(name=name, **types) for name in ("norm1", "norm2"))
        modulation = self.modulation(
            name="modulation", **accepted(self.modulation, types)
        )
        options = valid_for(modulation, valid, "call")
        if takes_norm(modulation):
            norm = None if self.use_postln else norm1
            options |= dict(norm=norm, as_branch=True)
            (x, y), outputs = modulation(x, train=train, **options)
        else:
            normalized = x if self.use_postln else norm1(x)
            y, outputs = modulation(normalized, train=train, **options)

        mlp = Mlp(
            int(channels * self.mlp_ratio),
            drop_rate=self.drop_rate,
            name="mlp",
            **types,
        )
        fc1, fc2, dropouts = mlp(channels)
        weights = BlockWeights(
            norm1.weights(channels) if self.use_postln else None,
            scale("gamma_1"),
            norm2.weights(channels),
            fc1,
            fc2,
            scale("gamma_2"),
        )
        keep = [DropPath(self.drop_path_rate)(batch, train=train) for _ in range(2)]
        dropout = None
        if self.drop_rate and train:
            dropout = _in_turn(dropouts)
        [x] = positionwise(
            postnorm_branches if self.use_postln else prenorm_branches,
            (x, y),
            weights,
            images=keep,
            dropout=dropout,
            dtype=self.dtype,
            implementation=self.implementation,
        )
        return x, outputs


def _in_turn(dropouts: Sequence[nn.Dropout]) -> Callable[[jax.Array], jax.Array]:
    """A dropout that is another one each time that it is called."""
    order = iter(dropouts)
    return lambda x: next(order)(x, deterministic=False)


class BlockWeights(NamedTuple):
    """Weights of a block, but for those of its operator."""

    norm1: Weights | None
    gamma_1: jax.Array | None
    norm2: Weights
    fc1: Weights
    fc2: Weights
    gamma_2: jax.Array | None


class Mlp(nn.Module):
    """Holds two dense layers, `c -> hidden_dim -> c` channels, and their dropouts.

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
    def __call__(self, channels: int) -> tuple[Weights, Weights, list[nn.Dropout]]:
        """The weights of each layer, and the dropout after each."""
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        fc1 = Dense(self.hidden_dim, name="fc1", **types)
        fc2 = Dense(channels, name="fc2", **types)
        dropouts = [nn.Dropout(self.drop_rate) for _ in range(2)]
        return fc1.weights(channels), fc2.weights(self.hidden_dim), dropouts


# The functions of positions of a block, see `ops/positionwise.py`. They add to `x` the
# branch of the operator, `y`, and that of the MLP.


def prenorm_branches(
    layers: Layers, maps, images, weights: BlockWeights
) -> list[jax.Array]:
    (x, y), (keep_1, keep_2) = maps, images
    x = layers.add_branch(x, y, scale=weights.gamma_1, keep=keep_1)
    y = _mlp(layers, layers.layer_norm(x, *weights.norm2), weights)
    return [layers.add_branch(x, y, scale=weights.gamma_2, keep=keep_2)]


def postnorm_branches(
    layers: Layers, maps, images, weights: BlockWeights
) -> list[jax.Array]:
    (x, y), (keep_1, keep_2) = maps, images
    assert weights.norm1 is not None  # It is None for the other order alone.
    y = layers.layer_norm(y, *weights.norm1)
    x = layers.add_branch(x, y, scale=weights.gamma_1, keep=keep_1)
    y = layers.layer_norm(_mlp(layers, x, weights), *weights.norm2)
    return [layers.add_branch(x, y, scale=weights.gamma_2, keep=keep_2)]


def _mlp(layers: Layers, x: jax.Array, weights: BlockWeights) -> jax.Array:
    x = layers.keep(layers.dense(x, *weights.fc1))
    x = layers.dropout(layers.gelu(x))
    return layers.dropout(layers.dense(x, *weights.fc2))


class PatchEmbed(nn.Module):
    """A strided convolution and a LayerNorm: the stem, and each downsampling.

    Attributes:
      features: channels of the result.
      kernel_size, stride, padding: of the convolution, for each spatial axis. A result
        whose size is not a whole number is rounded down, as in PyTorch.
      pad_to: pads the end of each spatial axis with zeros to a multiple of this size
        before the convolution, as `maybe_pad` of transformers; 1 for no padding.
      implementation: of the LayerNorm, see `ops/positionwise.py`.
      dtype, param_dtype: of the computation and of the parameters.
    """

    features: int
    kernel_size: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    pad_to: Sequence[int]
    implementation: str = "auto"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.nowrap
    def output_shape(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """The spatial shape of the result for that of the input."""
        return tuple(
            size_after(size, kernel_size=k, stride=s, padding=p, pad_to=multiple)
            for size, k, s, p, multiple in zip(
                spatial, self.kernel_size, self.stride, self.padding, self.pad_to
            )
        )

    @nn.nowrap
    def valid_after(self, valid: jax.Array) -> jax.Array:
        """The size of each image on the result for that on the input, `[b, rank]`."""
        return valid_after(
            valid,
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            pad_to=self.pad_to,
        )

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[b, *spatial, c]` to `[b, *smaller, features]`."""
        spatial, channels = x.shape[1:-1], x.shape[-1]
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        after = [(0, -size % multiple) for size, multiple in zip(spatial, self.pad_to)]
        if any(margin != (0, 0) for margin in after):
            x = jnp.pad(x, [(0, 0), *after, (0, 0)])
        # XLA's partitioner gets the kernel's gradient wrong where a map is split into
        # unequal parts.
        whole = not sizes_divide(x.shape[1:-1], self.output_shape(spatial))
        kernel, bias = ConvWeights(
            (*self.kernel_size, channels, self.features),
            param_dtype=self.param_dtype,
            name="proj",
        )()
        x = jax.lax.conv_general_dilated(
            place_map(x, whole=whole).astype(self.dtype),
            kernel.astype(self.dtype),
            self.stride,
            [(padding, padding) for padding in self.padding],
            dimension_numbers=_channels_last(x.ndim),
        )
        x = place_map(x, whole=whole)
        [x] = positionwise(
            biased_norm,
            x,
            (bias, LayerNorm(name="norm", **types).weights(self.features)),
            dtype=self.dtype,
            implementation=self.implementation,
        )
        return place_map(x)


class ConvWeights(nn.Module):
    """Holds the weights of a convolution.

    Attributes:
      shape: of the kernel, `[*kernel_size, c, features]`.
      param_dtype: of the parameters.
    """

    shape: tuple[int, ...]
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> Weights:
        *inputs, features = self.shape
        bias = initializers.conv_bias(math.prod(inputs))
        return (
            self.param("kernel", initializers.conv_kernel, self.shape, self.param_dtype),
            self.param("bias", bias, (features,), self.param_dtype),
        )


def _channels_last(rank: int) -> jax.lax.ConvDimensionNumbers:
    """The order of axes of maps, and of kernels, for maps of that rank."""
    last = rank - 1
    spatial = tuple(range(1, last))
    maps = 0, last, *spatial
    return jax.lax.ConvDimensionNumbers(maps, (last, last - 1, *range(last - 1)), maps)


def biased_norm(layers: Layers, x, images, weights) -> list[jax.Array]:
    """A function of positions, see `ops/positionwise.py`."""
    bias, norm = weights
    return [layers.layer_norm(x + bias, *norm)]


class FocalNetStage(nn.Module):
    """The blocks of one resolution, and the downsampling to the next.

    Attributes:
      block: makes a block when it is given `drop_path_rate`.
      drop_path_rates: the rate of each block.
      make_downsample: makes the downsampling; None for the last stage, which has none.
      remat: a name in `REMAT_POLICIES`.
      scan: compiles one block, and runs it with the parameters of each block in turn.
    """

    block: functools.partial
    drop_path_rates: Sequence[float]
    make_downsample: Callable[..., nn.Module] | None
    remat: str = "none"
    scan: bool = False

    def setup(self):
        self.blocks = [self.block(drop_path_rate=rate) for rate in self.drop_path_rates]
        self.downsample = self.make_downsample() if self.make_downsample else None

    def __call__(
        self, x: jax.Array, *, train: bool, valid: jax.Array | None = None
    ) -> tuple[jax.Array, Outputs]:
        """Maps `[b, *spatial, c]` to the same shape, before the downsampling.

        Args:
          x, train, valid: as for `FocalNetBlock`.
        """
        if self.scan and len(self.blocks) > 1 and not self.is_initializing():
            return self._scan_blocks(x, train=train, valid=valid)

        def run(block, x):
            x, inner = block(x, train=train, valid=valid)
            return place_map(x), inner

        if self.remat != "none":
            run = nn.remat(run, policy=REMAT_POLICIES[self.remat])
        outputs: Outputs = {}
        for index, block in enumerate(self.blocks):
            x, inner = run(block, x)
            outputs |= _block_outputs(index, x, inner)
        return x, outputs

    def _scan_blocks(
        self, x: jax.Array, *, train: bool, valid: jax.Array | None
    ) -> tuple[jax.Array, Outputs]:
        """Computes the same as `__call__`, in a loop that is compiled once.

        The parameters of the blocks are stacked here and nowhere else, so their tree is
        the same with and without `scan`.
        """
        count = len(self.blocks)
        trees = [block.variables["params"] for block in self.blocks]
        params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
        keys = {
            name: jax.random.split(self.make_rng(name), count)
            for name in ("drop_path", "dropout")
            if self.has_rng(name)
        }
        drops = any(self.drop_path_rates)
        rates = jnp.array(self.drop_path_rates) if drops else None

        def run(x, block):
            params, rate, keys = block
            module = self.block(drop_path_rate=rate if drops else 0.0, parent=None)
            x, inner = module.apply(
                {"params": params}, x, train=train, valid=valid, rngs=keys
            )
            x = place_map(x)
            return x, (x, inner)

        if self.remat != "none":
            # The scan itself keeps XLA from merging the two computations of a block.
            policy = REMAT_POLICIES[self.remat]
            run = jax.checkpoint(run, policy=policy, prevent_cse=False)
        x, blocks = jax.lax.scan(run, x, (params, rates, keys))
        outputs: Outputs = {}
        for index in range(count):
            outputs |= _block_outputs(
                index, *jax.tree.map(operator.itemgetter(index), blocks)
            )
        return x, outputs


def _block_outputs(index: int, x: jax.Array, inner: Outputs) -> Outputs:
    named = {f"block{index}/{name}": value for name, value in inner.items()}
    return named | {f"block{index}": x}
