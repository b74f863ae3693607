"""The published FocalNets by name, and the functions that make them.

The settings are those of `configs/focalnet_*.yaml` in microsoft/FocalNet, for the
isotropic models those of its factory functions, and for the deeper models those of the
paper; the names are those of timm, which lacks the last two kinds. What all
have in common (`mlp_ratio` 4, `focal_factor` 2, `layerscale_value` 1e-4 and so on) are
the defaults of `FocalNetEncoder`.
"""

import contextlib
import dataclasses
import fnmatch
import math
from collections.abc import Collection, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from focalnet_jax.errors import OptionError, check_choice, counted, did_you_mean, shown
from focalnet_jax.models.encoder import FocalNetEncoder
from focalnet_jax.models.focalnet import FocalNet, FocalNetBackbone
from focalnet_jax.models.masked import MaskedFocalNet
from focalnet_jax.models.modulation import (
    MODULATIONS,
    FocalModulation,
    accepted,
    find_modulation,
    per_axis,
)
from focalnet_jax.models.options import (
    FLOAT_TYPES,
    NUM_CLASSES,
    OUT_STAGES,
    convert_option,
)
from focalnet_jax.values import Flag

# No net that was ever trained has nearly as many.
_MOST_BLOCKS = 1000
_MOST_PARAMETERS = 10**12


def _hierarchical(*, depths, embed_dim, levels, window=3, **options) -> dict[str, Any]:
    stages = len(depths)
    return dict(
        depths=depths,
        embed_dim=embed_dim,
        focal_levels=(levels,) * stages,
        focal_windows=(window,) * stages,
        **options,
    )


def _isotropic(embed_dim: int, **options) -> dict[str, Any]:
    return dict(
        depths=(12,),
        embed_dim=embed_dim,
        focal_levels=(3,),
        focal_windows=(3,),
        patch_size=16,
        **options,
    )


_T, _S = (2, 2, 6, 2), (2, 2, 18, 2)
_LARGE = dict(depths=_S, use_conv_embed=True, use_postln=True, use_layerscale=True)
_HUGE = dict(_LARGE, embed_dim=352, use_postln_in_modulation=True)
_DEEPER_T, _DEEPER_S = (3, 3, 16, 3), (4, 4, 28, 4)

VARIANTS: dict[str, dict[str, Any]] = {
    # For ImageNet-1K; SRF is the small receptive field and LRF the large one.
    "focalnet_tiny_srf": _hierarchical(depths=_T, embed_dim=96, levels=2),
    "focalnet_tiny_lrf": _hierarchical(depths=_T, embed_dim=96, levels=3),
    "focalnet_small_srf": _hierarchical(depths=_S, embed_dim=96, levels=2),
    "focalnet_small_lrf": _hierarchical(depths=_S, embed_dim=96, levels=3),
    "focalnet_base_srf": _hierarchical(depths=_S, embed_dim=128, levels=2),
    "focalnet_base_lrf": _hierarchical(depths=_S, embed_dim=128, levels=3),
    # For ImageNet-1K, with a single stage, as ViT.
    "focalnet_tiny_iso": _isotropic(192),
    "focalnet_small_iso": _isotropic(384),
    # The official yaml lacks the two options; the official factory function has them.
    "focalnet_base_iso": _isotropic(768, use_postln=True, use_layerscale=True),
    # For ImageNet-22K.
    "focalnet_large_fl3": _hierarchical(**_LARGE, embed_dim=192, levels=3, window=5),
    "focalnet_large_fl4": _hierarchical(
        **_LARGE, embed_dim=192, levels=4, normalize_modulator=True
    ),
    "focalnet_xlarge_fl3": _hierarchical(**_LARGE, embed_dim=256, levels=3, window=5),
    # Sources disagree: the official yaml does not normalise the modulator, and
    # FocalNet-DINO does.
    "focalnet_xlarge_fl4": _hierarchical(**_LARGE, embed_dim=256, levels=4),
    "focalnet_huge_fl3": _hierarchical(**_HUGE, levels=3),
    "focalnet_huge_fl4": _hierarchical(**_HUGE, levels=4),
    # For ImageNet-1K, deeper and thinner, SRF: Table 3 of the paper. No weights of these
    # are released. The published 25.1, 38.2 and 85.1 M parameters are met only with
    # `use_conv_embed`, which the paper does not say. So a part of what these models gain
    # may be due to the overlapping convolutions, which the paper also tries alone
    # (Table 2).
    "focalnet_tiny_deeper": _hierarchical(
        depths=_DEEPER_T, embed_dim=64, levels=2, use_conv_embed=True
    ),
    "focalnet_small_deeper": _hierarchical(
        depths=_DEEPER_S, embed_dim=64, levels=2, use_conv_embed=True
    ),
    "focalnet_base_deeper": _hierarchical(
        depths=_DEEPER_S, embed_dim=96, levels=2, use_conv_embed=True
    ),
}

