"""Directories as on the Hugging Face Hub, which transformers and timm load.

Both libraries read `config.json`. In a directory both would take `model.safetensors`, and
they have other names for the parameters. So there is none where both know the model:
transformers then takes the file that `model.safetensors.index.json` names, and timm the
first of all by their names, or on the Hub the one that `config.json` names.
"""

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from focalnet_jax.convert import to_torch
from focalnet_jax.convert.dialects import MICROSOFT_CAN, TRANSFORMERS
from focalnet_jax.convert.weight_files import write_weights
from focalnet_jax.errors import SetupError
from focalnet_jax.export.description import check_is_exported
from focalnet_jax.export.hub_files import (
    image_processor,
    labels_of,
    timm_entries,
    timm_model,
    transformers_entries,
)
from focalnet_jax.image_size import height_and_width
from focalnet_jax.models import FocalNet
from focalnet_jax.paths import check_may_write, local_path, written_aside
from focalnet_jax.preprocessing import Preprocessing
from focalnet_jax.pretrained import Pretrained

_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_INDEX, _ALONE = "model.safetensors.index.json", "model.safetensors"
_OF_TIMM, _OF_TRANSFORMERS = "timm.safetensors", "transformers.safetensors"
# All that may be in such a directory.
FILES = {_CONFIG, _PREPROCESSOR, _INDEX, _ALONE, _OF_TIMM, _OF_TRANSFORMERS}


class HubDirectory(NamedTuple):
    """The content of a directory.

    Attributes:
      texts: the contents of JSON files, by name.
      weights: the tensors of safetensors files, by name.
      notes: sentences for people on what a library can't do.
    """

    texts: dict[str, Any]
    weights: dict[str, dict[str, np.ndarray]]
    notes: tuple[str, ...]

    def write(self, path: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Writes the directory whole or not at all.

        Args:
          path: of the directory.
          overwrite: whether it may replace another directory that was written so.

        Raises:
          OSError: it can't be written.
          SetupError: there is something at `path` that is not to be replaced.
        """
        path = local_path(path)
        check_may_write(path, overwrite=overwrite, files=FILES)
        with written_aside(path) as aside:
            aside.mkdir()
            for name, content in self.texts.items():
                text = json.dumps(content, indent=2) + "\n"
                (aside / name).write_text(text, encoding="utf-8")
            for name, tensors in self.weights.items():
                write_weights(aside / name, tensors)


def export_hub(net: Pretrained) -> HubDirectory:
    """Makes a directory that transformers loads, and timm where it knows the model.

        export_hub(load_model("runs/digits")).write("digits")
        FocalNetForImageClassification.from_pretrained("digits")
        timm.create_model("local-dir:digits", pretrained=True)

    Args:
      net: a classifier, or one without its head.

    Raises:
      SetupError: transformers has no such model.
    """
    check_is_exported(net.model)
    if not isinstance(net.model, FocalNet):
        raise SetupError(
            "transformers and timm have no place for the norms of a backbone, and return "
            "other maps: only classifiers are written, with their head or without. "
            "python -m focalnet_jax.convert writes the weights of a backbone"
        )
    TRANSFORMERS.check_can_be(net.model.encoder)
    labels = labels_of(net)
    config = transformers_entries(net, labels=labels)
    texts = {_CONFIG: config, _PREPROCESSOR: image_processor(net.preprocessing)}
    notes = _notes_on_transformers(net)
    params = jax.tree.map(np.asarray, net.params)
    tensors = to_torch(params, net.model, dialect="transformers")
    try:
        made = timm_model(net.model.encoder)
    except SetupError as error:
        reason = error.marked.removesuffix(f". {MICROSOFT_CAN}")
        note = f"the directory is for transformers alone: {reason}"
        return HubDirectory(texts, {_ALONE: tensors}, (*notes, note))
    config |= timm_entries(net, made, labels=labels, weights=_OF_TIMM)
    texts[_INDEX] = _index(tensors)
    weights = {
        _OF_TRANSFORMERS: tensors,
        _OF_TIMM: to_torch(params, net.model, dialect="timm"),
    }
    return HubDirectory(texts, weights, (*notes, *_notes_on_timm(net)))


def _index(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The index of a checkpoint of a single file, as transformers reads it."""
    size = sum(tensor.nbytes for tensor in tensors.values())
    return {
        "metadata": {"total_size": size},
        "weight_map": dict.fromkeys(tensors, _OF_TRANSFORMERS),
    }


def _notes_on_transformers(net: Pretrained) -> tuple[str, ...]:
    preprocessing, encoder = net.preprocessing, net.model.encoder
    height, width = height_and_width(preprocessing.image_size)
    notes = []
    if height != width and not preprocessing.squash:
        notes.append(
            f"transformers cuts no {height} x {width} out of images of all proportions: "
            "it squeezes those of other proportions"
        )
    if not preprocessing.floor_offsets and _may_round(preprocessing):
        notes.append(
            "where the middle of an image begins between two pixels, transformers may "
            "cut it out one pixel further left or up than here"
        )
    if preprocessing.interpolation in ("box", "hamming"):
        notes.append(
            f"transformers resizes with {preprocessing.interpolation} by "
            'backend="pil" alone: AutoImageProcessor.from_pretrained(DIR, backend="pil")'
        )
    if len(preprocessing.mean) == 1:
        notes.append(
            "transformers makes no shades of grey of colours: give its image processor "
            'images of the mode "L"'
        )
    if not encoder.pad_to_patch and _leaves_rest(net):
        notes.append(
            f"{height} x {width} pixels are no multiple of the stride: transformers pads "
            "maps, whose last rows and columns are left out here, so its results differ"
        )
    if net.model.num_classes and not net.classes:
        notes.append(
            "the names of the classes are not known, so transformers calls them LABEL_0 "
            "and so on"
        )
    return tuple(notes)


def _notes_on_timm(net: Pretrained) -> tuple[str, ...]:
    notes = []
    if net.preprocessing.floor_offsets and _may_round(net.preprocessing):
        notes.append(
            "where the middle of an image begins between two pixels, timm may cut it out "
            "one pixel further right or down than here"
        )
    if net.model.encoder.pad_to_patch and _leaves_rest(net):
        notes.append(
            "timm leaves out the last rows and columns of maps that are padded here, so "
            "its results differ"
        )
    return tuple(notes)


def _may_round(preprocessing: Preprocessing) -> bool:
    """Whether a crop begins between two pixels, and rounding it up or down differs."""
    if not preprocessing.squash:
        return True  # It does in some images.
    sides = height_and_width(preprocessing.image_size)
    rests = [int(side / preprocessing.crop) - side for side in sides]
    return any(round(rest / 2) != rest // 2 for rest in rests)


def _leaves_rest(net: Pretrained) -> bool:
    """Whether a map of the net has a size that doesn't divide by its stride."""
    sides = height_and_width(net.preprocessing.image_size)
    return any(side % s for side, s in zip(sides, net.model.encoder.total_stride))
