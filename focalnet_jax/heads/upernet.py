"""UPerNet's head, and the auxiliary head that is trained beside it.

Papers: Xiao et al., "Unified Perceptual Parsing for Scene Understanding", arXiv
1807.10221; Zhao et al., "Pyramid Scene Parsing Network", arXiv 1612.01105; Lin et al.,
"Feature Pyramid Networks for Object Detection", arXiv 1612.03144; Long et al., "Fully
Convolutional Networks for Semantic Segmentation", arXiv 1411.4038. Reference code:
mmsegmentation, `mmseg/models/decode_heads/uper_head.py`, `psp_head.py` and `fcn_head.py`.

    maps 0 ... 3    [b, h/4, w/4, c] ... [b, h/32, w/32, 8c]
      3 -> psp_modules: means of 1, 4, 9 and 36 parts of the map, each a convolution
        -> bottleneck, of the map and these      [b, h/32, w/32, head_channels]
      0, 1, 2 -> lateral_convs
      2, 1, 0: add the one above, resized        [b, h/4, w/4, head_channels] ...
      0, 1, 2 -> fpn_convs
      all, at the size of map 0 -> fpn_bottleneck
        -> conv_seg                              [b, h/4, w/4, classes]

The names of the parameters are those of mmsegmentation.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from focalnet_jax.heads.layers import Conv, ConvModule
from focalnet_jax.ops.resize import adaptive_average_pool, resize

# The size of each image on the canvas of a map, `[b, 2]`, or None.
Valid = jax.Array | None


class UPerNetHead(nn.Module):
    """Logits from the maps of all stages: mmsegmentation's `UPerHead`.

    Attributes:
      num_classes: the length of the logits.
      channels: of all maps inside.
      pool_sizes: how many parts each side of the last map is pooled to.
      drop_rate: the share of channels that training drops before the classifier.
      dtype, param_dtype: of the computation and of the parameters.
    """

    num_classes: int
    channels: int = 512
    pool_sizes: Sequence[int] = (1, 2, 3, 6)
    drop_rate: float = 0.1
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, maps: Sequence[jax.Array], *, train: bool, valid: Sequence[Valid]
    ) -> jax.Array:
        """Makes logits of maps.

        Args:
          maps: `[b, h_s, w_s, c_s]` of each stage, the largest map first.
          train: whether BatchNorm normalises by the batch, and dropout drops.
          valid: the size of each image on the canvas of each map.

        Returns:
          `[b, h_0, w_0, num_classes]`.
        """

        def convolve(x, size, name, valid):
            module = ConvModule(
                self.channels,
                size,
                name=name,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
            )
            return module(x, train=train, valid=valid)

        def resized(x, old, new):
            return resize(
                x, maps[new].shape[1:-1], valid=valid[old], new_valid=valid[new]
            )

        *lower, last = maps
        context = [last]
        for index, size in enumerate(self.pool_sizes):
            pooled = adaptive_average_pool(last, size, valid=valid[-1])
            pooled = convolve(pooled, 1, f"psp_modules_{index}", None)
            context.append(resize(pooled, last.shape[1:-1], new_valid=valid[-1]))
        top = convolve(jnp.concatenate(context, -1), 3, "bottleneck", valid[-1])

        pyramid = [
            convolve(x, 1, f"lateral_convs_{stage}", valid[stage])
            for stage, x in enumerate(lower)
        ]
        pyramid.append(top)
        for stage in reversed(range(len(lower))):
            pyramid[stage] += resized(pyramid[stage + 1], stage + 1, stage)
        for stage in range(len(lower)):
            name = f"fpn_convs_{stage}"
            pyramid[stage] = convolve(pyramid[stage], 3, name, valid[stage])
        pyramid = [
            x if stage == 0 else resized(x, stage, 0) for stage, x in enumerate(pyramid)
        ]
        x = convolve(jnp.concatenate(pyramid, -1), 3, "fpn_bottleneck", valid[0])
        return _logits(self, x, train=train)


class FCNHead(nn.Module):
    """Logits from one map: mmsegmentation's `FCNHead` with one convolution.

    Attributes:
      num_classes: the length of the logits.
      channels: of the map inside.
      drop_rate: the share of channels that training drops before the classifier.
      dtype, param_dtype: of the computation and of the parameters.
    """

    num_classes: int
    channels: int = 256
    drop_rate: float = 0.1
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, valid: Valid = None) -> jax.Array:
        """Maps `[b, h, w, c]` to `[b, h, w, num_classes]`."""
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = ConvModule(self.channels, 3, name="convs_0", **types)(
            x, train=train, valid=valid
        )
        return _logits(self, x, train=train)


def _logits(head: UPerNetHead | FCNHead, x: jax.Array, *, train: bool) -> jax.Array:
    """Drops whole channels, as torch's `Dropout2d`, and classifies each position."""
    x = nn.Dropout(head.drop_rate, broadcast_dims=(1, 2))(x, deterministic=not train)
    classify = Conv(
        head.num_classes,
        1,
        use_bias=True,
        kernel_init=nn.initializers.normal(0.01),
        name="conv_seg",
        dtype=head.dtype,
        param_dtype=head.param_dtype,
    )
    return classify(x)
