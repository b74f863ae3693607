"""A FocalNet with UPerNet's head, for semantic segmentation."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from focalnet_jax.errors import OptionError
from focalnet_jax.heads.upernet import FCNHead, UPerNetHead
from focalnet_jax.models.focalnet import AroundEncoder
from focalnet_jax.models.layers import LayerNorm
from focalnet_jax.models.modulation import Outputs
from focalnet_jax.models.options import RATE, convert_option
from focalnet_jax.models.variants import create_encoder
from focalnet_jax.values import Several, Values, Whole

_CHANNELS = 2**14

# What the options of a segmenter take, beside those of its encoder.
SEGMENTER_VALUES: dict[str, Values] = {
    "num_classes": Whole(1, 2**16),
    "head_channels": Whole(1, _CHANNELS),
    "auxiliary_channels": Whole(0, _CHANNELS),
    "head_dropout": RATE,
    "pool_sizes": Several(Whole(1, 64), least=1, most=16),
}


class SegmenterLogits(NamedTuple):
    """What a segmenter says of each position of its first map.

    Attributes:
      logits: `[b, h, w, num_classes]`, a quarter as high and wide as the images.
      auxiliary: those of the auxiliary head, `[b, h_2, w_2, num_classes]`, which is
        there for training alone; None without that head.
      valid, auxiliary_valid: int32 `[b, 2]`, height and width of each image in the two
        maps; None where the model isn't given any, and images fill the maps.
    """

    logits: jax.Array
    auxiliary: jax.Array | None
    valid: jax.Array | None = None
    auxiliary_valid: jax.Array | None = None


class Segmenter(AroundEncoder):
    """An encoder, a LayerNorm for the map of each stage, and two heads.

    The parameters of the encoder have the names that they have in a classifier, so that a
    segmenter can start from one. `norm{s}`, `decode_head` and `auxiliary_head` stand
    beside them, as in mmsegmentation. Beside `params` the variables hold `batch_stats`:
    the running averages of BatchNorm in both heads.

    Attributes:
      encoder: stem and stages, of images.
      num_classes: the length of the logits.
      head_channels: of the maps inside UPerNet's head.
      auxiliary_channels: of the map inside the auxiliary head, which sees the last map
        but one; 0 for no such head.
      head_dropout: the share of channels that both heads drop in training.
      pool_sizes: how many parts each side of the last map is pooled to.
      segment: True; it tells this kind of model from others, and is no field.
    """

    num_classes: int = 150
    head_channels: int = 512
    auxiliary_channels: int = 256
    head_dropout: float = 0.1
    pool_sizes: Sequence[int] = (1, 2, 3, 6)

    segment = True

    def setup(self):
        types = dict(dtype=self.encoder.dtype, param_dtype=self.encoder.param_dtype)
        same = dict(num_classes=self.num_classes, drop_rate=self.head_dropout, **types)
        for stage in range(len(self.encoder.depths)):
            setattr(self, f"norm{stage}", LayerNorm(**types))
        self.decode_head = UPerNetHead(
            channels=self.head_channels, pool_sizes=self.pool_sizes, **same
        )
        if self.auxiliary_channels:
            self.auxiliary_head = FCNHead(channels=self.auxiliary_channels, **same)

    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        valid: jax.Array | None = None,
    ) -> tuple[SegmenterLogits, Outputs]:
        """Segments `[b, h, w, in_channels]` float images.

        Training draws from the random streams `drop_path` and `dropout`, if their rates
        are above 0, and changes the collection `batch_stats`, which has to be mutable.

        Args:
          images: float.
          train: whether BatchNorm normalises by the batch; else by its running averages.
          valid: int32 `[b, 2]`, height and width of each image in the upper left corner
            of its canvas. The logits there are those of the image alone, and the others
            mean nothing. None where images fill their canvas.

        Returns:
          Logits, and the maps that the encoder names. Under `jit`, what is not read is
          not computed.

        Raises:
          TypeError: as `FocalNetEncoder`.
          ValueError: as `FocalNetEncoder`; in training, one image with a last map of one
            position, of which BatchNorm has no variance.
        """
        _, outputs = self.encoder(images, train=train, valid=valid)
        sizes = self.encoder.valid_after_stages(valid)
        maps = [
            getattr(self, f"norm{stage}")(outputs[f"stage{stage}"])
            for stage in range(len(self.encoder.depths))
        ]
        logits = self.decode_head(maps, train=train, valid=sizes)
        auxiliary = None
        if self.auxiliary_channels:
            auxiliary = self.auxiliary_head(maps[-2], train=train, valid=sizes[-2])
        return SegmenterLogits(logits, auxiliary, sizes[0], sizes[-2]), outputs


def create_segmenter(
    name: str, *, num_classes: int = 150, drop_path_rate: float = 0.3, **options: Any
) -> Segmenter:
    """Makes a FocalNet for semantic segmentation, with UPerNet's head.

    The paper's segmenters are those of the tiny, small and base variants, SRF and LRF,
    with `focal_windows=(9, 9, 9, 9)` in place of the 3 that the variants have for
    ImageNet. `resize_kernels` makes weights of the one fit the other.

    Args:
      name: one of `list_models()`, with two stages or more.
      num_classes: the length of the logits: 150 for ADE20K.
      drop_path_rate: stochastic depth, as for `create_model`. The paper has 0.3 for all.
      **options: `head_channels`, `auxiliary_channels`, `head_dropout` and `pool_sizes` of
        `Segmenter`, and all other options as for `create_model`.

    Returns:
      A `Segmenter`, which has `init(key, images)` and `apply(variables, images)`.

    Raises:
      OptionError: as `create_model`, and for a net that has a single stage or isn't for
        images.
      ValueError: an unknown name.
      TypeError: an unknown option.
    """
    given = options | {"num_classes": num_classes}
    own = {
        option: convert_option(option, value, SEGMENTER_VALUES[option])
        for option, value in given.items()
        if option in SEGMENTER_VALUES
    }
    options = {o: value for o, value in options.items() if o not in own}
    encoder = create_encoder(
        name,
        options | {"drop_path_rate": drop_path_rate},
        of_head=SEGMENTER_VALUES,
        num_classes=own["num_classes"],
    )
    if len(encoder.depths) < 2:
        raise OptionError(
            "depths",
            f"={encoder.depths} makes a single map, and the heads of a segmenter take "
            "those of two stages or more",
        )
    if encoder.spatial_rank != 2:
        raise OptionError(
            "patch_size",
            f"={encoder.patch_size} is for inputs that are no images, and a segmenter is "
            "for images",
        )
    return Segmenter(encoder, **own)
