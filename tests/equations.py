"""The paper's equations in PyTorch, as plainly as possible.

They are written after the forward pass of the official code, and after that of FocalCodec
(`focalcodec/focalnet.py`) for biases of the depthwise convolutions and for causal
modulation. Parameters are those of Flax, as tensors, and maps have channels last.
"""

import torch
import torch.nn.functional as F


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def layer_norm(p, x):
    return F.layer_norm(x, x.shape[-1:], p["scale"], p["bias"], eps=1e-5)


def convolve(p, x, **options):
    weight = p["kernel"].movedim((-1, -2), (0, 1))
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[x.ndim - 2]
    return function(x.movedim(-1, 1), weight, p.get("bias"), **options).movedim(1, -1)


def embed(p, x, **options):
    return layer_norm(p["norm"], convolve(p["proj"], x, **options))


def modulate(p, x, *, levels, normalize, causal=False, global_axes=()):
    channels = x.shape[-1]
    query, context, gates = dense(p["f"], x).split([channels, channels, levels + 1], -1)

    def contextualise(level):
        layer = p[f"focal_layers_{level}"]
        if not causal:
            return convolve(layer, context, padding="same", groups=channels)
        past = context[:, :1].expand(-1, layer["kernel"].shape[0] - 1, -1)
        return convolve(layer, torch.cat([past, context], 1), groups=channels)

    aggregated = 0
    for level in range(levels):
        context = F.gelu(contextualise(level))
        aggregated = aggregated + context * gates[..., level : level + 1]
    pooled = contextualise(levels) if causal else context
    for axis in () if causal else global_axes or range(x.ndim - 2):
        pooled = pooled.mean(axis + 1, keepdim=True)
    aggregated = aggregated + F.gelu(pooled) * gates[..., levels:]
    if normalize:
        aggregated = aggregated / (levels + 1)
    x = query * dense(p["h"], aggregated)
    if "ln" in p:
        x = layer_norm(p["ln"], x)
    return dense(p["proj"], x)


def block(p, x, *, post_norm, **options):
    def branch(x, function, norm, gamma):
        y = norm(function(x)) if post_norm else function(norm(x))
        return x + p[gamma] * y if gamma in p else x + y

    def mlp(x):
        return dense(p["mlp"]["fc2"], F.gelu(dense(p["mlp"]["fc1"], x)))

    def modulation(x):
        return modulate(p["modulation"], x, **options)

    x = branch(x, modulation, lambda y: layer_norm(p["norm1"], y), "gamma_1")
    return branch(x, mlp, lambda y: layer_norm(p["norm2"], y), "gamma_2")


def encode(p, x, encoder):
    """The map of each stage, before its downsampling."""
    overlaps = encoder.use_conv_embed
    stride, padding = (4, encoder.stem_padding) if overlaps else (encoder.patch_size, 0)
    x = embed(p["patch_embed"], x, stride=stride, padding=padding)
    maps = []
    for stage, depth in enumerate(encoder.depths):
        layer = p[f"layers_{stage}"]
        for index in range(depth):
            x = block(
                layer[f"blocks_{index}"],
                x,
                post_norm=encoder.use_postln,
                levels=encoder.focal_levels[stage],
                normalize=encoder.normalize_modulator,
                causal=encoder.causal,
                global_axes=encoder.global_axes,
            )
        maps.append(x)
        if "downsample" in layer:
            stride = encoder.downsample_stride
            x = embed(layer["downsample"], x, stride=stride, padding=1 if overlaps else 0)
    return maps


def focalnet(p, x, encoder):
    spatial = tuple(range(1, x.ndim - 1))
    x = encode(p, x, encoder)[-1]
    return dense(p["head"], layer_norm(p["norm"], x).mean(spatial))
