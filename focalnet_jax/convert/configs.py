"""What the JSON files of timm and transformers say of the weights beside them.

Weights do not show everything: `config.json` has options of the model and names of
classes, and it or `preprocessor_config.json` says how images are prepared. What these
files say and this package cannot do is either refused, if logits would be others, or said
in a note.
"""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from focalnet_jax.convert.entries import LIST_OR_OBJECT, OBJECT, read_entry
from focalnet_jax.convert.image_processors import (
    TIMM_ENTRIES,
    read_timm,
    read_transformers,
)
from focalnet_jax.errors import SetupError, first_few, first_line, shown
from focalnet_jax.image_size import ImageSize, parse_image_size
from focalnet_jax.models.options import NUM_CLASSES, OPTION_VALUES
from focalnet_jax.models.variants import VARIANTS
from focalnet_jax.preprocessing import Preprocessing
from focalnet_jax.values import Number, Several, Text, Values

CONFIG = "config.json"
_PREPROCESSOR = "preprocessor_config.json"
_PROCESSOR = "processor_config.json"
CONFIGS = (CONFIG, _PREPROCESSOR, _PROCESSOR)

# Options of the model by their names there.
TRANSFORMERS_OPTIONS = {
    "num_channels": "in_channels",
    "patch_size": "patch_size",
    "embed_dim": "embed_dim",
    "depths": "depths",
    "focal_levels": "focal_levels",
    "focal_windows": "focal_windows",
    "mlp_ratio": "mlp_ratio",
    "use_conv_embed": "use_conv_embed",
    "use_layerscale": "use_layerscale",
    "layerscale_value": "layerscale_value",
    "use_post_layernorm": "use_postln",
    "use_post_layernorm_in_modulation": "use_postln_in_modulation",
    "normalize_modulator": "normalize_modulator",
    "hidden_dropout_prob": "drop_rate",
    "drop_path_rate": "drop_path_rate",
    # transformers always pads, and passes over this entry, which this package writes.
    "pad_to_patch": "pad_to_patch",
}
TIMM_OPTIONS = {
    "in_chans": "in_channels",
    "num_classes": "num_classes",
    "embed_dim": "embed_dim",
    "depths": "depths",
    "mlp_ratio": "mlp_ratio",
    "focal_levels": "focal_levels",
    "focal_windows": "focal_windows",
    "use_overlap_down": "use_conv_embed",
    "use_post_norm": "use_postln",
    "use_post_norm_in_modulation": "use_postln_in_modulation",
    "normalize_modulator": "normalize_modulator",
    "layerscale_value": "layerscale_value",
    "proj_drop_rate": "drop_rate",
    "drop_path_rate": "drop_path_rate",
}
# Arguments of timm that make no difference to the result, or are read elsewhere.
_TIMM_WITHOUT_EFFECT = {
    *("global_pool", "drop_rate", "head_init_scale"),
    *("img_size", "pretrained", "scriptable", "exportable", "no_jit", "device", "dtype"),
}
# What transformers calls the class of a row that nobody has named.
MADE_UP = "LABEL_{}"
_EXACT_GELUS = ("gelu", "gelu_python")


@dataclasses.dataclass(frozen=True)
class Beside:
    """What the files beside weights say.

    Attributes:
      origin: the file that says it.
      stated: options of the model that it states, by our names; `num_classes` may be
        among them.
      implied: options that follow from what it does not state.
      preprocessing: how images are prepared; None if nothing says it.
      image_size: of the images, in pixels; None if nothing says it.
      classes: the names of the classes; None if they are not known.
      notes: sentences for the user about what is not heeded.
    """

    origin: str = ""
    stated: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    implied: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocessing: Preprocessing | None = None
    image_size: ImageSize | None = None
    classes: Sequence[str] | None = None
    notes: tuple[str, ...] = ()


def read_beside(path: epath.Path) -> Beside:
    """Reads what lies beside a file of weights, in the same directory.

    Raises:
      SetupError: a file there is damaged or has entries of the wrong type, or the model
        that it describes computes something that a model of this package cannot.
    """
    config = _read_json(path.parent / CONFIG)
    nested = config and config.get("backbone_config")
    if isinstance(nested, Mapping) and nested.get("model_type") == "focalnet":
        config = nested  # Of a detector, say.
    if config is None:
        beside = Beside()
    elif config.get("model_type") == "focalnet":
        beside = _read_transformers(config)
    elif str(config.get("architecture")).startswith("focalnet"):
        beside = _read_timm(config)
    else:
        kind = config.get("model_type") or config.get("architecture") or "no model"
        kind = kind if isinstance(kind, str) and kind.isprintable() else shown(kind)
        note = f"{CONFIG} beside the weights is of {kind}, so nothing there is heeded"
        return Beside(notes=(note,))
    return _with_image_processor(beside, path)


