"""The preprocessing that timm and transformers write into JSON files beside weights.

timm has it in `config.json`, in the entry `pretrained_cfg`, and transformers in
`preprocessor_config.json`. What is read makes the same pixels as timm's
`create_transform` and as transformers' image processors that work with PIL.
"""

import math
import numbers
from collections.abc import Mapping
from typing import Any

from focalnet_jax.errors import SetupError
from focalnet_jax.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

Content = Mapping[str, Any]
Found = tuple[Preprocessing, tuple[str, ...]]

# PIL's numbers of its filters, which transformers writes.
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
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


def read_timm(config: Content, *, origin: str) -> Found:
    """Reads the preprocessing from timm's `pretrained_cfg`.

    Returns:
      The preprocessing, and a sentence for each entry that cannot be heeded.

    Raises:
      SetupError: an entry is of the wrong type; the message names `origin`.
    """
    notes = []
    size = config.get("input_size") or (3, 224, 224)
    if not isinstance(size, list | tuple) or len(size) != 3:
        raise _wrong(origin, "input_size", size, "channels, height and width")
    channels, height, width = (_whole(origin, "input_size", side) for side in size)
    crop = _positive(origin, "crop_pct", config.get("crop_pct") or 0.875)
    for entry, value in (("test_input_size", [*size]), ("test_crop_pct", crop)):
        other = config.get(entry)
        if other and other != value:
            notes.append(
                f"{origin} has {entry}={other} too, for tests at another size; "
                f"{entry.removeprefix('test_')}={value} is taken, as by timm"
            )
    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        notes.append(
            f"{origin} has crop_mode={mode!r}, which preprocessing does not know: it "
            "cuts out the middle"
        )
    interpolation = config.get("interpolation") or "bicubic"
    if interpolation not in _FILTERS:
        notes.append(
            f"{origin} has interpolation={interpolation!r}, which preprocessing does not "
            "know: it is bicubic"
        )
        interpolation = "bicubic"
    preprocessing = Preprocessing(
        image_size=(height, width),
        mean=_statistics(origin, "mean", config.get("mean") or IMAGENET_MEAN, channels),
        std=_statistics(origin, "std", config.get("std") or IMAGENET_STD, channels),
        interpolation=interpolation,
        crop=crop,
        squash=mode == "squash",
    )
    return preprocessing, tuple(notes)


def read_transformers(content: Content, *, origin: str) -> Found:
    """Reads the preprocessing from transformers' `preprocessor_config.json`.

    Returns, raises: as `read_timm`.
    """
    if isinstance(content.get("pretrained_cfg"), Mapping):  # TimmWrapperImageProcessor
        return read_timm(content["pretrained_cfg"], origin=origin)
    kind, notes = _kind(content, origin)
    given = _PROCESSORS[kind] | {k: v for k, v in content.items() if v is not None}
    image_size, edge, squash, size_notes = _sizes(given, kind, origin)
    notes += size_notes
    if not given["do_resize"]:
        notes.append(
            f"{origin} has do_resize=false, and preprocessing always resizes: it makes "
            f"{image_size} x {image_size} pixels"
        )
    resample = given["resample"]
    if resample not in range(len(_FILTERS)):
        raise _wrong(origin, "resample", resample, "one of PIL's filters, 0 to 5")
    for step, value in content.items():
        if step.startswith("do_") and value and step not in _KNOWN_STEPS:
            notes.append(f"{origin} has {step}, which preprocessing does not do")

    # There pixels in [0, 255] are multiplied by the factor, and here by 1 / 255.
    factor = given.get("rescale_factor") or 1 / 255
    factor = _positive(origin, "rescale_factor", factor) if given["do_rescale"] else 1.0
    scale = 1.0 if math.isclose(255 * factor, 1, rel_tol=1e-6) else 255 * factor
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if given["do_normalize"]:
        mean = _statistics(origin, "image_mean", given["image_mean"])
        std = _statistics(origin, "image_std", given["image_std"])
    preprocessing = Preprocessing(
        image_size=image_size,
        mean=tuple(value / scale for value in mean),
        std=tuple(value / scale for value in std),
        interpolation=_FILTERS[resample],
        crop=_share(image_size, edge),
        squash=squash,
        floor_offsets=True,
    )
    return preprocessing, tuple(notes)