# All options that `create_model` takes, except `num_classes`, and their fields.
ENCODER_OPTIONS = {
    field.name: field
    for field in dataclasses.fields(FocalNetEncoder)
    if field.name not in ("parent", "name")
}


def list_models(pattern: str | None = None) -> list[str]:
    """The names that `create_model` knows.

    Args:
      pattern: if it is given, only names that match it as in a shell: `"*tiny*"`.
    """
    return [name for name in VARIANTS if fnmatch.fnmatch(name, pattern or "*")]


def create_model(name: str, *, num_classes: int = 1000, **overrides: Any) -> FocalNet:
    """Makes a published FocalNet, or one that differs from it by `overrides`.

    Sources disagree about `normalize_modulator` of two variants, whose weights load with
    either value. Here it is True for `focalnet_large_fl4`, as in the official yaml, in
    FocalNet-DINO and in X-Decoder; timm leaves it out. It is False for
    `focalnet_xlarge_fl4`, as in the official yaml; FocalNet-DINO sets it. Whoever has the
    weights can measure which value is right.

    Args:
      name: one of `list_models()`.
      num_classes: the length of the logits; 0 for a model that returns pooled features.
      **overrides: any option of `FocalNetEncoder`, such as `depths`, `focal_levels`,
        `drop_path_rate`, `dtype` or `remat`.

    Returns:
      A `FocalNet`, which has `init(key, images)` and `apply({"params": ...}, images)`.

    Raises:
      OptionError: a value that an option does not allow; it is a ValueError.
      ValueError: an unknown name.
      TypeError: an unknown option.
    """
    num_classes = convert_option("num_classes", num_classes, NUM_CLASSES)
    encoder = create_encoder(name, overrides, num_classes=num_classes)
    return FocalNet(encoder, num_classes=num_classes)


def create_backbone(
    name: str,
    *,
    out_stages: Sequence[int] = (0, 1, 2, 3),
    out_norm: bool = True,
    **overrides: Any,
) -> FocalNetBackbone:
    """Makes a FocalNet that returns the maps of its stages, for dense prediction.

    The official code for dense prediction has `stem_padding=3` with `use_conv_embed`.

    Args:
      name: one of `list_models()`.
      out_stages: the stages whose maps to return, counted from 0.
      out_norm: whether each map passes through a LayerNorm of its own.
      **overrides: as for `create_model`.

    Returns:
      A `FocalNetBackbone`, whose `apply` returns a tuple of maps, `[b, h_s, w_s, c_s]`.

    Raises:
      OptionError: as `create_model`, and for a stage that the variant does not have.
      ValueError: an unknown name.
      TypeError: an unknown option.
    """
    if "num_classes" in overrides:
        raise TypeError(
            "a backbone has no head, and so no num_classes: leave it out, or make a "
            "classifier with create_model"
        )
    encoder = create_encoder(name, overrides)
    out_norm = convert_option("out_norm", out_norm, Flag())
    out_stages = convert_option("out_stages", out_stages, OUT_STAGES)
    stages = tuple(range(len(encoder.depths)))
    ascending = tuple(sorted(set(out_stages)))
    if not out_stages or out_stages != ascending or not set(out_stages) <= set(stages):
        raise OptionError(
            "out_stages",
            f"={out_stages} does not fit {name}: pass out_stages={stages} or some of "
            "them, each once, in ascending order",
        )
    return FocalNetBackbone(encoder, out_stages=out_stages, out_norm=out_norm)


