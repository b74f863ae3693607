"""Masked image modelling: a FocalNet that paints what it isn't shown.

Paper: Xie et al., "SimMIM: A Simple Framework for Masked Image Modeling", arXiv
2111.09886. Reference code: `FocalNetForMaskedImageModeling` of transformers, and
microsoft/SimMIM, `models/simmim.py`.

    images [b, h, w, 3]
      -> patch_embed                      [b, h/4, w/4, c]
         where masked: mask_token         [c]
      -> layers_0 ... layers_3, norm      [b, h/32, w/32, 8c]
      -> decoder                          [b, h/32, w/32, 3 * 32 * 32]
         each position becomes 32 x 32    [b, h, w, 3]
"""

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from focalnet_jax.models import initializers
from focalnet_jax.models.focalnet import AroundEncoder
from focalnet_jax.models.layers import Dense, LayerNorm
from focalnet_jax.models.modulation import Outputs


class MaskedFocalNet(AroundEncoder):
    """An encoder, a LayerNorm, and a dense layer that paints all pixels of a position.

    A stem that overlaps (`use_conv_embed`) lets the patches beside a hidden one see a
    margin of it, here as in transformers.

    The loss is that of hidden pixels, so what it paints elsewhere means little. Its
    parameters are those of a classifier, with `mask_token` and `decoder` in place of
    `head`. So a classifier can start from them.

    Attributes:
      encoder: stem and stages; their parameters stand beside those of the decoder.
      reconstruct: True; it tells this kind of model from others, and is no field.
    """

    reconstruct = True

    def setup(self):
        encoder = self.encoder
        types = dict(dtype=encoder.dtype, param_dtype=encoder.param_dtype)
        stages = len(encoder.depths)
        channels = encoder.embed_dim * 2 ** (stages - 1)
        pixels = encoder.in_channels
        for stride in encoder.total_stride:
            pixels *= stride
        self.norm = LayerNorm(**types)
        # A 1x1 convolution in the reference code, so initialised as one.
        self.decoder = Dense(
            pixels,
            kernel_init=initializers.conv_kernel,
            bias_init=initializers.conv_bias(channels),
            **types,
        )
        # SimMIM cuts this distribution at -2 and 2: that is a hundred deviations.
        self.mask_token = self.param(
            "mask_token",
            nn.initializers.normal(0.02),
            (encoder.embed_dim,),
            encoder.param_dtype,
        )

    def __call__(
        self, images: jax.Array, mask: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, Outputs]:
        """Paints `[b, *spatial, in_channels]` images, or other inputs.

        Args:
          images: float, of sides that are multiples of `encoder.total_stride`.
          mask: bool `[b, *spatial / patch_size]`, True where the model doesn't see the
            patch; None for nowhere.
          train: as for `FocalNet`.

        Returns:
          All pixels `[b, *spatial, in_channels]`, those that the model sees as well; and
          the maps that the encoder names.

        Raises:
          TypeError: as `FocalNetEncoder`, and for a mask that is not bool.
          ValueError: as `FocalNetEncoder`, for sides that are no multiples, and for a
            mask of another shape.
        """
        encoder = self.encoder
        spatial = images.shape[1:-1]
        strides = encoder.total_stride
        if any(side % stride for side, stride in zip(spatial, strides)):
            raise ValueError(
                f"images of {' x '.join(map(str, spatial))} pixels are no multiples of "
                f"{' x '.join(map(str, strides))}, which is what one position paints"
            )
        stem = encoder.embed(images)
        if mask is not None:
            _check_is_mask(mask, stem.shape[:-1])
            stem = jnp.where(mask[..., None], self.mask_token.astype(stem.dtype), stem)
        x, outputs = encoder.stages(stem, train=train)
        patches = self.decoder(self.norm(x))
        painted = _painted(patches, strides, encoder.in_channels)
        chex.assert_shape(painted, images.shape)
        return painted, {"stem": stem} | outputs


def _check_is_mask(mask: jax.Array, shape: tuple[int, ...]) -> None:
    if mask.dtype != bool:
        raise TypeError(
            f"the mask is {mask.dtype}, expected bool, True for what is hidden"
        )
    if mask.shape != shape:
        raise ValueError(
            f"the mask has shape {mask.shape}, expected {shape}: a value for each patch"
        )


def _painted(patches: jax.Array, strides: tuple[int, ...], channels: int) -> jax.Array:
    """Puts the pixels of each position beside each other: torch's `PixelShuffle`.

    Args:
      patches: `[b, *spatial, channels * prod(strides)]`, where channels come first.
      strides: how many pixels a position has along each spatial axis.
      channels: of the image.
    """
    batch, *spatial, _ = patches.shape
    rank = len(spatial)
    x = patches.reshape(batch, *spatial, channels, *strides)
    # [b, h, w, c, i, j] -> [b, h, i, w, j, c]
    pairs = [axis for n in range(rank) for axis in (1 + n, 2 + rank + n)]
    x = x.transpose(0, *pairs, 1 + rank)
    sides = [side * stride for side, stride in zip(spatial, strides)]
    return x.reshape(batch, *sides, channels)
