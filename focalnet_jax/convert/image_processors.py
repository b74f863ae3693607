"""The preprocessing that timm and transformers write into JSON files beside weights.

timm has it in `config.json`, in the entry `pretrained_cfg`, and transformers in
`preprocessor_config.json`. What is read makes the same pixels as timm's
`create_transform` and as transformers' image processors that work with PIL. Both files
are written by `export/hub_files.py`.
"""

import math
from typing import Any

from focalnet_jax.convert.entries import OBJECT, Content, read_entry
from focalnet_jax.convert.image_processor_sizes import SIDE, read_sizes
from focalnet_jax.errors import SetupError, shown
from focalnet_jax.preprocessing import (
    CROP,
    IMAGENET_MEAN,
    IMAGENET_STD,
    MEAN,
    STD,
    Preprocessing,
)
from focalnet_jax.values import Either, Flag, Number, Several, Text, Values, Whole

Found = tuple[Preprocessing, tuple[str, ...]]

# PIL's numbers of its filters, which transformers writes.
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# What the image processors of transformers do where their file says nothing.
_COMMON = dict(do_resize=True, do_rescale=True, do_normalize=True, resample=3)
_BIT = _COMMON | dict(
    size={"shortest_edge": 224},
    do_center_crop=True,
    crop_size=224,
    image_mean=_CLIP_MEAN,
    image_std=_CLIP_STD,
)
_PROCESSORS = {
    "Bit": _BIT,
    "CLIP": _BIT,
    "ViT": _COMMON
    | dict(size={"height": 224, "width": 224}, resample=2)
    | dict(do_center_crop=False, image_mean=_HALF, image_std=_HALF),
    "DeiT": _COMMON
    | dict(size={"height": 256, "width": 256}, do_center_crop=True, crop_size=224)
    | dict(image_mean=_HALF, image_std=_HALF),
    "ConvNext": _COMMON
    | dict(size={"shortest_edge": 384}, do_center_crop=False, crop_pct=0.875)
    | dict(image_mean=_HALF, image_std=_HALF),
}
_SUFFIXES = ("ImageProcessorPil", "ImageProcessorFast", "ImageProcessor")
# Steps that make no difference for RGB images of a classifier, or that are read here.
_KNOWN_STEPS = {*_COMMON, "do_center_crop", "do_convert_rgb", "do_reduce_labels"}

TIMM_ENTRIES = ("input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")

_INPUT_SIZE = Several(
    SIDE, least=3, most=3, noun="list", note="which are channels, height and width"
)
_FILTER = Whole(0, len(FILTERS) - 1, note="which are PIL's filters")
_FACTOR = Number(1e-6, 1e3)


def read_timm(config: Content, *, origin: str, channels: int | None = None) -> Found:
    """Reads the preprocessing from timm's `pretrained_cfg`.

    Args:
      config: the content.
      origin: the file, for messages.
      channels: those that the model is said to take; None if nothing says it.

    Returns:
      The preprocessing, and a sentence for each entry that cannot be heeded.

    Raises:
      SetupError: an entry is of the wrong type or out of range; the message names
        `origin`.
    """

    def entry(name, values, default):
        return read_entry(config, name, values, origin=origin, default=default)

    notes = []
    size = entry("input_size", _INPUT_SIZE, (channels or 3, 224, 224))
    crop = entry("crop_pct", CROP, 0.875)
    for name, values, value in (
        ("test_input_size", _INPUT_SIZE, size),
        ("test_crop_pct", CROP, crop),
    ):
        if (other := entry(name, values, value)) != value:
            notes.append(
                f"{origin} has {name}={_as_json(other)} too, for tests at another size; "
                f"{name.removeprefix('test_')}={_as_json(value)} is taken, as by timm"
            )
    mode = entry("crop_mode", Text(), "center")
    if mode not in ("center", "squash"):
        notes.append(
            f"{origin} has crop_mode={shown(mode)}, which preprocessing does not know: "
            "it cuts out the middle"
        )
    interpolation = entry("interpolation", Text(), "bicubic")
    if interpolation not in FILTERS:
        notes.append(
            f"{origin} has interpolation={shown(interpolation)}, which preprocessing "
            "does not know: it is bicubic"
        )
        interpolation = "bicubic"
    lengths = (channels or size[0], size[0], 3)
    preprocessing = _made(
        origin,
        image_size=size[1:],
        interpolation=interpolation,
        crop=crop,
        squash=mode == "squash",
        **_by_channel(
            entry("mean", _each(MEAN, lengths), IMAGENET_MEAN),
            entry("std", _each(STD, lengths), IMAGENET_STD),
            lengths[0],
        ),
    )
    return preprocessing, tuple(notes)


