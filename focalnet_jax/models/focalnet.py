"""FocalNet in Flax Linen.

Paper: Yang et al., "Focal Modulation Networks", arXiv 2203.11926.
Reference code: microsoft/FocalNet, `classification/focalnet.py`.

    images [b, h, w, 3]
      -> patch_embed                      [b, h/4, w/4, c]        "stem"
      -> layers_0: blocks                 [b, h/4, w/4, c]        "stage0"
                   downsample             [b, h/8, w/8, 2c]
      -> layers_1 ... layers_3: blocks    [b, h/32, w/32, 8c]     "stage3"
      -> norm, mean over space            [b, 8c]                 "pre_logits"
      -> head                             [b, classes]

Maps are channels last throughout. The parameters mirror the official names:

    patch_embed/{proj,norm}                      convolution, LayerNorm
    layers_{s}/blocks_{b}/norm1, norm2           LayerNorm
    layers_{s}/blocks_{b}/modulation/f           dense: query, context and gates
    layers_{s}/blocks_{b}/modulation/focal_layers_{l}/kernel     [k, k, 1, c]
    layers_{s}/blocks_{b}/modulation/h           dense: the modulator
    layers_{s}/blocks_{b}/modulation/proj        dense
    layers_{s}/blocks_{b}/modulation/ln          with use_postln_in_modulation
    layers_{s}/blocks_{b}/gamma_1, gamma_2       with use_layerscale
    layers_{s}/blocks_{b}/mlp/{fc1,fc2}          dense
    layers_{s}/downsample/{proj,norm}            for all but the last stage
    norm, head                                   classifier
    norm0, norm1, ...                            backbone, one an output stage

Dense and convolution leaves are `kernel` and `bias`, LayerNorm's `scale` and `bias`.
"""

import functools
import itertools
import operator
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from focalnet_jax.models import initializers
from focalnet_jax.ops import aggregate_context, gelu
from focalnet_jax.placement import height_divides, place_map

Outputs = dict[str, jax.Array]

# What of a block is stored for the backward pass, which recomputes the rest. "dots": what
# matrix products give; norms, GELUs and depthwise convolutions are done again.
REMAT_POLICIES = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}

# torch's default; Flax's is 1e-6. The mean of squares minus the square of the mean,
# Flax's other default, loses digits where the mean is large.
LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)


class FocalModulation(nn.Module):
    """Focal modulation: each position's query is scaled by its gathered context.

    Paper, equation 6: `y = q(x) * h(sum_l gate_l * context_l)`. Works on maps of any
    number of spatial axes; the kernels then have as many.

    Attributes:
      focal_level: number of depthwise levels; the global level comes on top.
      focal_window: kernel size of the first level.
      focal_factor: by how much the kernel grows each level.
      normalize_modulator: divide the aggregated context by `focal_level + 1`.
      use_postln_in_modulation: LayerNorm before the last projection.
      drop_rate: dropout after the last projection.
      implementation: of the depthwise convolutions, see `focalnet_jax.ops`.
      dtype, param_dtype: of the computation and of the parameters.
    """

    focal_level: int
    focal_window: int
    focal_factor: int = 2
    normalize_modulator: bool = False
    use_postln_in_modulation: bool = False
    drop_rate: float = 0.0
    implementation: str = "auto"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, Outputs]:
        """Maps `[b, *spatial, c]` to the same shape, and its `gates` and `modulator`."""
        channels, spatial_rank = x.shape[-1], x.ndim - 2
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        linear = functools.partial(
            nn.Dense, kernel_init=initializers.linear_kernel, **types
        )

        projected = linear(2 * channels + self.focal_level + 1, name="f")(x)
        query, context, gates = jnp.split(projected, [channels, 2 * channels], axis=-1)

        kernels = []
        for level in range(self.focal_level):
            size = self.focal_factor * level + self.focal_window
            shape = (size,) * spatial_rank + (1, channels)
            kernels.append(
                DepthwiseKernel(shape, name=f"focal_layers_{level}", **types)()
            )
        aggregated = aggregate_context(
            context,
            gates,
            kernels,
            normalize=self.normalize_modulator,
            implementation=self.implementation,
        )
        # A 1x1 convolution in the official code, so initialised as one.
        modulator = nn.Dense(
            channels,
            kernel_init=initializers.conv_kernel,
            bias_init=initializers.conv_bias(channels),
            name="h",
            **types,
        )(aggregated)

        y = query * modulator
        if self.use_postln_in_modulation:
            y = LayerNorm(name="ln", **types)(y)
        y = linear(channels, name="proj")(y)
        y = nn.Dropout(self.drop_rate)(y, deterministic=not train)
        chex.assert_equal_shape([x, y])
        return y, {"gates": gates, "modulator": modulator}


