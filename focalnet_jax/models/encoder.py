"""Stem and stages of a FocalNet, and all options of a net.

`focalnet_jax/models/focalnet.py` has the models that are made of it, and the names of the
parameters.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from focalnet_jax.models.blocks import FocalNetBlock, FocalNetStage, PatchEmbed
from focalnet_jax.models.modulation import (
    FocalModulation,
    Modulation,
    Outputs,
    accepted,
    find_modulation,
    per_axis,
)
from focalnet_jax.ops.canvas import zero_outside
from focalnet_jax.placement import place_map


class FocalNetEncoder(nn.Module):
    """Stem and stages: everything of a FocalNet but its head.

    The options have the names of the official code, where it has them.
    `focalnet_jax.create_model` fills them in for the published variants and checks them.

    Images, `[b, h, w, c]`, are one kind of input. Sequences, `[b, t, c]`, videos and
    volumes, `[b, t, h, w, c]`, are others: `patch_size` with a number for each spatial
    axis makes a net for them.

    Attributes:
      depths: the number of blocks of each stage.
      embed_dim: channels of the first stage; each further stage has twice as many.
      focal_levels: the number of focal levels in each stage.
      focal_windows: kernel size of the first focal level in each stage: a number, or a
        tuple with one for each spatial axis.
      focal_factor: by how much the kernel grows from level to level: a number, or a tuple
        with one for each spatial axis.
      mlp_ratio: width of an MLP over the width of its block.
      patch_size: kernel and stride of the stem: a number for images, or a tuple with one
        for each spatial axis of the input, such as (4,) for `[b, t, c]`. With
        `use_conv_embed` each is 4, or 1 for an axis that the stem leaves alone.
      downsample_stride: kernel and stride between stages: a number, or a tuple with one
        for each spatial axis.
      use_conv_embed: has convolutions that overlap in place of patches that do not: 7x7
        with stride 4 for the stem, and 3x3 with stride 2 between stages. In general the
        kernel of stride s is 2 s - 1.
      stem_padding: padding of the stem that overlaps: 2, or 3 as in the official code
        for dense prediction. The shapes are the same with both.
      use_layerscale: multiplies each residual branch by scales of its channels.
      layerscale_value: the initial value of these scales.
      use_postln: puts the LayerNorm of each branch at its end, not at its beginning.
      use_postln_in_modulation: puts a LayerNorm inside the modulation.
      normalize_modulator: divides the aggregated context by the number of levels, the
        global one included.
      use_depthwise_bias: has a bias in the convolutions of the focal levels, as
        FocalCodec.
      causal: lets nothing in a map depend on what comes later on its first spatial axis,
        which is time: kernels reach backward, and `causal_window` limits the global
        level, as in FocalCodec-Stream. Patches stay as they are.
      causal_window: only with `causal`: how many positions of a map the global level
        gathers.
      global_axes: the spatial axes, counted from 0, that the global level takes the mean
        over; () for all of them. (1, 2) gives each frame of a video a global level of
        its own. Frames stay apart altogether if all windows are 1 along the first axis,
        such as focal_windows=((1, 3, 3), (1, 3, 3)) with focal_factor=(0, 2, 2).
      drop_rate: dropout after the stem, in the modulation and in the MLPs.
      drop_path_rate: stochastic depth of the last block; the rates of the blocks grow
        linearly from 0.
      in_channels: channels of the images.
      pad_to_patch: pads maps whose size does not divide; without it their last rows and
        columns are left out.
      remat: what the backward pass computes again to save memory: `"none"`, `"dots"`
        for all but the matrix products of each block, or `"full"` for whole blocks. The
        kernels for TPUs are no such products.
      scan: compiles the equal blocks of a stage as one. This is quicker to compile and
        slower to run, and draws other random numbers. Blocks can then have no other
        variables than `params`.
      modulation: the operator of the blocks: a name in `MODULATIONS`, a module class or
        a `functools.partial` of one, see `focalnet_jax/models/modulation.py`.
      implementation: how blocks are computed, above all how focal modulation gathers
        context: a name in `focalnet_jax.ops.IMPLEMENTATIONS`.
      dtype: the type of the numbers that are computed with.
      param_dtype: the type of the numbers that parameters are stored as.
    """

    depths: Sequence[int]
    embed_dim: int
    focal_levels: Sequence[int]
    focal_windows: Sequence[int | Sequence[int]]
    focal_factor: int | Sequence[int] = 2
    mlp_ratio: float = 4.0
    patch_size: int | Sequence[int] = 4
    downsample_stride: int | Sequence[int] = 2
    use_conv_embed: bool = False
    stem_padding: int = 2
    use_layerscale: bool = False
    layerscale_value: float = 1e-4
    use_postln: bool = False
    use_postln_in_modulation: bool = False
    normalize_modulator: bool = False
    use_depthwise_bias: bool = False
    causal: bool = False
    causal_window: int = 512
    global_axes: Sequence[int] = ()
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    in_channels: int = 3
    pad_to_patch: bool = False
    remat: str = "none"
    scan: bool = False
    modulation: str | Modulation = "focal"
    implementation: str = "auto"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self):
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        stem, *downsamples = self._embeddings()
        self.patch_embed = stem()
        self.stem_dropout = nn.Dropout(self.drop_rate)

        count = sum(self.depths)
        rates = [self.drop_path_rate * i / max(count - 1, 1) for i in range(count)]
        layers = []
        for stage, depth in enumerate(self.depths):
            block = functools.partial(
                FocalNetBlock,
                modulation=self._modulation_of(stage),
                mlp_ratio=self.mlp_ratio,
                layerscale_value=self.layerscale_value if self.use_layerscale else None,
                use_postln=self.use_postln,
                drop_rate=self.drop_rate,
                implementation=self.implementation,
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
    def _modulation_of(self, stage: int) -> Modulation:
        """Makes the operators of a stage."""
        make = find_modulation(self.modulation)
        options = dict(
            focal_level=self.focal_levels[stage],
            focal_window=self.focal_windows[stage],
            focal_factor=self.focal_factor,
            use_depthwise_bias=self.use_depthwise_bias,
            causal=self.causal,
            causal_window=self.causal_window,
            global_axes=self.global_axes,
            normalize_modulator=self.normalize_modulator,
            use_postln_in_modulation=self.use_postln_in_modulation,
            drop_rate=self.drop_rate,
            implementation=self.implementation,
        )
        return functools.partial(make, **accepted(make, options))

    @property
    def has_focal_modulation(self) -> bool:
        """Whether the operator is `FocalModulation` itself, and nothing made of it."""
        return find_modulation(self.modulation) is FocalModulation

    @property
    def spatial_rank(self) -> int:
        """The number of spatial axes of the input: 2 for images."""
        return len(self.patch_size) if isinstance(self.patch_size, Sequence) else 2

    @property
    def total_stride(self) -> tuple[int, ...]:
        """By how much the last map is smaller than the input, for each spatial axis."""
        strides = [self.patch_size] + [self.downsample_stride] * (len(self.depths) - 1)
        each = [per_axis(stride, self.spatial_rank) for stride in strides]
        return tuple(math.prod(axis) for axis in zip(*each))

    @nn.nowrap
    def _embeddings(self) -> list[Callable[..., PatchEmbed]]:
        """Makers of the stem, then of each downsampling."""
        patch = per_axis(self.patch_size, self.spatial_rank)
        stride = per_axis(self.downsample_stride, self.spatial_rank)
        stem = self._convolution(patch, [self.stem_padding] * len(patch))
        downsample = self._convolution(stride, [s - 1 for s in stride])
        same = dict(
            implementation=self.implementation,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        return [
            functools.partial(PatchEmbed, self.embed_dim * 2**index, **options, **same)
            for index, options in enumerate(
                [stem] + [downsample] * (len(self.depths) - 1)
            )
        ]

    @nn.nowrap
    def _convolution(
        self, stride: Sequence[int], padding: Sequence[int]
    ) -> dict[str, Any]:
        """Options of `PatchEmbed`; `padding` is that of an overlapping convolution."""
        overlaps = [self.use_conv_embed and s > 1 for s in stride]
        return dict(
            kernel_size=tuple(2 * s - 1 if o else s for s, o in zip(stride, overlaps)),
            stride=tuple(stride),
            padding=tuple(p if o else 0 for p, o in zip(padding, overlaps)),
            pad_to=tuple(s if self.pad_to_patch else 1 for s in stride),
        )

    @nn.nowrap
    def smallest_input(self) -> tuple[int, ...]:
        """The least spatial shape that leaves the last stage a map, such as (32, 32)."""
        embeddings = [make(parent=None) for make in self._embeddings()]

        def last_shape(size):
            shape = (size,) * self.spatial_rank
            for embedding in embeddings:
                shape = embedding.output_shape(shape)
            return shape

        return tuple(
            next(size for size in itertools.count(1) if last_shape(size)[axis] > 0)
            for axis in range(self.spatial_rank)
        )

    @nn.nowrap
    def valid_after_stages(
        self, valid: jax.Array | None
    ) -> tuple[jax.Array, ...] | tuple[None, ...]:
        """The size of each image on the map of each stage, before its downsampling.

        Args:
          valid: int `[b, rank]`, the size of each image; None gives None for each stage.

        Returns:
          int32 `[b, rank]` for each stage; 0 where an image is too small for a position.
        """
        if valid is None:
            return (None,) * len(self.depths)
        sizes = []
        for make in self._embeddings():
            valid = make(parent=None).valid_after(valid)
            sizes.append(valid)
        return tuple(sizes)

    @property
    def max_depth(self) -> int:
        """The depth of parameters after the last block: the number of blocks plus 1."""
        return sum(self.depths) + 1

    @nn.nowrap
    def depth_of(self, name: str) -> int:
        """How deep in the net a parameter stands, counted in blocks.

        Args:
          name: of a parameter, such as `layers_0/blocks_1/mlp/fc1/kernel`.

        Returns:
          0 for the stem, from 1 on for the blocks, and for a downsampling the depth of
          the block before it. All other names are of what comes after the encoder, such
          as a head, and have `max_depth`.
        """
        depths = {"patch_embed/": 0}
        block = 0
        for stage, count in enumerate(self.depths):
            for index in range(count):
                block += 1
                depths[f"layers_{stage}/blocks_{index}/"] = block
            depths[f"layers_{stage}/downsample/"] = block
        found = (depth for prefix, depth in depths.items() if name.startswith(prefix))
        return next(found, self.max_depth)

    def __call__(
        self, images: jax.Array, *, train: bool = False, valid: jax.Array | None = None
    ) -> tuple[jax.Array, Outputs]:
        """Encodes `[b, *spatial, in_channels]` float images, or other inputs.

        Args:
          images: the images, or canvases on which they lie.
          train: whether there are dropout and drop path.
          valid: int `[b, rank]`, the size of each image on its canvas, which is then
            encoded as it would be alone. None for the size of the canvas.

        Returns:
          The map of the last stage, and maps by name, all `[b, *smaller, c]`: `stem`,
          `stage{s}` (before the downsampling), `stage{s}/downsample`,
          `stage{s}/block{b}`, and what the operator of each block returns, such as
          `stage{s}/block{b}/gates` and `stage{s}/block{b}/modulator`. Outside of
          `valid_after_stages` the map of each stage is 0, and other maps mean nothing.

        Raises:
          TypeError: images that are not floating point, or sizes that are not integers.
          ValueError: images of the wrong rank or number of channels, or too small; sizes
            of the wrong shape, or beyond the canvas.
          OptionError: an operator or an implementation that doesn't know `valid`.
        """
        stem = self.embed(images, valid=valid)
        x, outputs = self.stages(stem, train=train, valid=valid)
        return x, {"stem": stem} | outputs

    def embed(self, images: jax.Array, *, valid: jax.Array | None = None) -> jax.Array:
        """The stem: maps `[b, *spatial, in_channels]` to `[b, *smaller, embed_dim]`.

        Args:
          images: as for `__call__`.
          valid: as for `__call__`.

        Raises:
          TypeError, ValueError: as `__call__`.
        """
        self._check(images)
        if valid is not None:
            _check_valid(valid, images.shape)
        images = zero_outside(images, valid)
        return self.patch_embed(place_map(images.astype(self.dtype)))

    def stages(
        self, x: jax.Array, *, train: bool, valid: jax.Array | None = None
    ) -> tuple[jax.Array, Outputs]:
        """The stages, and the dropout before them, on a map from `embed`.

        What stands between the two may change the map, and keeps its shape.

        Args:
          x: the map.
          train: as for `__call__`.
          valid: as for `__call__`, the sizes of the images.

        Returns:
          As `__call__`, without `stem`.
        """
        outputs: Outputs = {}
        sizes = self.valid_after_stages(valid)
        x = self.stem_dropout(x, deterministic=not train)
        for index, stage in enumerate(self.layers):
            x, inner = stage(x, train=train, valid=sizes[index])
            x = zero_outside(x, sizes[index])
            outputs |= {f"stage{index}/{name}": value for name, value in inner.items()}
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
        if images.ndim != self.spatial_rank + 2 or images.shape[-1] != self.in_channels:
            axes = {1: "time", 2: "height, width", 3: "time, height, width"}
            axes = axes.get(self.spatial_rank, f"{self.spatial_rank} spatial axes")
            problem = f"images have shape {images.shape}, expected [batch, {axes}, "
            problem += f"{self.in_channels}]"
            if images.ndim > 2 and images.ndim != self.spatial_rank + 2:
                example = (4,) * (images.ndim - 2)
                problem += f"; maps of another rank need a patch_size such as {example}"
            raise ValueError(problem)
        least = self.smallest_input()
        if any(size < needed for size, needed in zip(images.shape[1:-1], least)):
            shape = " x ".join(str(size) for size in images.shape[1:-1])
            needed = " x ".join(str(size) for size in least)
            raise ValueError(
                f"images of {shape} pixels are too small for this net: it needs {needed} "
                "at least" + ("" if self.pad_to_patch else " (or pad_to_patch=True)")
            )


def _check_valid(valid: jax.Array, shape: tuple[int, ...]) -> None:
    """Raises TypeError or ValueError for what are no sizes of images on these canvases.

    Their numbers are checked where they are known: not inside of `jax.jit`.
    """
    if not jnp.issubdtype(valid.dtype, jnp.integer):
        raise TypeError(f"valid is {valid.dtype}, expected integers: sizes in pixels")
    batch, *canvas, _ = shape
    expected = batch, len(canvas)
    if valid.shape != expected:
        raise ValueError(
            f"valid has shape {valid.shape}, expected {expected}: the size of each image "
            "along each spatial axis"
        )
    if isinstance(valid, jax.core.Tracer):
        return
    for image, size in enumerate(np.asarray(valid).tolist()):
        if any(not 0 <= side <= whole for side, whole in zip(size, canvas)):
            given, allowed = (" x ".join(map(str, sides)) for sides in (size, canvas))
            raise ValueError(
                f"image {image} is {given} pixels by valid, and its canvas is {allowed}"
            )
