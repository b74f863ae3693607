"""The JSON files of a directory that transformers and timm load.

`config.json` has the entries of both, each of which passes over those of the other one.
`preprocessor_config.json` is for transformers alone. `convert/configs.py` and
`convert/image_processors.py` read them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from focalnet_jax.convert.configs import MADE_UP, TIMM_OPTIONS, TRANSFORMERS_OPTIONS
from focalnet_jax.convert.dialects import TIMM
from focalnet_jax.convert.image_processor_sizes import written_sizes
from focalnet_jax.convert.image_processors import FILTERS
from focalnet_jax.errors import SetupError
from focalnet_jax.image_size import height_and_width
from focalnet_jax.models import FocalNetEncoder
from focalnet_jax.models.variants import ENCODER_OPTIONS, VARIANTS
from focalnet_jax.preprocessing import Preprocessing
from focalnet_jax.pretrained import Pretrained

# The options that timm's function of a variant sets itself, so that it takes no others:
# `timm/models/focalnet.py`, version 1.0.31.
_SRF = ("depths", "embed_dim")
_LRF = (*_SRF, "focal_levels")
_FL4 = (*_LRF, "use_conv_embed", "use_postln", "use_layerscale", "layerscale_value")
_FL3 = (*_FL4, "focal_windows")
SET_BY_TIMM = {
    **{f"focalnet_{size}_srf": _SRF for size in ("tiny", "small", "base")},
    **{f"focalnet_{size}_lrf": _LRF for size in ("tiny", "small", "base")},
    **{f"focalnet_{size}_fl3": _FL3 for size in ("large", "xlarge")},
    **{f"focalnet_{size}_fl4": _FL4 for size in ("large", "xlarge")},
    "focalnet_huge_fl3": (*_FL3, "use_postln_in_modulation"),
    "focalnet_huge_fl4": (*_FL4, "use_postln_in_modulation"),
}
# The model learns this by itself: the option is where it starts from.
_STARTS = frozenset({"layerscale_value"})


class TimmModel(NamedTuple):
    """A model as timm makes it.

    Attributes:
      name: of the function that makes it.
      arguments: of the function, but for the number of classes and of channels.
    """

    name: str
    arguments: dict[str, Any]


def timm_model(encoder: FocalNetEncoder) -> TimmModel:
    """Finds the function of timm that makes a model.

    Raises:
      SetupError: there is none; the message says why.
    """
    TIMM.check_can_be(encoder)
    options = [option for option in TIMM_OPTIONS.values() if option in ENCODER_OPTIONS]
    candidates = {}
    for name, fixed in SET_BY_TIMM.items():
        changed = {o for o in options if getattr(encoder, o) != _setting(name, o)}
        if not (changed - _STARTS) & {*fixed}:
            candidates[name] = len(changed)
    if not candidates:
        raise SetupError(
            f"timm has no FocalNet with depths={encoder.depths} and "
            f"embed_dim={encoder.embed_dim}"
        )
    name = min(candidates, key=candidates.__getitem__)
    arguments = {
        theirs: getattr(encoder, ours)
        for theirs, ours in TIMM_OPTIONS.items()
        if ours in options and ours not in (*SET_BY_TIMM[name], "in_channels")
    }
    if not encoder.use_layerscale:
        arguments["layerscale_value"] = None
    return TimmModel(name, arguments)


def _setting(name: str, option: str) -> Any:
    """The value of an option in a variant."""
    return VARIANTS[name].get(option, ENCODER_OPTIONS[option].default)


def timm_entries(
    net: Pretrained, made: TimmModel, *, labels: Sequence[str], weights: str
) -> dict[str, Any]:
    """The entries of `config.json` that timm reads.

    Args:
      net: the model.
      made: how timm makes it.
      labels: the names of the classes, one for each row of the head; empty if they are
        not known.
      weights: the file of its weights, for which timm asks the Hub.
    """
    preprocessing, encoder = net.preprocessing, net.model.encoder
    sides = height_and_width(preprocessing.image_size)
    return {
        "architecture": made.name,
        "model_args": made.arguments,
        "pretrained_cfg": {
            "num_classes": net.model.num_classes,
            "input_size": (encoder.in_channels, *sides),
            "interpolation": preprocessing.interpolation,
            "crop_pct": preprocessing.crop,
            "crop_mode": "squash" if preprocessing.squash else "center",
            "mean": preprocessing.mean,
            "std": preprocessing.std,
            **({"label_names": labels} if labels else {}),
            "first_conv": "stem.proj",
            "classifier": "head.fc",
            "hf_hub_filename": weights,
        },
    }


def transformers_entries(net: Pretrained, *, labels: Sequence[str]) -> dict[str, Any]:
    """The entries of `config.json` that transformers reads, as a `FocalNetConfig`.

    Args:
      net: the model.
      labels: as for `timm_entries`.
    """
    model, encoder = net.model, net.model.encoder
    channels = [encoder.embed_dim * 2**stage for stage in range(len(encoder.depths))]
    options = {
        theirs: getattr(encoder, ours) for theirs, ours in TRANSFORMERS_OPTIONS.items()
    }
    if not options["pad_to_patch"]:
        del options["pad_to_patch"]  # It is no option of transformers.
    names: dict[str, Any] = {}
    if model.num_classes:
        labels = labels or _made_up(model.num_classes)
        names["id2label"] = {str(index): label for index, label in enumerate(labels)}
        names["label2id"] = {label: index for index, label in enumerate(labels)}
    kind = "FocalNetForImageClassification" if model.num_classes else "FocalNetModel"
    return {
        "model_type": "focalnet",
        "architectures": [kind],
        "image_size": net.preprocessing.image_size,
        **options,
        # Of the maps after the downsampling of each stage; the last one has none.
        "hidden_sizes": [*channels[1:], channels[-1]],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "encoder_stride": max(encoder.total_stride),
        **names,
    }


def image_processor(preprocessing: Preprocessing) -> dict[str, Any]:
    """The content of `preprocessor_config.json`, for transformers."""
    return {
        "image_processor_type": "BitImageProcessor",
        # It makes three channels of every image.
        "do_convert_rgb": len(preprocessing.mean) == 3,
        "do_resize": True,
        "resample": FILTERS.index(preprocessing.interpolation),
        "do_center_crop": True,
        **written_sizes(preprocessing),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": preprocessing.mean,
        "image_std": preprocessing.std,
    }


def labels_of(net: Pretrained) -> list[str]:
    """A name for each row of the head; an empty list if no class has one."""
    rows = net.model.num_classes
    if not net.classes or not rows:
        return []
    return [*net.classes, *_made_up(rows)[len(net.classes) :]]


def _made_up(count: int) -> list[str]:
    return [*map(MADE_UP.format, range(count))]