class DepthwiseKernel(nn.Module):
    """Holds the kernel of one focal level; the operator does the convolving."""

    shape: tuple[int, ...]
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> jax.Array:
        kernel = self.param(
            "kernel", initializers.conv_kernel, self.shape, self.param_dtype
        )
        return kernel.astype(self.dtype)


class Mlp(nn.Module):
    """Two dense layers with a GELU between, `[..., c] -> [..., c]`."""

    hidden_dim: int
    drop_rate: float = 0.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        linear = functools.partial(
            nn.Dense,
            kernel_init=initializers.linear_kernel,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        y = gelu(linear(self.hidden_dim, name="fc1")(x))
        y = nn.Dropout(self.drop_rate)(y, deterministic=not train)
        y = linear(x.shape[-1], name="fc2")(y)
        return nn.Dropout(self.drop_rate)(y, deterministic=not train)


class DropPath(nn.Module):
    """Stochastic depth: drops the whole branch for a random part of the batch.

    Huang et al., arXiv 1603.09382; survivors are scaled up, as in timm's `DropPath`.

    Attributes:
      rate: share that is dropped; an array where one program serves several rates.
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


class FocalNetBlock(nn.Module):
    """Modulation and MLP, each on a residual branch.

    Pre-norm: `x + scale(modulation(norm1(x)))`. With `use_postln` the norm comes
    after the branch: `x + scale(norm1(modulation(x)))`. The same for the MLP.

    Attributes:
      modulation: makes the block's operator, by default `FocalModulation` with its
        options filled in; called with `name`, `dtype` and `param_dtype`.
      mlp_ratio: width of the MLP over the width of the block.
      layerscale_value: start of the per-channel scales; None for no scales.
      use_postln: see above.
      drop_rate: dropout in the MLP.
      drop_path_rate: probability of dropping each branch.
      dtype, param_dtype: of the computation and of the parameters.
    """

    modulation: functools.partial
    mlp_ratio: float = 4.0
    layerscale_value: float | None = None
    use_postln: bool = False
    drop_rate: float = 0.0
    drop_path_rate: float | jax.Array = 0.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, Outputs]:
        """Maps `[b, *spatial, c]` to the same shape, and its `gates` and `modulator`."""
        channels = x.shape[-1]
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)

        def scale(y, name):
            if self.layerscale_value is None:
                return y
            value = nn.initializers.constant(self.layerscale_value)
            gamma = self.param(name, value, (channels,), self.param_dtype)
            return y * gamma.astype(self.dtype)

        norm1 = LayerNorm(name="norm1", **types)
        modulation = self.modulation(name="modulation", **types)
        y, outputs = modulation(x if self.use_postln else norm1(x), train=train)
        y = scale(norm1(y) if self.use_postln else y, "gamma_1")
        x = x + DropPath(self.drop_path_rate)(y, train=train)

        norm2 = LayerNorm(name="norm2", **types)
        hidden_dim = int(channels * self.mlp_ratio)
        mlp = Mlp(hidden_dim, drop_rate=self.drop_rate, name="mlp", **types)
        y = mlp(x if self.use_postln else norm2(x), train=train)
        y = scale(norm2(y) if self.use_postln else y, "gamma_2")
        x = x + DropPath(self.drop_path_rate)(y, train=train)
        return x, outputs


class PatchEmbed(nn.Module):
    """A strided convolution and a LayerNorm: the stem, and each downsampling.

    Attributes:
      features: channels of the result.
      kernel_size, stride, padding: of the convolution, the same in height and width;
        sizes that don't divide are floored, as PyTorch does.
      pad_to: pad bottom and right with zeros to a multiple of this first, as
        transformers' `maybe_pad`; 1 for none.
      dtype, param_dtype: of the computation and of the parameters.
    """

    features: int
    kernel_size: int
    stride: int
    padding: int = 0
    pad_to: int = 1
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @staticmethod
    def output_size(
        size: int, *, kernel_size: int, stride: int, padding: int = 0, pad_to: int = 1
    ) -> int:
        """Height or width of the result for that of the input."""
        return _output_size(size + -size % pad_to, kernel_size, stride, padding)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[b, h, w, c]` to `[b, h', w', features]`."""
        _, height, width, channels = x.shape
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        if height % self.pad_to or width % self.pad_to:
            bottom, right = -height % self.pad_to, -width % self.pad_to
            x = jnp.pad(x, [(0, 0), (0, bottom), (0, right), (0, 0)])
        # XLA's partitioner gets the kernel's gradient wrong for unequal parts of a map.
        sizes = self.kernel_size, self.stride, self.padding
        whole = not height_divides(x.shape[1], _output_size(x.shape[1], *sizes))
        x = nn.Conv(
            self.features,
            (self.kernel_size, self.kernel_size),
            strides=self.stride,
            padding=self.padding,
            kernel_init=initializers.conv_kernel,
            bias_init=initializers.conv_bias(self.kernel_size**2 * channels),
            name="proj",
            **types,
        )(place_map(x, whole_height=whole))
        x = place_map(x, whole_height=whole)
        return place_map(LayerNorm(name="norm", **types)(x))


def _output_size(size: int, kernel_size: int, stride: int, padding: int) -> int:
    return (size + 2 * padding - kernel_size) // stride + 1


class FocalNetStage(nn.Module):
    """The blocks of one resolution, and the step to the next.

    Attributes:
      block: makes a block from its `drop_path_rate`.
      drop_path_rates: one a block.
      make_downsample: makes the step to the next stage; None for the last one.
      remat: what of each block the backward pass recomputes, see `REMAT_POLICIES`.
      scan: compile one block, and run it over the parameters of all.
    """

    block: functools.partial
    drop_path_rates: Sequence[float]
    make_downsample: functools.partial | None
    remat: str = "none"
    scan: bool = False

    def setup(self):
        self.blocks = [self.block(drop_path_rate=rate) for rate in self.drop_path_rates]
        self.downsample = self.make_downsample() if self.make_downsample else None

    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, Outputs]:
        """Maps `[b, h, w, c]` to the same shape, before the downsampling."""
        if self.scan and len(self.blocks) > 1 and not self.is_initializing():
            return self._scan_blocks(x, train=train)

        def run(block, x):
            x, seen = block(x, train=train)
            return place_map(x), seen

        if self.remat != "none":
            run = nn.remat(run, policy=REMAT_POLICIES[self.remat])
        outputs = {}
        for index, block in enumerate(self.blocks):
            x, seen = run(block, x)
            outputs |= _block_outputs(index, x, seen)
        return x, outputs

    def _scan_blocks(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, Outputs]:
        """The same; parameters are stacked here, so that their tree stays as it is."""
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
            x, seen = module.apply({"params": params}, x, train=train, rngs=keys)
            x = place_map(x)
            return x, (x, seen)

        if self.remat != "none":
            policy = REMAT_POLICIES[self.remat]
            run = jax.checkpoint(
                run, policy=policy, prevent_cse=False
            )  # a scan prevents it
        x, blocks = jax.lax.scan(run, x, (params, rates, keys))
        outputs = {}
        for index in range(count):
            outputs |= _block_outputs(
                index, *jax.tree.map(operator.itemgetter(index), blocks)
            )
        return x, outputs


