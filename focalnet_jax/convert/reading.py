"""Parameters and the model they belong to, from wherever they lie."""

import dataclasses
import fnmatch
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
from focalnet_jax.convert.names import Parameter, Source, understand
from focalnet_jax.convert.weight_files import read_weights
from focalnet_jax.errors import SetupError
from focalnet_jax.models.variants import VARIANTS
from focalnet_jax.paths import absolute_path
from focalnet_jax.weights.description import (
    BACKBONE_OPTIONS,
    HEAD_OPTIONS,
    Model,
    ModelDescription,
    create,
    default_preprocessing,
    find_description,
    parse_description,
)
from focalnet_jax.weights.params import (
    check_holds_params,
    newest_params_path,
    read_arrays,
)
from focalnet_jax.weights.releases import HUB_FILES, fetch, is_remote, unknown_name

# Under which our own safetensors files carry what `model.json` holds.
DESCRIPTION = "focalnet_jax"


@dataclasses.dataclass(frozen=True)
class Reading:
    """What was found.

    Attributes:
      source: the parameters, by their Flax paths.
      description: the model, as far as it can be told.
      model: the same, made.
      notes: what a reader should know.
    """

    source: Source
    description: ModelDescription
    model: Model
    notes: tuple[str, ...]


def read_model(
    source: str | os.PathLike,
    *,
    name: str | None = None,
    options: dict[str, Any] | None = None,
    image_size: int | None = None,
    wrapper: str | None = None,
    prefix: str | None = None,
    ignore: Sequence[str] = (),
) -> Reading:
    """Reads parameters and finds their model; nothing is checked against it yet.

    Args:
      source: a workdir, a checkpoint, a converted directory, a file of weights,
        `hf:OWNER/NAME` or an official release.
      name: of the variant; None takes the recorded or the nearest one.
      options: of the model, over those that are recorded or seen.
      image_size: that the weights are for; None takes the recorded or the usual one.
      wrapper, prefix, ignore: as for `from_torch`; a directory has only `ignore`.

    Raises:
      SetupError: nothing there, unreadable, another architecture, or no such model.
    """
    path = _locate(os.fspath(source))
    notes = ()
    if path.is_dir():
        if prefix or wrapper:
            raise SetupError(f"{path} is a directory: prefix and wrapper are for files")
        found, description = _read_directory(path, ignore)
    else:
        weights = read_weights(path, wrapper=wrapper)
        found = understand(weights, prefix=prefix, ignore=ignore)
        description = _describe(path, found, name)
        is_recorded = name is None and DESCRIPTION in found.metadata
        if not is_recorded:
            notes = _notes(path, found, description.name, options or {})
    description = _adjusted(description, name, options or {}, image_size)
    try:
        model = create(description.name, description.overrides)
    except (TypeError, ValueError) as error:
        raise SetupError(str(error)) from error
    return Reading(found, description, model, notes)


def _locate(source: str) -> epath.Path:
    """The file or directory that is meant, downloaded if need be."""
    path = absolute_path(source)
    if not path.exists() and is_remote(source):
        path = epath.Path(fetch(source))
    if not path.exists():
        raise SetupError(unknown_name(source))
    if path.is_dir() and newest_params_path(path) is None:
        # As transformers' `save_pretrained` leaves it?
        files = (path / name for name in HUB_FILES)
        path = next((file for file in files if file.exists()), path)
    return path


def _adjusted(
    description: ModelDescription,
    name: str | None,
    options: dict[str, Any],
    image_size: int | None,
) -> ModelDescription:
    """As asked for; the classes' names stay with the head that they are of."""
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


def _read_directory(
    path: epath.Path, ignore: Sequence[str]
) -> tuple[Source, ModelDescription]:
    params_path = check_holds_params(path)
    description = find_description(params_path.parent)
    if description is None:
        raise SetupError(f"{path} has parameters but no model.json to say of what model")
    parameters = {
        name: Parameter(name, array, array, name)
        for name, array in read_arrays(params_path).items()
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignore)
    }
    return Source(str(params_path), None, parameters), description


def _describe(path: epath.Path, source: Source, name: str | None) -> ModelDescription:
    """What a file says itself, else what its weights look like, or a name stands for."""
    if name is None and DESCRIPTION in source.metadata:
        text = source.metadata[DESCRIPTION]
        description = parse_description(text, origin=source.origin)
    else:
        beside = _settings_beside(path, source)
        if name is None:
            settings = visible_settings(source.shapes, use_postln=source.use_postln)
            name, overrides = nearest_variant(settings | beside)
        else:
            # A name says nothing about the head, so that is as in the weights. Nothing
            # else has to be inferred: what lacks, `fit` says.
            overrides = head_settings(source.shapes) | beside
        description = ModelDescription(name, overrides, default_preprocessing(name))
    return dataclasses.replace(
        description,
        source={
            "file": source.origin,
            "sha256": source.sha256,
            "dialect": source.dialect.name,
            "dtype": _by_dtype(source),
        },
    )


def _notes(
    path: epath.Path, source: Source, name: str, options: dict[str, Any]
) -> tuple[str, ...]:
    if name not in VARIANTS:  # to be said when the model is made
        return ()
    seen = head_settings(source.shapes) | _settings_beside(path, source)
    if source.use_postln is not None:
        seen["use_postln"] = source.use_postln
    stem = source.shapes.get("patch_embed/proj/kernel", ())
    seen["use_conv_embed"] = stem[:1] == (7,)
    note = unseen_options(name, seen, options)
    return (note,) if note else ()


def _settings_beside(path: epath.Path, source: Source) -> dict[str, Any]:
    """What transformers' `config.json` beside its weights says that they don't show."""
    config = path.parent / "config.json"
    if source.dialect.name != "transformers" or not config.exists():
        return {}
    try:
        content = json.loads(config.read_text())
        if content.get("model_type") != "focalnet":
            return {}
    except (ValueError, AttributeError):
        return {}  # of something else
    return {
        "normalize_modulator": bool(content.get("normalize_modulator")),
        "use_postln": bool(content.get("use_post_layernorm")),
    }


def _by_dtype(source: Source) -> str | dict[str, str]:
    """The precision of all parameters, or of each if they are several."""
    dtypes = {path: p.array.dtype.name for path, p in source.parameters.items()}
    return dtypes if len(set(dtypes.values())) > 1 else next(iter(dtypes.values()))


def _with_options(overrides: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """A classifier's head makes way for a backbone's, and the other way round."""
    if "num_classes" in options and BACKBONE_OPTIONS & options.keys():
        raise SetupError("num_classes is for classifiers, out_stages for backbones")
    gone = frozenset()
    if "num_classes" in options:
        gone = BACKBONE_OPTIONS
    elif BACKBONE_OPTIONS & options.keys():
        gone = {"num_classes"}
    return {k: v for k, v in overrides.items() if k not in gone} | options