def _kind(content: Content, origin: str) -> tuple[str, list[str]]:
    """The image processor in `_PROCESSORS` that a file is of, or is read as."""
    name = content.get("image_processor_type") or content.get("feature_extractor_type")
    if name is None:
        return "Bit", []  # transformers takes it for FocalNets.
    kind = str(name).removesuffix("FeatureExtractor")
    for suffix in _SUFFIXES:
        kind = kind.removesuffix(suffix)
    if kind in _PROCESSORS:
        return kind, []
    return "Bit", [
        f"{origin} is for {name}, which is not known here: it is read as for "
        "BitImageProcessor"
    ]


def _sizes(given: Content, kind: str, origin: str) -> tuple[int, int, bool, list[str]]:
    """Side of the result, side that is resized to, whether images are squashed; notes."""
    edge, squash, notes = _edge(given["size"], kind, origin)
    if kind == "ConvNext" and not squash:
        if edge >= 384:
            return edge, edge, True, notes
        share = _positive(origin, "crop_pct", given["crop_pct"])
        return edge, int(edge / share), False, notes
    if given["do_center_crop"]:
        side, _, crop_notes = _edge(given["crop_size"], "ViT", origin, "crop_size")
        return side, edge, squash, notes + crop_notes
    if not squash:
        notes.append(
            f"{origin} has no crop, so that images keep their aspect ratio there; "
            "preprocessing cuts out the middle square"
        )
    return edge, edge, squash, notes


def _edge(
    size: Any, kind: str, origin: str, entry: str = "size"
) -> tuple[int, bool, list[str]]:
    """One side of a size, whether it is of both sides, and notes."""
    if isinstance(size, int):
        return _whole(origin, entry, size), kind in ("ViT", "DeiT"), []
    if isinstance(size, list | tuple) and len(size) == 2:
        size = dict(height=size[0], width=size[1])
    if not isinstance(size, Mapping):
        raise _wrong(origin, entry, size, "a size")
    if size.get("shortest_edge"):
        notes = []
        if size.get("longest_edge"):
            notes = [
                f"{origin} has a longest_edge, which preprocessing does not know: it "
                "resizes the shorter side"
            ]
        return _whole(origin, entry, size["shortest_edge"]), False, notes
    if not {"height", "width"} <= size.keys():
        raise _wrong(origin, entry, size, "a shortest_edge, or height and width")
    height, width = (_whole(origin, entry, size[side]) for side in ("height", "width"))
    notes = []
    if height != width:
        notes.append(
            f"{origin} has a {entry} of {height} x {width}, and preprocessing makes "
            f"squares: it takes {height} x {height}"
        )
    return height, True, notes


def _share(image_size: int, edge: int) -> float:
    """The share `crop` such that `int(image_size / crop)` is the edge."""
    crop = image_size / edge
    return crop if int(image_size / crop) == edge else math.nextafter(crop, 0)


def _whole(origin: str, entry: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _wrong(origin, entry, value, "a whole number of pixels from 1")
    return value


def _positive(origin: str, entry: str, value: Any) -> float:
    if not _is_number(value) or value <= 0:
        raise _wrong(origin, entry, value, "a number above 0")
    return float(value)


def _statistics(
    origin: str, entry: str, value: Any, channels: int = 3
) -> tuple[float, ...]:
    """A number for each channel; a single number is for all of them."""
    values = value if isinstance(value, list | tuple) else [value]
    is_right = all(map(_is_number, values)) and len(values) in (1, channels, 3)
    if entry.endswith("std"):
        is_right = is_right and min(values) > 0
    if not is_right:
        raise _wrong(origin, entry, value, f"{channels} numbers, one for each channel")
    return tuple(map(float, values)) * (channels if len(values) == 1 else 1)


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_real and math.isfinite(value)


def _wrong(origin: str, entry: str, value: Any, wanted: str) -> SetupError:
    return SetupError(f"{origin} has {entry}={value!r}, which is not {wanted}")
