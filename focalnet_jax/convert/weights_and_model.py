"""Weights together with the model they belong to, read from wherever they are stored."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from etils import epath

from focalnet_jax.convert.configs import CONFIGS, Beside, read_beside
from focalnet_jax.convert.infer import find_model
from focalnet_jax.convert.names import (
    MatchedWeights,
    Parameter,
    is_ignored,
    match_names,
)
from focalnet_jax.convert.weight_files import read_weights
from focalnet_jax.errors import SetupError, argument
from focalnet_jax.models.size import Model
from focalnet_jax.paths import absolute_path
from focalnet_jax.weights.description import (
    BACKBONE_OPTIONS,
    HEAD_OPTIONS,
    ModelDescription,
    create_classifier_or_backbone,
    default_preprocessing,
    find_description,
    parse_description,
)
from focalnet_jax.weights.params import (
    check_holds_params,
    newest_params_path,
    read_arrays,
)
from focalnet_jax.weights.releases import (
    HUB_FILES,
    download_with,
    is_published,
    unknown_name,
)

# The safetensors files of this package hold the content of `model.json` in this entry of
# their metadata.
DESCRIPTION = "focalnet_jax"


# What is likely of the classes of a head, by their number.
_OFFICIAL_HEADS = {
    1000: "those of ImageNet-1K in the order of their WordNet ids, if it is the official",
    21_841: "ImageNet-22K has as many, but the official head has 21,842",
    21_842: "those of ImageNet-22K in an order of their own, which begins with the "
    "classes of ImageNet-1K, if it is the official",
}


@dataclasses.dataclass(frozen=True)
class WeightsAndModel:
    """Weights and the model that they belong to.

    Attributes:
      weights: the parameters by Flax path.
      description: the description of the model.
      model: the model that `description` describes.
      notes: sentences for the user about what had to be guessed, and about what the
        files beside the weights say and is not heeded.
    """

    weights: MatchedWeights
    description: ModelDescription
    model: Model
    notes: tuple[str, ...]


def read_weights_and_model(
    source: str | os.PathLike,
    *,
    name: str | None = None,
    options: dict[str, Any] | None = None,
    image_size: int | None = None,
    wrapper: str | None = None,
    prefix: str | None = None,
    ignore: Sequence[str] = (),
) -> WeightsAndModel:
    """Reads weights and finds their model. It is not checked yet that both fit.

    Args:
      source: a workdir, a checkpoint, a converted directory, a file of weights,
        `hf:OWNER/NAME` or an official release.
      name: the name of the variant. None takes the recorded one or the nearest one.
      options: options of the model, which replace those that are recorded or inferred.
      image_size: side in pixels of the images that the model is for. None takes the
        recorded or the usual one.
      wrapper, prefix, ignore: as for `from_torch`. For a directory only `ignore` is
        allowed.

    Raises:
      SetupError: there is nothing at `source`, it cannot be read, the weights are of
        another architecture, or there is no such model.
    """
    path, notes = _find_path(os.fspath(source))
    options = options or {}
    if path.is_dir():
        if prefix or wrapper:
            raise SetupError(
                f"{path} is a directory: {argument('prefix')} and {argument('wrapper')} "
                "are for files"
            )
        weights, description = _read_directory(path, ignore)
    else:
        weights = match_names(
            read_weights(path, wrapper=wrapper), prefix=prefix, ignore=ignore
        )
        description, more = _describe(path, weights, name, options, image_size)
        notes += more
    description, more = _with_changes(description, name, options, image_size)
    notes += more
    try:
        model = create_classifier_or_backbone(description.name, description.overrides)
    except (TypeError, ValueError) as error:
        raise SetupError(str(error)) from error
    description, more = _with_channels(description, model.encoder.in_channels)
    notes += more + _padding_notes(weights, model, description.preprocessing.image_size)
    return WeightsAndModel(weights, description, model, notes)


def _find_path(source: str) -> tuple[epath.Path, tuple[str, ...]]:
    """Finds the file or directory of weights, and downloads published weights.

    Returns:
      The path, and notes about files beside the weights that could not be downloaded.
    """
    path, notes = absolute_path(source), ()
    if not path.exists() and is_published(source):
        found, notes = download_with(source, CONFIGS)
        path = epath.Path(found)
    if not path.exists():
        raise SetupError(unknown_name(source))
    if path.is_dir() and newest_params_path(path) is None:
        # It may be a directory that transformers' `save_pretrained` wrote.
        files = (path / name for name in HUB_FILES)
        path = next((file for file in files if file.exists()), path)
    return path, notes


def _read_directory(
    path: epath.Path, ignore: Sequence[str]
) -> tuple[MatchedWeights, ModelDescription]:
    params_path = check_holds_params(path)
    description = find_description(params_path.parent)
    if description is None:
        raise SetupError(f"{path} has parameters but no model.json to say of what model")
    parameters = {
        name: Parameter(name, array, array, name)
        for name, array in read_arrays(params_path).items()
        if not is_ignored(name, ignore)
    }
    return MatchedWeights(str(params_path), None, parameters), description


def _describe(
    path: epath.Path,
    weights: MatchedWeights,
    name: str | None,
    options: dict[str, Any],
    image_size: int | None,
) -> tuple[ModelDescription, tuple[str, ...]]:
    """Describes the model of a file's weights, with notes.

    A given name comes first, then what the file records, then what the shapes show and
    what the files beside it say.
    """
    recorded = None
    if DESCRIPTION in weights.metadata:
        text = weights.metadata[DESCRIPTION]
        recorded = parse_description(text, origin=weights.origin)
    if recorded is not None and name is None:
        description, notes = recorded, ()
    else:
        beside = read_beside(path)
        name, overrides, notes = find_model(
            weights, name=name, beside=beside, options=options
        )
        notes = beside.notes + notes
        if recorded is not None:
            notes += (
                f"{weights.origin} records a model, {recorded.name}; its options are not "
                "taken, because a name is given",
            )
            beside = Beside(
                preprocessing=recorded.preprocessing, classes=recorded.classes
            )
        description, more = _with_beside(name, overrides, beside, image_size)
        notes += more
    source = {
        "file": weights.origin,
        "sha256": weights.sha256,
        "dialect": weights.dialect.name,
        "dtype": _recorded_dtypes(weights),
    }
    return dataclasses.replace(description, source=source), notes


def _with_beside(
    name: str, overrides: dict[str, Any], beside: Beside, image_size: int | None
) -> tuple[ModelDescription, tuple[str, ...]]:
    """Describes a model with the preprocessing and the classes that files state."""
    notes = ()
    preprocessing = beside.preprocessing
    if preprocessing is None:
        preprocessing = default_preprocessing(name)
        image_size = image_size or beside.image_size
        assumed = preprocessing.to_json()
        if image_size:
            preprocessing = dataclasses.replace(preprocessing, image_size=image_size)
            del assumed["image_size"]
        values = ", ".join(f"{key}={value}" for key, value in assumed.items())
        notes += (
            "nothing says how images are prepared for these weights, so the "
            f"preprocessing of the official evaluation is assumed: {values}",
        )
    classes, head = beside.classes, overrides.get("num_classes", 1000)
    if BACKBONE_OPTIONS & overrides.keys() or not head:
        classes = None  # There is no head.
    elif classes and len(classes) != head:
        notes += (
            f"{beside.origin} beside the weights names {len(classes):,} classes, and the "
            f"head has {head:,}: the names are not taken",
        )
        classes = None
    if not classes and head in _OFFICIAL_HEADS:
        notes += (
            f"nothing says which {head:,} classes the head has: {_OFFICIAL_HEADS[head]}",
        )
    return ModelDescription(name, overrides, preprocessing, classes), notes


def _with_changes(
    description: ModelDescription,
    name: str | None,
    options: dict[str, Any],
    image_size: int | None,
) -> tuple[ModelDescription, tuple[str, ...]]:
    """Changes a description as asked. A changed head loses the names of its classes."""
    overrides = _with_options(description.overrides, options)
    keeps_head = all(
        overrides.get(option) == description.overrides.get(option)
        for option in HEAD_OPTIONS
    )
    preprocessing = description.preprocessing
    if image_size is not None:
        preprocessing = dataclasses.replace(preprocessing, image_size=image_size)
    notes = ()
    if description.classes and not keeps_head:
        notes = ("the names of the classes are left out, because the head changes",)
    changed = dataclasses.replace(
        description,
        name=name or description.name,
        overrides=overrides,
        preprocessing=preprocessing,
        classes=description.classes if keeps_head else None,
    )
    return changed, notes


def _with_channels(
    description: ModelDescription, channels: int
) -> tuple[ModelDescription, tuple[str, ...]]:
    """Gives mean and std as many numbers as the model takes channels."""
    preprocessing = description.preprocessing.with_channels(channels)
    if preprocessing == description.preprocessing:
        return description, ()
    how = "averaged" if channels == 1 else "repeated"
    note = (
        f"the model takes {channels} channels, so mean and std of the preprocessing are "
        f"{how}: mean={preprocessing.mean}, std={preprocessing.std}"
    )
    return dataclasses.replace(description, preprocessing=preprocessing), (note,)


def _padding_notes(
    weights: MatchedWeights, model: Model, image_size: int
) -> tuple[str, ...]:
    """Says if transformers would pad where this model leaves rows and columns out."""
    encoder = model.encoder
    stride = encoder.patch_size * 2 ** (len(encoder.depths) - 1)
    is_theirs = weights.dialect is not None and weights.dialect.name == "transformers"
    if not is_theirs or encoder.pad_to_patch or image_size % stride == 0:
        return ()
    return (
        f"{image_size} pixels are not a multiple of {stride}: transformers pads such "
        "maps, and here their last rows and columns are left out; pad_to_patch=True pads",
    )


def _with_options(overrides: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Adds options. Those of a classifier replace those of a backbone, and vice versa."""
    if "num_classes" in options and BACKBONE_OPTIONS & options.keys():
        raise SetupError("num_classes is for classifiers, out_stages for backbones")
    replaced = frozenset()
    if "num_classes" in options:
        replaced = BACKBONE_OPTIONS
    elif BACKBONE_OPTIONS & options.keys():
        replaced = {"num_classes"}
    return {k: v for k, v in overrides.items() if k not in replaced} | options


def _recorded_dtypes(weights: MatchedWeights) -> str | dict[str, str]:
    """The dtype of all parameters, or the dtype of each if there are several."""
    dtypes = {path: p.array.dtype.name for path, p in weights.parameters.items()}
    return dtypes if len(set(dtypes.values())) > 1 else next(iter(dtypes.values()))
