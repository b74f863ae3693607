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

The channels are the last axis of every map. Sequences, `[b, t, c]`, and videos or
volumes, `[b, t, h, w, c]`, go the same way; their kernels have one spatial axis or three.
The parameters mirror the official names:

    patch_embed/{proj,norm}                      convolution, LayerNorm
    layers_{s}/blocks_{b}/norm1, norm2           LayerNorm
    layers_{s}/blocks_{b}/modulation/f           dense: query, context and gates
    layers_{s}/blocks_{b}/modulation/focal_layers_{l}/kernel     [k, k, 1, c]
    layers_{s}/blocks_{b}/modulation/focal_layers_{l}/bias       with use_depthwise_bias
    layers_{s}/blocks_{b}/modulation/h           dense: the modulator
    layers_{s}/blocks_{b}/modulation/proj        dense
    layers_{s}/blocks_{b}/modulation/ln          with use_postln_in_modulation
    layers_{s}/blocks_{b}/gamma_1, gamma_2       with use_layerscale
    layers_{s}/blocks_{b}/mlp/{fc1,fc2}          dense
    layers_{s}/downsample/{proj,norm}            in all stages but the last
    norm, head                                   of the classifier
    norm0, norm1, ...                            of the backbone, for each output stage

Dense layers and convolutions have the leaves `kernel` and `bias`, LayerNorms have `scale`
and `bias`. Another operator than focal modulation (`focalnet_jax/models/modulation.py`)
has other parameters below `modulation`.
"""

from collections.abc import Sequence

import jax
from flax import linen as nn

from focalnet_jax.models.encoder import FocalNetEncoder
from focalnet_jax.models.layers import Dense, LayerNorm
from focalnet_jax.models.modulation import Outputs
from focalnet_jax.ops.canvas import mean_inside, zero_outside


class AroundEncoder(nn.Module):
    """A model whose encoder's parameters stand beside its own.

    They don't lie below a name of their own, so that the tree mirrors the official code.

    Attributes:
      encoder: stem and stages.
    """

    encoder: FocalNetEncoder

    def __post_init__(self):
        # A copy, because models that hold the very same encoder, as clones of a model do,
        # would share its place in the tree of a module around them.
        holder = self.encoder.parent
        is_of_another = isinstance(holder, AroundEncoder) and holder is not self
        if holder is None or (is_of_another and self.parent is not None):
            object.__setattr__(self, "encoder", self.encoder.clone())
        super().__post_init__()
        # Not in `setup`, which may run after the encoder has been used.
        if self.scope is not None and self.encoder.scope is not self.scope:
            nn.share_scope(self, self.encoder)


class FocalNet(AroundEncoder):
    """The classifier: an encoder, a LayerNorm, the mean over space and a dense head.

    Attributes:
      encoder: stem and stages; their parameters stand beside those of the head.
      num_classes: 0 for no head: the model then returns pooled features as logits.
    """

    num_classes: int = 1000

    def setup(self):
        types = dict(dtype=self.encoder.dtype, param_dtype=self.encoder.param_dtype)
        self.norm = LayerNorm(**types)
        if self.num_classes:
            self.head = Dense(self.num_classes, **types)

    def __call__(
        self, images: jax.Array, *, train: bool = False, valid: jax.Array | None = None
    ) -> tuple[jax.Array, Outputs]:
        """Classifies `[b, *spatial, in_channels]` float images, or other inputs.

        Training draws from the random streams `drop_path` and `dropout`, if their rates
        are above 0.

        Args:
          images: as for `FocalNetEncoder`.
          train: as for it.
          valid: as for it. The mean over space is that of each image then.

        Returns:
          Logits `[b, num_classes]`, and the maps that the encoder names, together with
          `pre_logits`, the pooled features, `[b, c]`. Under `jit`, what is not read is
          not computed.

        Raises:
          TypeError, ValueError, OptionError: as `FocalNetEncoder`.
        """
        x, outputs = self.encoder(images, train=train, valid=valid)
        sizes = self.encoder.valid_after_stages(valid)
        spatial = range(1, x.ndim - 1)
        pooled = mean_inside(self.norm(x), sizes[-1], spatial, keepdims=False)
        outputs["pre_logits"] = pooled
        logits = self.head(pooled) if self.num_classes else pooled
        return logits, outputs


class FocalNetBackbone(AroundEncoder):
    """An encoder that returns the maps of its stages, for dense prediction.

    These are the maps before each downsampling, as in the official backbones for
    detection and segmentation. Each passes through a LayerNorm of its own, `norm{s}`.

    Attributes:
      encoder: stem and stages; their parameters stand beside those of the norms.
      out_stages: the stages whose maps it returns, counted from 0.
      out_norm: whether the maps pass through a LayerNorm.
    """

    out_stages: Sequence[int] = (0, 1, 2, 3)
    out_norm: bool = True

    def setup(self):
        types = dict(dtype=self.encoder.dtype, param_dtype=self.encoder.param_dtype)
        if self.out_norm:
            for stage in self.out_stages:
                setattr(self, f"norm{stage}", LayerNorm(**types))

    def __call__(
        self, images: jax.Array, *, train: bool = False, valid: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        """Maps `[b, *spatial, in_channels]` to `[b, *smaller, c_s]` for each stage.

        Args:
          images: as for `FocalNetEncoder`.
          train: as for it.
          valid: as for it. Each map is 0 then outside of what
            `encoder.valid_after_stages(valid)` says.

        Raises:
          TypeError, ValueError, OptionError: as `FocalNetEncoder`.
        """
        _, outputs = self.encoder(images, train=train, valid=valid)
        sizes = self.encoder.valid_after_stages(valid)
        maps = {stage: outputs[f"stage{stage}"] for stage in self.out_stages}
        if self.out_norm:
            maps = {
                stage: zero_outside(getattr(self, f"norm{stage}")(x), sizes[stage])
                for stage, x in maps.items()
            }
        return tuple(maps.values())