def _block_outputs(index: int, x: jax.Array, seen: Outputs) -> Outputs:
    named = {f"block{index}/{name}": value for name, value in seen.items()}
    return named | {f"block{index}": x}


class FocalNetEncoder(nn.Module):
    """Stem and stages: everything of a FocalNet but its head.

    The options have the names of the official code. `focalnet_jax.create_model` fills
    them in for the published variants and checks them.

    Attributes:
      depths: blocks, one entry a stage.
      embed_dim: channels of the first stage; each further stage has twice as many.
      focal_levels: focal levels, one entry a stage.
      focal_windows: kernel size of the first focal level, one entry a stage.
      focal_factor: growth of the kernel a level.
      mlp_ratio: width of the MLPs over that of their block.
      patch_size: kernel and stride of the stem; 4 with `use_conv_embed`.
      use_conv_embed: overlapping convolutions, 7x7/4 for the stem and 3x3/2 between
        stages, in place of patches that don't overlap.
      stem_padding: padding of the overlapping stem: 2, or 3 in the official code for
        dense prediction; no shape differs.
      use_layerscale, layerscale_value: per-channel scales on the residual branches.
      use_postln: LayerNorm after, not before, each branch.
      use_postln_in_modulation: LayerNorm inside the modulation.
      normalize_modulator: divide the aggregated context by the number of levels, the
        global one included.
      drop_rate: dropout after the stem, in the modulation and in the MLPs.
      drop_path_rate: stochastic depth of the last block; grows from 0 linearly.
      in_channels: channels of the images.
      pad_to_patch: pad sizes that don't divide in place of flooring them.
      remat: what of each block the backward pass recomputes: `"none"`, `"dots"` (all
        but matrix products) or `"full"`: less memory, more work.
      scan: compile the equal blocks of a stage as one: quicker to compile, slower to
        run. Random draws are others; a block's `params` are all it can have.
      implementation: `"auto"`, `"lax"` or `"shifted"`, see `focalnet_jax.ops`.
      dtype, param_dtype: of the computation and of the parameters.
    """

    depths: Sequence[int]
    embed_dim: int
    focal_levels: Sequence[int]
    focal_windows: Sequence[int]
    focal_factor: int = 2
    mlp_ratio: float = 4.0
    patch_size: int = 4
    use_conv_embed: bool = False
    stem_padding: int = 2
    use_layerscale: bool = False
    layerscale_value: float = 1e-4
    use_postln: bool = False
    use_postln_in_modulation: bool = False
    normalize_modulator: bool = False
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    in_channels: int = 3
    pad_to_patch: bool = False
    remat: str = "none"
    scan: bool = False
    implementation: str = "auto"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self):
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        stem, *downsamples = [
            functools.partial(PatchEmbed, self.embed_dim * 2**index, **options, **types)
            for index, options in enumerate(self._convolutions())
        ]
        self.patch_embed = stem()
        self.stem_dropout = nn.Dropout(self.drop_rate)

        count = sum(self.depths)
        rates = [self.drop_path_rate * i / max(count - 1, 1) for i in range(count)]
        layers = []
        for stage, depth in enumerate(self.depths):
            modulation = functools.partial(
                FocalModulation,
                focal_level=self.focal_levels[stage],
                focal_window=self.focal_windows[stage],
                focal_factor=self.focal_factor,
                normalize_modulator=self.normalize_modulator,
                use_postln_in_modulation=self.use_postln_in_modulation,
                drop_rate=self.drop_rate,
                implementation=self.implementation,
            )
            block = functools.partial(
                FocalNetBlock,
                modulation=modulation,
                mlp_ratio=self.mlp_ratio,
                layerscale_value=self.layerscale_value if self.use_layerscale else None,
                use_postln=self.use_postln,
                drop_rate=self.drop_rate,
                **types,
            )
            stage_rates, rates = rates[:depth], rates[depth:]
            layers.append(
                FocalNetStage(
                    block=block,
                    drop_path_rates=stage_rates,
                    make_downsample=downsamples.pop(0) if downsamples else None,
                    remat=self.remat,
                    scan=self.scan,
                )
            )
        self.layers = layers

    @nn.nowrap
    def _convolutions(self) -> list[dict[str, int]]:
        """Options of the stem, then of each downsampling."""
        if self.use_conv_embed:
            stem = dict(kernel_size=7, stride=4, padding=self.stem_padding)
            downsample = dict(kernel_size=3, stride=2, padding=1)
        else:
            stem = dict(kernel_size=self.patch_size, stride=self.patch_size)
            downsample = dict(kernel_size=2, stride=2)
        if self.pad_to_patch:
            stem["pad_to"] = self.patch_size
            downsample["pad_to"] = 2
        return [stem] + [downsample] * (len(self.depths) - 1)

    @nn.nowrap
    def smallest_image(self) -> int:
        """The least height and width, in pixels, that leave the last stage a map."""

        def reaches_the_end(size):
            for options in self._convolutions():
                size = PatchEmbed.output_size(size, **options)
            return size > 0

        return next(size for size in itertools.count(1) if reaches_the_end(size))

    def __call__(
        self, images: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, Outputs]:
        """Encodes `[b, h, w, in_channels]` float images.

        Returns:
          The last stage's map, and by name: `stem`, `stage{s}` (each before its
          downsampling), `stage{s}/downsample`, `stage{s}/block{b}` and of each block
          `stage{s}/block{b}/gates` and `.../modulator`, all `[b, h', w', ...]`.

        Raises:
          TypeError: images that are not floating point.
          ValueError: images of the wrong rank or number of channels, or too small.
        """
        self._check(images)
        x = place_map(images.astype(self.dtype))
        x = self.patch_embed(x)
        outputs = {"stem": x}
        x = self.stem_dropout(x, deterministic=not train)
        for index, stage in enumerate(self.layers):
            x, seen = stage(x, train=train)
            outputs |= {f"stage{index}/{name}": value for name, value in seen.items()}
            outputs[f"stage{index}"] = x
            if stage.downsample:
                x = outputs[f"stage{index}/downsample"] = stage.downsample(x)
        return x, outputs

    def _check(self, images: jax.Array) -> None:
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise TypeError(
                f"images are {images.dtype}, expected floating point: scale and "
                "normalise them first, for example (images / 255 - mean) / std"
            )
        if images.ndim != 4 or images.shape[-1] != self.in_channels:
            raise ValueError(
                f"images have shape {images.shape}, expected "
                f"[batch, height, width, {self.in_channels}]"
            )
        height, width = images.shape[1:3]
        least = self.smallest_image()
        if min(height, width) < least:
            raise ValueError(
                f"images of {height} x {width} pixels are too small for this net: it "
                f"needs {least} x {least} at least"
                + ("" if self.pad_to_patch else " (or pad_to_patch=True)")
            )


