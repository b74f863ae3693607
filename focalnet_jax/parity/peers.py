"""FocalNet as timm and transformers have it, with our options and our names.

Both are written independently of this package. What they return is brought to
`[batch, height, width, channels]` and called as in our models' outputs.
"""

import importlib.util
from typing import Any

import numpy as np
import torch

from focalnet_jax.convert.dialects import DIALECTS
from focalnet_jax.convert.names import Source
from focalnet_jax.errors import SetupError, did_you_mean
from focalnet_jax.models import FocalNet


def build_peer(kind: str, model: FocalNet) -> torch.nn.Module:
    """Makes the PyTorch classifier with a model's options, in evaluation mode.

    Args:
      kind: `"timm"` or `"transformers"`.
      model: from `create_model`.

    Raises:
      SetupError: the peer isn't installed, or can't be such a net.
    """
    if kind not in _PEERS:
        raise SetupError(f"no peer is named {kind!r}{did_you_mean(kind, _PEERS)}")
    DIALECTS[kind].check_can_be(model.encoder)
    if importlib.util.find_spec(kind) is None:
        raise SetupError(f"{kind} is needed: pip install {kind}")
    build, _ = _PEERS[kind]
    try:
        return build(model).eval()
    except (ImportError, RuntimeError) as error:  # of a torchvision for another torch
        reason = str(error).splitlines()[0]
        raise SetupError(f"{kind} is installed but can't be used: {reason}") from error


def load_peer(peer: torch.nn.Module, state_dict: dict[str, np.ndarray]) -> None:
    """Gives a peer all of its weights, in its own precision."""
    dtype = next(peer.parameters()).dtype
    numpy_dtype = {torch.float64: np.float64}.get(dtype, np.float32)
    tensors = {
        name: torch.from_numpy(np.array(array, numpy_dtype, order="C"))
        for name, array in state_dict.items()
    }
    peer.load_state_dict(tensors, strict=True)


def own_state_dict(
    peer: torch.nn.Module, kind: str, source: Source, *, use_postln: bool
) -> dict[str, np.ndarray]:
    """A source's tensors under a peer's names, without a way through Flax.

    Where the source has the peer's dialect they are its own names; else they are
    renamed, and a dense layer becomes a 1x1 convolution or the other way round. Nothing
    is transposed, so a mistake in the layouts of the conversion can't cancel out.
    """
    shapes = {name: tensor.shape for name, tensor in peer.state_dict().items()}
    state_dict = {}
    for path, parameter in source.parameters.items():
        name = parameter.dialect_key
        if source.dialect.name != kind:
            name = DIALECTS[kind].key_of(path, use_postln=use_postln)
        state_dict[name] = parameter.tensor.reshape(shapes[name])
    return state_dict


def run_peer(peer: torch.nn.Module, kind: str, images: np.ndarray) -> dict:
    """Applies a peer to `[b, h, w, 3]` images and names what each layer returns.

    Returns:
      `stem`, `stage{s}/block{b}`, `stage{s}/downsample`, `pre_logits` and `logits` in
      the order of the computation, torch tensors, channels last.
    """
    outputs: dict[str, torch.Tensor] = {}
    _, watched = _PEERS[kind]
    hooks = []
    for name, module in watched(peer):

        def keep(_, args, output, name=name):
            outputs[name] = _channels_last(args, output)

        hooks.append(module.register_forward_hook(keep))
    try:
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        pixels = pixels.to(next(peer.parameters()).dtype)
        logits = peer(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    outputs["logits"] = getattr(logits, "logits", logits)
    return outputs


def _channels_last(args: tuple, output: Any) -> torch.Tensor:
    """Brings a layer's result to `[b, h, w, c]`, pooled ones to `[b, c]`.

    transformers passes maps as `[b, h * w, c]` beside their height and width.
    """
    if isinstance(output, tuple):  # a stem or a downsampling: map and size
        output, (height, width) = output
        return output.unflatten(1, (height, width))
    if output.ndim == 4:
        return output.permute(0, 2, 3, 1)
    if output.ndim == 3 and output.shape[-1] == 1:  # the pooler
        return output[..., 0]
    if output.ndim == 3:  # a block, called with its map and the map's size
        return output.unflatten(1, tuple(args[1]))
    return output


def _build_timm(model: FocalNet) -> torch.nn.Module:
    from timm.models.focalnet import FocalNet as Peer

    encoder = model.encoder
    return Peer(
        in_chans=encoder.in_channels,
        num_classes=model.num_classes,
        embed_dim=encoder.embed_dim,
        depths=encoder.depths,
        mlp_ratio=encoder.mlp_ratio,
        focal_levels=encoder.focal_levels,
        focal_windows=encoder.focal_windows,
        use_overlap_down=encoder.use_conv_embed,
        use_post_norm=encoder.use_postln,
        use_post_norm_in_modulation=encoder.use_postln_in_modulation,
        normalize_modulator=encoder.normalize_modulator,
        layerscale_value=encoder.layerscale_value if encoder.use_layerscale else None,
        drop_path_rate=0.0,
    )


def _watch_timm(peer: torch.nn.Module):
    yield "stem", peer.stem
    for index, stage in enumerate(peer.layers):
        if index:
            yield f"stage{index - 1}/downsample", stage.downsample
        for block_index, block in enumerate(stage.blocks):
            yield f"stage{index}/block{block_index}", block
    yield "pre_logits", peer.head.global_pool


def _build_transformers(model: FocalNet) -> torch.nn.Module:
    from transformers import FocalNetConfig, FocalNetForImageClassification

    encoder = model.encoder
    config = FocalNetConfig(
        num_channels=encoder.in_channels,
        num_labels=model.num_classes,
        patch_size=encoder.patch_size,
        embed_dim=encoder.embed_dim,
        depths=list(encoder.depths),
        mlp_ratio=float(encoder.mlp_ratio),
        focal_levels=list(encoder.focal_levels),
        focal_windows=list(encoder.focal_windows),
        use_conv_embed=encoder.use_conv_embed,
        use_layerscale=encoder.use_layerscale,
        layerscale_value=encoder.layerscale_value,
        use_post_layernorm=encoder.use_postln,
        use_post_layernorm_in_modulation=encoder.use_postln_in_modulation,
        normalize_modulator=encoder.normalize_modulator,
        drop_path_rate=0.0,
    )
    return FocalNetForImageClassification(config)


def _watch_transformers(peer: torch.nn.Module):
    net = peer.focalnet
    yield "stem", net.embeddings
    for index, stage in enumerate(net.encoder.stages):
        for block_index, block in enumerate(stage.layers):
            yield f"stage{index}/block{block_index}", block
        if stage.downsample is not None:
            yield f"stage{index}/downsample", stage.downsample
    yield "pre_logits", net.pooler


_PEERS = {
    "timm": (_build_timm, _watch_timm),
    "transformers": (_build_transformers, _watch_transformers),
}