def _with_image_processor(beside: Beside, path: epath.Path) -> Beside:
    """Adds what the files of transformers' image processors say."""
    origin, content = _PROCESSOR, _read_json(path.parent / _PROCESSOR) or {}
    content = read_entry(content, "image_processor", OBJECT, origin=origin)
    if content is None:
        origin, content = _PREPROCESSOR, _read_json(path.parent / _PREPROCESSOR)
    if content is None:
        return beside
    channels = beside.stated.get("in_channels")
    preprocessing, notes = read_transformers(content, origin=origin, channels=channels)
    if beside.image_size not in (None, preprocessing.image_size):
        notes += (
            f"{CONFIG} has image_size={beside.image_size}, and {origin} makes images of "
            f"{preprocessing.image_size} pixels, which is taken",
        )
    return dataclasses.replace(
        beside, preprocessing=preprocessing, notes=beside.notes + notes
    )


def _read_json(path: epath.Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no such file."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise SetupError(
            f"{path}, beside the weights, is damaged: {first_line(error)}; mend it or "
            "move it away"
        ) from error
    if not isinstance(content, dict):
        raise SetupError(
            f"{path}, beside the weights, holds {type(content).__name__}, not an object: "
            "mend it or move it away"
        )
    return content


def _read_transformers(config: Mapping[str, Any]) -> Beside:
    """Reads a `FocalNetConfig`. Its `hidden_sizes` are often wrong, and not needed."""
    activation = _entry(config, "hidden_act", Text(), "gelu")
    if activation not in _EXACT_GELUS:
        raise SetupError(
            f"{CONFIG} beside the weights has hidden_act={shown(activation)}, and the "
            "MLPs of this package have the exact GELU alone: these weights can't be used "
            "here"
        )
    stated = _renamed(config, TRANSFORMERS_OPTIONS)
    notes = []
    if isinstance(stated.get("patch_size"), tuple):
        sides = stated["patch_size"]
        if len(set(sides)) != 1:
            raise SetupError(
                f"{CONFIG} beside the weights has patch_size={[*sides]}: patches of "
                "weights that are read are squares here"
            )
        stated["patch_size"] = sides[0]
    if stated.get("use_conv_embed"):
        stated.pop("patch_size", None)  # The overlapping stem has its own size.
    epsilon = _entry(config, "layer_norm_eps", Number(0, 1), 1e-5)
    if epsilon != 1e-5:
        notes.append(
            f"{CONFIG} has layer_norm_eps={epsilon}, and LayerNorms here have 1e-5, so "
            "results differ a little"
        )
    if "FocalNetBackbone" in _entry(config, "architectures", Several(Text()), ()):
        notes.append(
            f"{CONFIG} is of a FocalNetBackbone, which returns maps after the "
            "downsampling; here they are of before it"
        )
    if (size := config.get("image_size")) is not None:
        try:
            size = parse_image_size(size)
        except ValueError as error:
            notes.append(f"{CONFIG} has image_size={shown(size)}, which {error}")
            size = None
    classes, class_notes = _transformers_classes(config)
    return Beside(
        origin=CONFIG,
        stated=stated,
        implied=dict(
            normalize_modulator=False,
            use_postln=False,
            use_conv_embed=False,
            stem_padding=2,
        ),
        image_size=size,
        classes=classes,
        notes=(*notes, *class_notes),
    )