class FocalNet(nn.Module):
    """The classifier: an encoder, a LayerNorm, the mean over space, a dense head.

    The encoder's parameters stand beside the head's, not below them, so that the tree
    mirrors the official code.

    Attributes:
      encoder: stem and stages.
      num_classes: 0 for no head: the pooled features take the place of the logits.
    """

    encoder: FocalNetEncoder
    num_classes: int = 1000

    def setup(self):
        nn.share_scope(self, self.encoder)
        types = dict(dtype=self.encoder.dtype, param_dtype=self.encoder.param_dtype)
        self.norm = LayerNorm(**types)
        if self.num_classes:
            self.head = nn.Dense(
                self.num_classes, kernel_init=initializers.linear_kernel, **types
            )

    def __call__(
        self, images: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, Outputs]:
        """Classifies `[b, h, w, in_channels]` float images.

        Training draws from the random streams `drop_path` and `dropout`, where their
        rates are above 0.

        Returns:
          Logits `[b, num_classes]`, and the encoder's named maps with `pre_logits`,
          `[b, c]`, the pooled features. Under `jit`, what isn't read isn't kept.

        Raises:
          TypeError, ValueError: as `FocalNetEncoder`.
        """
        x, outputs = self.encoder(images, train=train)
        pooled = self.norm(x).mean(axis=(1, 2))
        outputs["pre_logits"] = pooled
        logits = self.head(pooled) if self.num_classes else pooled
        return logits, outputs


