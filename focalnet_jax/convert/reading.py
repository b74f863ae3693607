"""Parameters and the model they belong to, from wherever they lie."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from etils import epath

from focalnet_jax.convert.infer import nearest_variant, unseen_options, visible_settings
from focalnet_jax.convert.names import Parameter, Source, understand
from focalnet_jax.convert.weight_files import read_weights
from focalnet_jax.errors import SetupError, did_you_mean
from focalnet_jax.model_description import (
    Model,
    ModelDescription,
    create,
    default_preprocessing,
    find_description,
)
from focalnet_jax.releases import RELEASES, fetch, is_remote
from focalnet_jax.saved_params import absolute_path, check_holds_params, read_arrays

_HEAD_OPTIONS = ("num_classes", "out_stages", "out_norm")


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
      wrapper, prefix, ignore: as for `from_torch`.

    Raises:
      SetupError: nothing there, unreadable, another architecture, or no such model.
    """
    source = os.fspath(source)
    path = absolute_path(source)
    if not path.exists() and is_remote(source):
        path = epath.Path(fetch(source))
    if not path.exists():
        could_be_release = "/" not in source and not path.suffix
        hint = did_you_mean(source, RELEASES) if could_be_release else ""
        raise SetupError(f"there is no {source}{hint}")
    if path.is_dir():
        found, description = _read_directory(path)
    else:
        weights = read_weights(path, wrapper=wrapper)
        found = understand(weights, prefix=prefix, ignore=ignore)
        description = _describe(found, name, weights.sha256)
    overrides = _with_options(description.overrides, options or {})
    description = dataclasses.replace(
        description, name=name or description.name, overrides=overrides
    )
    if image_size is not None:
        preprocessing = dataclasses.replace(
            description.preprocessing, image_size=image_size
        )
        description = dataclasses.replace(description, preprocessing=preprocessing)
    try:
        model = create(description.name, overrides)
    except (TypeError, ValueError) as error:
        raise SetupError(str(error)) from error
    notes = () if path.is_dir() else _about(found, description.name, options or {})
    return Reading(found, description, model, notes)


def _read_directory(path: epath.Path) -> tuple[Source, ModelDescription]:
    params_path = check_holds_params(path)
    description = find_description(params_path.parent)
    if description is None:
        raise SetupError(f"{path} has parameters but no model.json to say of what model")
    parameters = {
        name: Parameter(name, array.shape, array, name)
        for name, array in read_arrays(params_path).items()
    }
    return Source(str(params_path), None, parameters), description


def _describe(source: Source, name: str | None, sha256: str) -> ModelDescription:
    settings = visible_settings(source.shapes, use_postln=source.use_postln)
    nearest, overrides = nearest_variant(settings)
    if name is not None:
        # A name says nothing about the head, so that is as in the weights.
        overrides = {k: v for k, v in settings.items() if k in _HEAD_OPTIONS}
    dtypes = {path: str(p.array.dtype) for path, p in source.parameters.items()}
    is_one = len(set(dtypes.values())) == 1
    return ModelDescription(
        name=name or nearest,
        overrides=overrides,
        preprocessing=default_preprocessing(name or nearest),
        source={
            "file": source.origin,
            "sha256": sha256,
            "dialect": source.dialect.name,
            "dtype": next(iter(dtypes.values())) if is_one else dtypes,
        },
    )


def _about(source: Source, name: str, options: dict[str, Any]) -> tuple[str, ...]:
    settings = visible_settings(source.shapes, use_postln=source.use_postln)
    unseen = unseen_options(name, settings, options)
    return (unseen,) if unseen else ()


def _with_options(overrides: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """A classifier's head makes way for a backbone's, and the other way round."""
    if {"out_stages", "out_norm"} & options.keys():
        overrides = {k: v for k, v in overrides.items() if k != "num_classes"}
    elif "num_classes" in options:
        overrides = {
            k: v for k, v in overrides.items() if k not in ("out_stages", "out_norm")
        }
    return overrides | options
