"""The published FocalNets by name, and the functions that make them.

The settings are those of `configs/focalnet_*.yaml` in microsoft/FocalNet, for the
isotropic models those of its factory functions, and for the deeper models those of the
paper; the names are those of timm, which lacks the last two kinds. What all
have in common (`mlp_ratio` 4, `focal_factor` 2, `layerscale_value` 1e-4 and so on) are
the defaults of `FocalNetEncoder`.
"""

import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from focalnet_jax.errors import OptionError, check_choice, did_you_mean
from focalnet_jax.models.focalnet import (
    REMAT_POLICIES,
    FocalNet,
    FocalNetBackbone,
    FocalNetEncoder,
)
from focalnet_jax.models.modulation import MODULATIONS
from focalnet_jax.ops import IMPLEMENTATIONS


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


def create_model(name: str, *, num_classes: int = 1000, **overrides) -> FocalNet:
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
    if isinstance(num_classes, bool) or not _is_whole(num_classes, least=0):
        raise OptionError("num_classes", f"={num_classes!r} is not a whole number from 0")
    return FocalNet(_create_encoder(name, overrides), num_classes=num_classes)


def create_backbone(
    name: str,
    *,
    out_stages: Sequence[int] = (0, 1, 2, 3),
    out_norm: bool = True,
    **overrides,
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
    encoder = _create_encoder(name, overrides)
    out_stages, stages = tuple(out_stages), tuple(range(len(encoder.depths)))
    ascending = tuple(sorted(set(out_stages)))
    if not out_stages or out_stages != ascending or not set(out_stages) <= set(stages):
        raise OptionError(
            "out_stages",
            f"={out_stages} does not fit {name}: pass out_stages={stages} or some of "
            "them, each once, in ascending order",
        )
    return FocalNetBackbone(encoder, out_stages=out_stages, out_norm=out_norm)


def _create_encoder(name: str, overrides: dict[str, Any]) -> FocalNetEncoder:
    if name not in VARIANTS:
        raise ValueError(f"no model is named {name!r}{did_you_mean(name, VARIANTS)}")
    for option in overrides:
        if option not in ENCODER_OPTIONS:
            names = [*ENCODER_OPTIONS, "num_classes"]
            raise TypeError(
                f"{name} has no option {option!r}{did_you_mean(option, names)}"
            )
    settings = VARIANTS[name] | overrides
    for option in ("depths", "focal_levels", "focal_windows"):
        settings[option] = _per_stage(option, settings[option])
    for option in ("embed_dim", "patch_size", "in_channels"):
        if _is_whole(settings.get(option), least=1):
            settings[option] = int(settings[option])
    for option in ("dtype", "param_dtype"):
        if option in settings:
            settings[option] = _float_dtype(option, settings[option])
    encoder = FocalNetEncoder(**settings)
    _check(encoder)
    return encoder


def _per_stage(option: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, Sequence) and all(_is_whole(v, least=1) for v in value):
        return tuple(int(v) for v in value)
    raise OptionError(
        option,
        f"={value!r} is not a tuple of whole numbers from 1, one for each stage",
    )


def _float_dtype(option: str, value: Any) -> jnp.dtype:
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise OptionError(
            option,
            f"={value!r} is not a floating point type such as 'float32' or 'bfloat16'",
        )
    return dtype


def _is_whole(value: Any, *, least: int) -> bool:
    try:
        return int(value) == value and value >= least
    except (TypeError, ValueError):
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check(encoder: FocalNetEncoder) -> None:
    """Raises OptionError for values and combinations that make no network."""

    def require(is_right: bool, option: str, problem: str) -> None:
        if not is_right:
            value = getattr(encoder, option)
            raise OptionError(option, f"={value!r} {problem}")

    stages = len(encoder.depths)
    for option in ("focal_levels", "focal_windows"):
        entries = len(getattr(encoder, option))
        if entries != stages:
            raise OptionError(
                option, f" has {entries} entries and depths {stages}: give one a stage"
            )
    for option in ("embed_dim", "patch_size", "in_channels"):
        is_right = _is_whole(getattr(encoder, option), least=1)
        require(is_right, option, "is not a whole number from 1")
    for option in ("focal_factor", "stem_padding"):
        is_right = _is_whole(getattr(encoder, option), least=0)
        require(is_right, option, "is not a whole number from 0")
    for levels, window in zip(encoder.focal_levels, encoder.focal_windows):
        sizes = [window + encoder.focal_factor * level for level in range(levels)]
        if any(size % 2 == 0 for size in sizes):
            raise OptionError(
                "focal_windows",
                f" and focal_factor give kernel sizes {sizes}: use odd windows and an "
                "even factor, so that every kernel has a centre",
            )
    require(
        not encoder.use_conv_embed or encoder.patch_size == 4,
        "patch_size",
        "has no effect with use_conv_embed=True, whose stem is 7x7 with stride 4: leave "
        "it at 4",
    )
    for option, field in ENCODER_OPTIONS.items():
        is_right = isinstance(getattr(encoder, option), bool)
        if isinstance(field.default, bool):
            require(is_right, option, "is neither True nor False")
    for option in ("drop_rate", "drop_path_rate", "mlp_ratio", "layerscale_value"):
        require(_is_number(getattr(encoder, option)), option, "is not a number")
    for option in ("drop_rate", "drop_path_rate"):
        require(0 <= getattr(encoder, option) < 1, option, "is not in [0, 1)")
    require(encoder.mlp_ratio > 0, "mlp_ratio", "is not above 0")
    check_choice("implementation", encoder.implementation, IMPLEMENTATIONS)
    check_choice("remat", encoder.remat, REMAT_POLICIES)
    # An instance of a module is callable too, but it is not what makes one.
    makes_modules = callable(encoder.modulation)
    if not makes_modules or isinstance(encoder.modulation, nn.Module):
        check_choice("modulation", encoder.modulation, MODULATIONS)