class FocalNetBackbone(nn.Module):
    """An encoder that returns its stages' maps, for dense prediction.

    As the official backbones for detection and segmentation: maps before each
    downsampling, each with a LayerNorm of its own, `norm{s}`.

    Attributes:
      encoder: stem and stages.
      out_stages: which stages' maps to return.
      out_norm: whether the maps pass through a LayerNorm.
    """

    encoder: FocalNetEncoder
    out_stages: Sequence[int] = (0, 1, 2, 3)
    out_norm: bool = True

    def setup(self):
        nn.share_scope(self, self.encoder)
        types = dict(dtype=self.encoder.dtype, param_dtype=self.encoder.param_dtype)
        if self.out_norm:
            for stage in self.out_stages:
                setattr(self, f"norm{stage}", LayerNorm(**types))

    def __call__(
        self, images: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, ...]:
        """Maps `[b, h, w, in_channels]` images to `[b, h_s, w_s, c_s]`, one a stage.

        Raises:
          TypeError, ValueError: as `FocalNetEncoder`.
        """
        _, outputs = self.encoder(images, train=train)
        maps = {stage: outputs[f"stage{stage}"] for stage in self.out_stages}
        if self.out_norm:
            maps = {stage: getattr(self, f"norm{stage}")(x) for stage, x in maps.items()}
        return tuple(maps.values())