def _read_timm(config: Mapping[str, Any]) -> Beside:
    """Reads timm's `config.json`, of which older ones have all entries on one level."""
    name = config["architecture"].partition(".")[0]
    # Without an entry of its own, the preprocessing is on the first level.
    inner = _entry(config, "pretrained_cfg", OBJECT) or config
    given = _entry(config, "model_args", OBJECT, {})
    pool = _entry(given, "global_pool", Text(), _entry(config, "global_pool", Text()))
    if pool not in (None, "avg"):
        raise SetupError(
            f"{CONFIG} beside the weights has global_pool={shown(pool)}, and "
            "classifiers of this package take the mean: these weights can't be used here"
        )
    unknown = [
        argument
        for argument, value in given.items()
        if value is not None
        and argument not in TIMM_OPTIONS.keys() | _TIMM_WITHOUT_EFFECT
    ]
    notes = []
    if unknown:
        notes.append(f"{CONFIG} has model_args that are not heeded: {first_few(unknown)}")
    stated = _renamed(given, TIMM_OPTIONS)
    if "layerscale_value" in given:  # Without layer scale it is null.
        stated["use_layerscale"] = given["layerscale_value"] is not None
    variant = dict(VARIANTS.get(name, {}))
    num_classes = _entry(
        config, "num_classes", NUM_CLASSES, _entry(inner, "num_classes", NUM_CLASSES)
    )
    implied = dict(
        normalize_modulator=False, use_postln=False, use_conv_embed=False, stem_padding=2
    )
    if variant.pop("normalize_modulator", False) and "normalize_modulator" not in stated:
        if num_classes in (0, 21_842):
            # They are the official weights, which were trained with it.
            del implied["normalize_modulator"]
        else:
            notes.append(
                f"timm's {name} has normalize_modulator=False, and so it is taken; in "
                "the official code it is True"
            )
    if num_classes is not None:
        stated.setdefault("num_classes", num_classes)
    preprocessing = None
    if any(entry in inner for entry in TIMM_ENTRIES):
        preprocessing, size_notes = read_timm(
            inner, origin=CONFIG, channels=stated.get("in_channels")
        )
        notes += size_notes
    names = [
        (_entry(content, entry, LIST_OR_OBJECT), entry)
        for entry in ("label_names", "labels")
        for content in (config, inner)
    ]
    classes, class_notes = _listed(*next((n for n in names if n[0]), names[0]))
    return Beside(
        origin=CONFIG,
        stated=variant | stated,
        implied=implied,
        preprocessing=preprocessing,
        classes=classes,
        notes=(*notes, *class_notes),
    )


def _entry(
    config: Mapping[str, Any], entry: str, values: Values, default: Any = None
) -> Any:
    return read_entry(config, entry, values, origin=CONFIG, default=default)


def _renamed(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The options that a config states, by our names; null states nothing."""
    allowed = OPTION_VALUES | {"num_classes": NUM_CLASSES}
    stated = {
        ours: _entry(config, theirs, allowed[ours]) for theirs, ours in names.items()
    }
    return {option: value for option, value in stated.items() if value is not None}


def _transformers_classes(
    config: Mapping[str, Any],
) -> tuple[list[str] | None, tuple[str, ...]]:
    """The names of the classes; None for the numbers that transformers makes up."""
    by_id, by_name = (
        _entry(config, "id2label", LIST_OR_OBJECT),
        _entry(config, "label2id", OBJECT),
    )
    classes, notes = _listed(by_id, "id2label")
    if not by_id and by_name:
        numbered = [(number, name) for name, number in by_name.items()]
        classes, notes = _listed(numbered, "label2id")
    if classes and not without_made_up(classes):
        return None, ()
    if (
        by_id
        and by_name
        and classes
        and len({*classes}) == len(classes)  # One name has one number.
        and [by_name.get(name) for name in classes] != [*range(len(classes))]
    ):
        notes += (
            f"{CONFIG} has an id2label and a label2id that contradict each other: "
            "id2label is taken",
        )
    return classes, notes


def without_made_up(classes: Sequence[str]) -> Sequence[str]:
    """Leaves the names out that transformers makes up for the last classes, or for all.

    A head may have more rows than there are classes.
    """
    made_up = map(MADE_UP.format, reversed(range(len(classes))))
    pairs = zip(reversed(classes), made_up)
    count = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return classes[: len(classes) - count]


def _listed(names: Any, entry: str) -> tuple[list[str] | None, tuple[str, ...]]:
    """Names of classes in a list, of a list, or of pairs or an object of numbers."""
    if not names:
        return None, ()
    pairs = [*names.items()] if isinstance(names, Mapping) else names
    if all(isinstance(pair, tuple) for pair in pairs):
        by_number = {str(number): name for number, name in pairs}
        pairs = [by_number.get(str(number)) for number in range(len(pairs))]
    if all(isinstance(name, str) for name in pairs):
        return [*pairs], ()
    return None, (
        f"{CONFIG} has {entry} that do not name the classes from 0 on, one after the "
        "other, so they are not heeded",
    )
