"""PyTorch's side of a segmenter: others' encoder and others' heads.

No library has both. The encoder is transformers' FocalNet, whose blocks return the maps
that the official backbone returns; the LayerNorms of the maps are torch's own. The heads
are mmsegmentation's, or transformers' where mmsegmentation can't be imported.
"""

import importlib
import importlib.util
import re
from typing import Any

import numpy as np
import torch

from focalnet_jax.convert.dialects import MMSEGMENTATION, TRANSFORMERS
from focalnet_jax.errors import SetupError, first_line
from focalnet_jax.heads import Segmenter
from focalnet_jax.parity.peers import (
    build_encoder,
    channels_last,
    importing,
    watched_encoder,
)


def usual_heads() -> tuple[str, str | None]:
    """Whose heads are taken, and why they aren't mmsegmentation's."""
    if importlib.util.find_spec("mmseg") is None:
        return "transformers", "it is not installed"
    try:
        _import_mmsegmentation()
    except SetupError as error:
        return "transformers", str(error)
    return "mmsegmentation", None


def _import_mmsegmentation() -> Any:
    try:
        return importlib.import_module("mmseg.models")
    except Exception as error:  # It asks for certain versions, and for operators of mmcv.
        raise SetupError(f"it can't be imported: {first_line(error)}") from error


class PeerSegmenter(torch.nn.Module):
    """An encoder, LayerNorms and heads, in evaluation mode.

    Args:
      heads: whose heads, `"mmsegmentation"` or `"transformers"`.
      model: the result of `create_segmenter`.

    Raises:
      SetupError: a library is missing, or can't express the model.
    """

    def __init__(self, heads: str, model: Segmenter):
        super().__init__()
        TRANSFORMERS.check_can_be(model.encoder)
        with importing("transformers"):
            self.focalnet = build_encoder(model.encoder)
        self.use_postln = model.encoder.use_postln
        self.depths = tuple(model.encoder.depths)
        channels = [model.encoder.embed_dim * 2**s for s in range(len(self.depths))]
        self.norms = torch.nn.ModuleList(
            torch.nn.LayerNorm(width, eps=1e-5) for width in channels
        )
        build = {"mmsegmentation": _of_mmsegmentation, "transformers": _of_transformers}
        self.heads_of = heads
        self.decode_head, self.auxiliary_head = build[heads](model, channels)
        self.eval()

    def load(self, state_dict: dict[str, np.ndarray]) -> None:
        """Loads all weights, named as in mmsegmentation, in this module's precision."""
        own = self.state_dict()
        tensors = {}
        for key, array in state_dict.items():
            name = self._name_of(key)
            tensor = torch.from_numpy(np.array(array, order="C"))
            # A dense layer may be a 1x1 convolution there; nothing is transposed.
            tensors[name] = tensor.to(own[name].dtype).reshape(own[name].shape)
        self.load_state_dict(tensors, strict=True)

    def _name_of(self, key: str) -> str:
        """The name here of what mmsegmentation calls by a key."""
        path = MMSEGMENTATION.path_of(key)
        assert path is not None, key  # Whoever gives the weights has checked them.
        if found := re.fullmatch(r"norm(\d+)/.*", path):
            return f"norms.{found[1]}.{key.rpartition('.')[2]}"
        if key.startswith("backbone."):
            name = TRANSFORMERS.key_of(path, use_postln=self.use_postln)
            assert name is not None, path
            return name
        if self.heads_of == "transformers":
            return key.replace(".bn.", ".batch_norm.").replace("conv_seg", "classifier")
        return key

    def run(self, images: np.ndarray) -> dict[str, torch.Tensor]:
        """Applies the net to `[b, h, w, channels]` images.

        Returns:
          The outputs of layers by their names here, in the order of the computation, as
          tensors with channels last: those of the encoder, `auxiliary_logits`, if there
          are any, and `logits`.
        """
        outputs: dict[str, torch.Tensor] = {}
        hooks = []
        for name, module in watched_encoder(self.focalnet):

            def keep(_, args, output, name=name):
                outputs[name] = channels_last(args, output)

            hooks.append(module.register_forward_hook(keep))
        try:
            pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
            self.focalnet(pixels.to(next(self.parameters()).dtype))
        finally:
            for hook in hooks:
                hook.remove()
        maps = [
            norm(outputs[f"stage{stage}/block{depth - 1}"]).movedim(-1, 1).contiguous()
            for stage, (norm, depth) in enumerate(zip(self.norms, self.depths))
        ]
        if self.auxiliary_head is not None:
            outputs["auxiliary_logits"] = self.auxiliary_head(maps).movedim(1, -1)
        outputs["logits"] = self.decode_head(maps).movedim(1, -1)
        return outputs


def _of_mmsegmentation(model: Segmenter, channels: list[int]):
    models = _import_mmsegmentation()
    same: dict[str, Any] = dict(
        num_classes=model.num_classes,
        norm_cfg=dict(type="BN"),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", avg_non_ignore=False),
    )
    decode_head = models.UPerHead(
        in_channels=channels,
        in_index=list(range(len(channels))),
        channels=model.head_channels,
        pool_scales=tuple(model.pool_sizes),
        **same,
    )
    auxiliary_head = None
    if model.auxiliary_channels:
        auxiliary_head = models.FCNHead(
            in_channels=channels[-2],
            in_index=len(channels) - 2,
            channels=model.auxiliary_channels,
            num_convs=1,
            concat_input=False,
            **same,
        )
    return decode_head, auxiliary_head


def _of_transformers(model: Segmenter, channels: list[int]):
    from transformers import UperNetConfig
    from transformers.models.upernet import modeling_upernet

    options: dict[str, Any] = dict(
        num_labels=model.num_classes,
        hidden_size=model.head_channels,
        pool_scales=list(model.pool_sizes),
        auxiliary_channels=model.auxiliary_channels,
        auxiliary_in_channels=channels[-2],
    )
    config = UperNetConfig(**options)
    decode_head = modeling_upernet.UperNetHead(config, in_channels=channels)
    auxiliary_head = None
    if model.auxiliary_channels:
        auxiliary_head = modeling_upernet.UperNetFCNHead(
            config, in_channels=channels, in_index=len(channels) - 2
        )
    return decode_head, auxiliary_head
