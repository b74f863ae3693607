"""Peers: the FocalNets of timm and of transformers, with our options and our names.

Both were written independently of this package. Their outputs are brought to
`[batch, height, width, channels]`, and they are named as the outputs of our models.
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from focalnet_jax.convert.dialects import DIALECTS
from focalnet_jax.convert.names import MatchedWeights
from focalnet_jax.errors import SetupError, did_you_mean, first_line
from focalnet_jax.models import FocalNet, FocalNetEncoder


def build_peer(kind: str, model: FocalNet) -> torch.nn.Module:
    """Makes the PyTorch classifier with a model's options, in evaluation mode.

    Args:
      kind: `"timm"` or `"transformers"`.
      model: the result of `create_model`.

    Raises:
      SetupError: the peer is not installed, or cannot express the model.
    """
    if kind not in _PEERS:
        raise SetupError(f"no peer is named {kind!r}{did_you_mean(kind, _PEERS)}")
    DIALECTS[kind].check_can_be(model.encoder)
    build, _ = _PEERS[kind]
    with importing(kind):
        return build(model).eval()


@contextlib.contextmanager
def importing(kind: str) -> Iterator[None]:
    """Raises SetupError if a library is not installed, or can't be imported inside."""
    if importlib.util.find_spec(kind) is None:
        raise SetupError(f"{kind} is needed: pip install {kind}")
    try:
        yield
    except (ImportError, RuntimeError) as error:
        cause = error
        while cause.__cause__:  # transformers tells of the last of several errors
            cause = cause.__cause__
        remedy = ""
        if isinstance(cause, RuntimeError) and "torchvision" in str(cause):
            remedy = "; torch and torchvision are of two builds that don't fit: "
            remedy += "pip install --force-reinstall torch torchvision"
        raise SetupError(
            f"{kind} is installed but can't be used: {first_line(cause)}{remedy}"
        ) from error


def load_peer(peer: torch.nn.Module, state_dict: dict[str, np.ndarray]) -> None:
    """Loads all of a peer's weights, in the peer's own precision."""
    dtype = next(peer.parameters()).dtype
    numpy_dtype = {torch.float64: np.float64}.get(dtype, np.float32)
    tensors = {
        name: torch.from_numpy(np.array(array, numpy_dtype, order="C"))
        for name, array in state_dict.items()
    }
    peer.load_state_dict(tensors, strict=True)


def own_state_dict(
    peer: torch.nn.Module, kind: str, weights: MatchedWeights, *, use_postln: bool
) -> dict[str, np.ndarray]:
    """The tensors of weights under a peer's names, without a conversion to Flax.

    Weights in the peer's dialect keep their names. Others are renamed, and a dense layer
    becomes a 1x1 convolution or the reverse. Nothing is transposed. So a mistake in the
    layouts of the conversion to Flax cannot be undone by the same mistake here.
    """
    shapes = {name: tensor.shape for name, tensor in peer.state_dict().items()}
    state_dict = {}
    for path, parameter in weights.parameters.items():
        name: str | None = parameter.dialect_key
        if weights.dialect is None or weights.dialect.name != kind:
            name = DIALECTS[kind].key_of(path, use_postln=use_postln)
        assert name is not None, path  # `build_peer` has checked the dialect.
        tensor = parameter.tensor
        if path == "patch_embed/proj/kernel":
            tensor = _with_channels(tensor, shapes[name][1])
        state_dict[name] = tensor.reshape(shapes[name])
    return state_dict


def _with_channels(stem: np.ndarray, channels: int) -> np.ndarray:
    """The weights `[out, 3, h, w]` of a stem for images of other channels."""
    if channels == stem.shape[1]:
        return stem
    if channels == 1:
        return stem.sum(1, keepdims=True)
    return np.concatenate([stem] * channels, 1)[:, :channels] * (3 / channels)


def run_peer(
    peer: torch.nn.Module, kind: str, images: np.ndarray
) -> dict[str, torch.Tensor]:
    """Applies a peer to `[b, h, w, channels]` images and names the layers' outputs.

    Returns:
      `stem`, `stage{s}/block{b}`, `stage{s}/downsample`, `pre_logits` and `logits`, in
      the order of the computation, as torch tensors with channels last.
    """
    outputs: dict[str, torch.Tensor] = {}
    _, watched = _PEERS[kind]
    hooks = []
    for name, module in watched(peer):

        def keep(_, args, output, name=name):
            outputs[name] = channels_last(args, output)

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


def channels_last(args: tuple, output: Any) -> torch.Tensor:
    """Brings an output to `[b, h, w, c]`, or to `[b, c]` after pooling.

    timm has maps `[b, c, h, w]`. transformers has maps `[b, h * w, c]`, and passes their
    height and width separately.

    Args:
      args: the arguments of the layer.
      output: what the layer returned.
    """
    if isinstance(output, tuple):  # A stem or downsampling returns map and size.
        output, (height, width) = output
        return output.unflatten(1, (height, width))
    if output.ndim == 4:
        return output.permute(0, 2, 3, 1)
    if output.ndim == 3 and output.shape[-1] == 1:  # This is the pooler.
        return output[..., 0]
    if output.ndim == 3:  # A block gets map and size as arguments.
        return output.unflatten(1, tuple(args[1]))
    return output


def _build_timm(model: FocalNet) -> torch.nn.Module:
    from timm.models.focalnet import FocalNet as Peer

    encoder = model.encoder
    options: dict[str, Any] = dict(
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
    return Peer(**options)


def _watch_timm(peer: Any):
    yield "stem", peer.stem
    for index, stage in enumerate(peer.layers):
        if index:
            yield f"stage{index - 1}/downsample", stage.downsample
        for block_index, block in enumerate(stage.blocks):
            yield f"stage{index}/block{block_index}", block
    yield "pre_logits", peer.head.global_pool


def _build_transformers(model: FocalNet) -> torch.nn.Module:
    from transformers import FocalNetForImageClassification

    config = _transformers_config(model.encoder, num_labels=model.num_classes)
    return FocalNetForImageClassification(config)


def build_encoder(encoder: FocalNetEncoder) -> torch.nn.Module:
    """Makes transformers' FocalNet without what follows on its last block."""
    from transformers import FocalNetModel

    net: Any = FocalNetModel(_transformers_config(encoder), add_pooling_layer=False)
    net.layernorm = torch.nn.Identity()
    return net


def _transformers_config(encoder: FocalNetEncoder, **labels: int):
    from transformers import FocalNetConfig

    options: dict[str, Any] = dict(
        num_channels=encoder.in_channels,
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
        **labels,
    )
    return FocalNetConfig(**options)


def _watch_transformers(peer: Any):
    yield from watched_encoder(peer.focalnet)
    yield "pre_logits", peer.focalnet.pooler


def watched_encoder(net: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    """The layers of transformers' encoder, by the names of our outputs."""
    yield "stem", net.embeddings
    for index, stage in enumerate(net.encoder.stages):
        for block_index, block in enumerate(stage.layers):
            yield f"stage{index}/block{block_index}", block
        if stage.downsample is not None:
            yield f"stage{index}/downsample", stage.downsample


_PEERS = {
    "timm": (_build_timm, _watch_timm),
    "transformers": (_build_transformers, _watch_transformers),
}