def create_masked_model(name: str, **overrides: Any) -> MaskedFocalNet:
    """Makes a FocalNet for masked image modelling, which paints what it isn't shown.

    Args:
      name: one of `list_models()`.
      **overrides: as for `create_model`.

    Returns:
      A `MaskedFocalNet`, whose `apply` takes images and a mask and returns images.

    Raises:
      OptionError: as `create_model`.
      ValueError: an unknown name.
      TypeError: an unknown option.
    """
    if "num_classes" in overrides:
        raise TypeError(
            "a masked model has no head, and so no num_classes: leave it out, or make a "
            "classifier with create_model"
        )
    encoder = create_encoder(name, overrides)
    return MaskedFocalNet(encoder)


def create_encoder(
    name: str,
    overrides: dict[str, Any],
    *,
    of_head: Collection[str] = ("num_classes",),
    num_classes: int = 0,
) -> FocalNetEncoder:
    """Makes the encoder of a variant, for a model around it.

    Args:
      name: one of `list_models()`.
      overrides: options of `FocalNetEncoder`.
      of_head: the options that the caller takes beside those.
      num_classes: the length of the logits.

    Raises:
      OptionError, ValueError, TypeError: as `create_model`.
    """
    if not isinstance(name, str) or name not in VARIANTS:
        hint = did_you_mean(shown(name), VARIANTS)
        raise ValueError(f"no model is named {shown(name)}{hint}")
    for option in overrides:
        if option not in ENCODER_OPTIONS:
            names = [*ENCODER_OPTIONS, *of_head]
            raise TypeError(
                f"{name} has no option {option!r}{did_you_mean(option, names)}"
            )
    settings = VARIANTS[name] | overrides
    settings = {
        option: convert_option(option, value) for option, value in settings.items()
    }
    for option in ("dtype", "param_dtype"):
        if option in settings:
            settings[option] = _float_dtype(option, settings[option])
    # Inside of another module, the model around the encoder takes it in.
    encoder = FocalNetEncoder(**settings, parent=None)
    _check(encoder)
    _check_size(encoder, num_classes=num_classes)
    return encoder


def _float_dtype(option: str, value: Any) -> jnp.dtype:
    dtype = None
    # NumPy makes types of much else: of None, of short names, of tuples.
    is_named = isinstance(value, str) and value in FLOAT_TYPES
    if is_named or isinstance(value, (type, jnp.dtype)):
        with contextlib.suppress(TypeError):
            dtype = jnp.dtype(value)
    if dtype is None or dtype.name not in FLOAT_TYPES:
        raise OptionError(
            option,
            f"={shown(value)} is not a floating point type such as 'float32' or "
            "'bfloat16'",
        )
    return dtype


def _check(encoder: FocalNetEncoder) -> None:
    """Raises OptionError for values and combinations that make no network."""
    stages = len(encoder.depths)
    for option in ("focal_levels", "focal_windows"):
        entries = len(getattr(encoder, option))
        if entries != stages:
            raise OptionError(
                option, f" has {entries} entries and depths {stages}: give one a stage"
            )
    if int(encoder.embed_dim * encoder.mlp_ratio) < 1:
        raise OptionError(
            "mlp_ratio",
            f"={encoder.mlp_ratio:g} leaves no channel of embed_dim={encoder.embed_dim} "
            f"to the MLPs: {1 / encoder.embed_dim:g} is the least",
        )
    # An instance of a module is callable too, but it is not what makes one.
    modulation = encoder.modulation
    makes_modules = callable(modulation) and not isinstance(modulation, nn.Module)
    if isinstance(modulation, type):
        makes_modules = issubclass(modulation, nn.Module)
    if not makes_modules:
        check_choice("modulation", modulation, MODULATIONS)
    _check_axes(encoder)


