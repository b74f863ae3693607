"""Weights together with the model they belong to, read from wherever they are stored."""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

from etils import epath

from focalnet_jax.convert.infer import (
    head_settings,
    nearest_variant,
    unseen_options,
    visible_settings,
)
from focalnet_jax.convert.names import (
    MatchedWeights,
    Parameter,
    is_ignored,
    match_names,
)
from focalnet_jax.convert.weight_files import read_weights
from focalnet_jax.errors import SetupError, argument
from focalnet_jax.models.size import Model
from focalnet_jax.models.variants import VARIANTS
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
from focalnet_jax.weights.releases import HUB_FILES, download, is_published, unknown_name

# The safetensors files of this package hold the content of `model.json` in this entry of
# their metadata.
DESCRIPTION = "focalnet_jax"


@dataclasses.dataclass(frozen=True)
class WeightsAndModel:
    """Weights and the model that they belong to.

    Attributes:
      weights: the parameters by Flax path.
      description: the description of the model.
      model: the model that `description` describes.
      notes: sentences for the user about options that had to be guessed.
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
    path = _find_path(os.fspath(source))
    options = options or {}
    notes = ()
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
        description = _describe(path, weights, name)
        is_recorded = name is None and DESCRIPTION in weights.metadata
        if not is_recorded:
            notes = _unseen_notes(path, weights, description.name, options)
    description = _with_changes(description, name, options, image_size)
    try:
        model = create_classifier_or_backbone(description.name, description.overrides)
    except (TypeError, ValueError) as error:
        raise SetupError(str(error)) from error
    return WeightsAndModel(weights, description, model, notes)


def _find_path(source: str) -> epath.Path:
    """Finds the file or directory of weights, and downloads published weights."""
    path = absolute_path(source)
    if not path.exists() and is_published(source):
        path = epath.Path(download(source))
    if not path.exists():
        raise SetupError(unknown_name(source))
    if path.is_dir() and newest_params_path(path) is None:
        # It may be a directory that transformers' `save_pretrained` wrote.
        files = (path / name for name in HUB_FILES)
        path = next((file for file in files if file.exists()), path)
    return path


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
    path: epath.Path, weights: MatchedWeights, name: str | None
) -> ModelDescription:
    """Describes the model of a file's weights.

    A given name comes first, then what the file records, then what the shapes show.
    """
    if name is None and DESCRIPTION in weights.metadata:
        text = weights.metadata[DESCRIPTION]
        description = parse_description(text, origin=weights.origin)
    else:
        beside = _settings_beside(path, weights)
        if name is None:
            settings = visible_settings(weights.shapes, use_postln=weights.use_postln)
            name, overrides = nearest_variant(settings | beside)
        else:
            # A name says nothing about the head, so the weights decide about it. If the
            # rest does not fit the name, `fit_to_model` says so.
            overrides = head_settings(weights.shapes) | beside
        description = ModelDescription(name, overrides, default_preprocessing(name))
    return dataclasses.replace(
        description,
        source={
            "file": weights.origin,
            "sha256": weights.sha256,
            "dialect": weights.dialect.name,
            "dtype": _recorded_dtypes(weights),
        },
    )


def _with_changes(
    description: ModelDescription,
    name: str | None,
    options: dict[str, Any],
    image_size: int | None,
) -> ModelDescription:
    """Changes a description as asked. A changed head loses the names of its classes."""
    overrides = _with_options(description.overrides, options)
    keeps_head = all(
        overrides.get(option) == description.overrides.get(option)
        for option in HEAD_OPTIONS
    )
    preprocessing = description.preprocessing
    if image_size is not None:
        preprocessing = dataclasses.replace(preprocessing, image_size=image_size)
    return dataclasses.replace(
        description,
        name=name or description.name,
        overrides=overrides,
        preprocessing=preprocessing,
        classes=description.classes if keeps_head else None,
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


def _unseen_notes(
    path: epath.Path, weights: MatchedWeights, name: str, options: dict[str, Any]
) -> tuple[str, ...]:
    """Says which options the weights do not show."""
    if name not in VARIANTS:  # An error follows when the model is made.
        return ()
    seen = head_settings(weights.shapes) | _settings_beside(path, weights)
    if weights.use_postln is not None:
        seen["use_postln"] = weights.use_postln
    stem = weights.shapes.get("patch_embed/proj/kernel", ())
    seen["use_conv_embed"] = stem[:1] == (7,)
    note = unseen_options(name, seen, options)
    return (note,) if note else ()


def _settings_beside(path: epath.Path, weights: MatchedWeights) -> dict[str, Any]:
    """Reads options that weights do not show from transformers' `config.json`."""
    config = path.parent / "config.json"
    if weights.dialect.name != "transformers" or not config.exists():
        return {}
    try:
        content = json.loads(config.read_text("utf-8"))
        if content.get("model_type") != "focalnet":
            return {}
    except (ValueError, AttributeError):
        return {}  # The file belongs to something else.
    return {
        "normalize_modulator": bool(content.get("normalize_modulator")),
        "use_postln": bool(content.get("use_post_layernorm")),
    }


def _recorded_dtypes(weights: MatchedWeights) -> str | dict[str, str]:
    """The dtype of all parameters, or the dtype of each if there are several."""
    dtypes = {path: p.array.dtype.name for path, p in weights.parameters.items()}
    return dtypes if len(set(dtypes.values())) > 1 else next(iter(dtypes.values()))