def read_transformers(
    content: Content, *, origin: str, channels: int | None = None
) -> Found:
    """Reads the preprocessing from transformers' `preprocessor_config.json`.

    Args, returns, raises: as `read_timm`.
    """
    # It is there for a TimmWrapperImageProcessor.
    timms = read_entry(content, "pretrained_cfg", OBJECT, origin=origin)
    if timms is not None:
        return read_timm(timms, origin=origin, channels=channels)
    kind, notes = _kind(content, origin)
    given = _PROCESSORS[kind] | {k: v for k, v in content.items() if v is not None}

    def entry(name, values, default=None):
        return read_entry(given, name, values, origin=origin, default=default)

    does = {step: entry(step, Flag()) for step in given if step.startswith("do_")}
    for step, value in does.items():
        if value and step not in _KNOWN_STEPS:
            notes.append(f"{origin} has {step}, which preprocessing does not do")
    sizes, size_notes = read_sizes(given, kind, does["do_center_crop"], origin)
    notes += size_notes
    if not does["do_resize"]:
        height, width = sizes["image_size"]
        notes.append(
            f"{origin} has do_resize=false, and preprocessing always resizes: it makes "
            f"{height} x {width} pixels"
        )

    # There pixels in [0, 255] are multiplied by the factor, and here by 1 / 255.
    factor = entry("rescale_factor", _FACTOR, 1 / 255) if does["do_rescale"] else 1.0
    scale = 1.0 if math.isclose(255 * factor, 1, rel_tol=1e-6) else 255 * factor
    lengths = (channels, 3) if channels else None
    mean, std = (
        entry("image_mean", _each(MEAN, lengths)),
        entry("image_std", _each(STD, lengths)),
    )
    if not does["do_normalize"]:
        mean, std = 0.0, 1.0
    statistics = _by_channel(mean, std, channels or 3)
    preprocessing = _made(
        origin,
        mean=tuple(value / scale for value in statistics["mean"]),
        std=tuple(value / scale for value in statistics["std"]),
        interpolation=FILTERS[entry("resample", _FILTER)],
        **dict(floor_offsets=True) | sizes,
    )
    return preprocessing, tuple(notes)


def _made(origin: str, **values: Any) -> Preprocessing:
    """The preprocessing of values that follow from the entries of a file."""
    try:
        return Preprocessing(**values)
    except ValueError as error:
        raise SetupError(
            f"{origin} asks for a preprocessing that is not possible here: {error}; mend "
            "its entries, or move the file away from the weights"
        ) from error


def _as_json(value: Any) -> Any:
    return [*value] if isinstance(value, tuple) else value


def _kind(content: Content, origin: str) -> tuple[str, list[str]]:
    """The image processor in `_PROCESSORS` that a file is of, or is read as."""
    names = [
        read_entry(content, entry, Text(), origin=origin)
        for entry in ("image_processor_type", "feature_extractor_type")
    ]
    name = names[0] or names[1]
    if name is None:
        return "Bit", []  # transformers takes it for FocalNets.
    kind = name.removesuffix("FeatureExtractor")
    for suffix in _SUFFIXES:
        kind = kind.removesuffix(suffix)
    if kind in _PROCESSORS:
        return kind, []
    return "Bit", [
        f"{origin} is for {name}, which is not known here: it is read as for "
        "BitImageProcessor"
    ]


def _each(values: Values, lengths: tuple[int, ...] | None) -> Values:
    """A number for all channels, or one for each.

    Args:
      values: what a number may be.
      lengths: how many there may be, the likeliest first; None if nothing says it.
    """

    def check(numbers):
        if lengths is None or len(numbers) in (1, *lengths):
            return None
        return "has another number of channels"

    note = f"one for each of {lengths[0]} channels" if lengths else "one for each channel"
    several = Several(values, least=1, most=2**16, noun="list", check=check, note=note)
    return Either((values, several))


def _by_channel(
    mean: float | tuple[float, ...], std: float | tuple[float, ...], channels: int
) -> dict[str, tuple[float, ...]]:
    """Mean and std with a number for each channel, where one may be for all."""
    given = {
        name: value if isinstance(value, tuple) else (value,)
        for name, value in (("mean", mean), ("std", std))
    }
    most = max(map(len, given.values()))
    repeats = channels if most == 1 else most
    return {name: n * repeats if len(n) == 1 else n for name, n in given.items()}