def _check_axes(encoder: FocalNetEncoder) -> None:
    """Raises OptionError for values that don't fit the spatial axes, or each other."""
    rank = encoder.spatial_rank

    def check_count(option: str, value: int | Sequence[int]) -> None:
        if len(per_axis(value, rank)) != rank:
            raise OptionError(
                option,
                f" has {value}, but patch_size={encoder.patch_size} is for "
                f"{counted(rank, 'spatial axis', 'spatial axes')}: give one number "
                "for all, or one for each",
            )

    check_count("focal_factor", encoder.focal_factor)
    check_count("downsample_stride", encoder.downsample_stride)
    for window in encoder.focal_windows:
        check_count("focal_windows", window)
    patch = per_axis(encoder.patch_size, rank)
    if encoder.use_conv_embed and not {1, 4} >= set(patch):
        raise OptionError(
            "patch_size",
            f"={encoder.patch_size} has no effect with use_conv_embed=True, whose stem "
            "has stride 4: leave it at 4, or at 1 for an axis to leave alone",
        )
    if not set(encoder.global_axes) <= set(range(rank)):
        raise OptionError(
            "global_axes",
            f"={encoder.global_axes} names an axis that is none of the spatial axes "
            f"{tuple(range(rank))}",
        )
    if len(set(encoder.global_axes)) < len(encoder.global_axes):
        raise OptionError("global_axes", f"={encoder.global_axes} names an axis twice")
    make = find_modulation(encoder.modulation)
    for option in ("use_depthwise_bias", "causal", "global_axes"):
        value = getattr(encoder, option)
        if value and not accepted(make, {option: value}):
            raise OptionError(
                option,
                f"={value!r} has no effect on modulation={encoder.modulation!r}, which "
                "has no field of that name",
            )
    if not encoder.causal:
        if encoder.causal_window != FocalNetEncoder.causal_window:
            raise OptionError(
                "causal_window",
                f"={encoder.causal_window} has no effect without causal=True",
            )
        return
    if encoder.global_axes:
        raise OptionError(
            "global_axes",
            f"={encoder.global_axes} has no effect with causal=True, whose global level "
            "is a convolution over time: leave it at ()",
        )
    stride = per_axis(encoder.downsample_stride, rank)
    if encoder.use_conv_embed and max(patch[0], stride[0]) > 1:
        raise OptionError(
            "use_conv_embed",
            "=True has convolutions that reach into the future, which causal=True "
            "excludes, unless patch_size and downsample_stride are 1 on the first axis",
        )


def _check_size(encoder: FocalNetEncoder, *, num_classes: int) -> None:
    """Raises OptionError for a net that nobody can mean, before anything traces it."""
    blocks = sum(encoder.depths)
    if blocks > _MOST_BLOCKS:
        raise OptionError(
            "depths", f"={encoder.depths} are {blocks:,} blocks: {_MOST_BLOCKS:,} at most"
        )
    channels = encoder.embed_dim
    count = 0
    for depth, levels, window in zip(
        encoder.depths, encoder.focal_levels, encoder.focal_windows
    ):
        sizes = FocalModulation(levels, window, encoder.focal_factor, parent=None)
        taps = math.prod(sizes.kernel_sizes(encoder.spatial_rank)[-1])
        count += depth * channels * int(2 * encoder.mlp_ratio * channels + taps)
        channels *= 2
    count += num_classes * channels // 2
    if count > _MOST_PARAMETERS:
        raise OptionError(
            "embed_dim",
            f"={encoder.embed_dim}, with depths={encoder.depths}, "
            f"mlp_ratio={encoder.mlp_ratio:g} and {num_classes:,} classes, makes more "
            f"than {count:.1e} parameters: {_MOST_PARAMETERS:.0e} at most",
        )
