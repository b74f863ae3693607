"""Weights together with the model they belong to, read from wherever they are stored."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from focalnet_jax.convert.checkpoint_meta import read_meta
from focalnet_jax.convert.configs import (
    CONFIGS,
    Beside,
    read_beside,
    without_made_up,
)
from focalnet_jax.convert.description_changes import (
    with_changes,
    with_channels,
    with_head,
)
from focalnet_jax.convert.infer import find_model
from focalnet_jax.convert.names import (
    MatchedWeights,
    Parameter,
    is_ignored,
    match_names,
)
from focalnet_jax.convert.precision import is_count
from focalnet_jax.convert.reading import Reading
from focalnet_jax.convert.weight_files import read_weights
from focalnet_jax.errors import SetupError, argument, first_few, shown
from focalnet_jax.heads import Segmenter
from focalnet_jax.image_size import ImageSize, height_and_width, size_spelt
from focalnet_jax.models.size import Model
from focalnet_jax.paths import (
    BUCKETS,
    absolute_path,
    is_remote,
    path_exists,
    with_home,
    without_file_scheme,
)
from focalnet_jax.weights.description import (
    DEFAULT_SCALE,
    HEAD_OPTIONS,
    SEGMENT,
    ModelDescription,
    create_of_any_kind,
    default_preprocessing,
    find_description,
    parse_description,
)
from focalnet_jax.weights.exported import check_is_not_exported
from focalnet_jax.weights.params import (
    batch_stats_path,
    check_holds_params,
    find_best,
    newest_params_path,
    read_arrays,
)
from focalnet_jax.weights.releases import (
    HUB_FILES,
    download_with,
    is_published,
    likely_files,
    published_name,
    unknown_name,
)
from focalnet_jax.weights.shards import check_has_whole_file

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
    reading: Reading,
    options: dict[str, Any] | None = None,
) -> WeightsAndModel:
    """Reads weights and finds their model. It is not checked yet that both fit.

    Args:
      source: a workdir, a checkpoint, a converted directory, a directory or file of
        weights, `hf:OWNER/NAME` or an official release.
      reading: how they are read. For parameters of Flax there is neither `prefix` nor
        `wrapper`.
      options: options of the model, which replace those that are recorded or inferred.

    Raises:
      SetupError: there is nothing at `source`, it cannot be read, the weights are of
        another architecture, there is no such model, or it can't take images of this
        size.
    """
    path, notes = _find_path(source)
    options = with_head(reading, options or {})
    name, image_size = reading.name, reading.image_size
    if path.is_dir():
        if reading.prefix is not None or reading.wrapper is not None:
            raise SetupError(
                f"{path} is a directory: {argument('prefix')} and {argument('wrapper')} "
                "are for files"
            )
        weights, description, more = _read_directory(path, reading.ignore)
        notes += more
    else:
        weights = match_names(
            read_weights(path, wrapper=reading.wrapper),
            prefix=reading.prefix,
            ignore=reading.ignore,
        )
        description, more = _describe(path, weights, name, options, image_size)
        notes += more
    description, more = with_changes(description, name, options, image_size)
    notes += more
    try:
        model = create_of_any_kind(description.name, description.overrides)
    except (TypeError, ValueError) as error:
        raise SetupError(str(error)) from error
    check_image_size(model, description.preprocessing.image_size, description.name)
    description, more = with_channels(description, model.encoder.in_channels)
    notes += more + _padding_notes(weights, model, description.preprocessing.image_size)
    return WeightsAndModel(weights, description, model, notes)


def _find_path(source: str | os.PathLike) -> tuple[epath.Path, tuple[str, ...]]:
    """Finds the file or directory of weights, and downloads published weights.

    Returns:
      The path, and notes on what else is there or could not be downloaded.
    """
    if isinstance(source, Mapping) or hasattr(source, "state_dict"):
        raise SetupError(
            "tensors are given, not a path: focalnet_jax.convert.infer_model finds their "
            "model, and focalnet_jax.convert.from_torch makes parameters of them"
        )
    if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
        raise SetupError(
            f"{shown(source)} is neither a path nor a name of published weights"
        )
    source = published_name(without_file_scheme(os.fspath(source)))
    is_odd, notes = "://" in source and not source.startswith(BUCKETS), ()
    if is_odd or not path_exists(path := absolute_path(source)):
        if not is_published(source):
            raise SetupError(unknown_name(source))
        found, notes = download_with(source, CONFIGS)
        path = epath.Path(found)
    if path.is_dir():
        return _file_in(path) if newest_params_path(path) is None else (path, ())
    if is_remote(path):
        raise SetupError(f"{path} is a file in a bucket: copy it to a disk first")
    check_is_not_exported(path)
    # The Hub's cache is full of links, and what belongs to a file is beside its link.
    if not is_published(source):
        path = epath.Path(os.path.abspath(with_home(source)))
    return path, notes


def _file_in(directory: epath.Path) -> tuple[epath.Path, tuple[str, ...]]:
    """Finds the weights in a directory that transformers' `save_pretrained` wrote."""
    found = [name for name in HUB_FILES if (directory / name).exists()]
    if found:
        also = f"{directory} holds {' and '.join(found)}: the first one is read"
        return directory / found[0], (also,) if found[1:] else ()
    check_is_not_exported(directory)
    if files := likely_files(directory):
        check_has_whole_file(directory, files)
        raise SetupError(
            f"{directory} holds neither a checkpoint nor {HUB_FILES[0]}, but "
            f"{first_few(files)}: give the path of the file that you mean"
        )
    return directory, ()


def _read_directory(
    path: epath.Path, ignore: Sequence[str]
) -> tuple[MatchedWeights, ModelDescription, tuple[str, ...]]:
    params_path, notes = check_holds_params(path), ()
    if (best := find_best(path)) and best.path != params_path:
        notes += (
            f"the best checkpoint of {path} is read, of step {best.path.parent.name} "
            f"({best.metric} {best.value:.4g}); the newest is of step "
            f"{params_path.parent.name}",
        )
        params_path = best.path
    description = find_description(params_path.parent)
    if description is None:
        raise SetupError(f"{path} has parameters but no model.json to say of what model")
    average = params_path.parent / "ema"
    arrays = read_arrays(params_path)
    if (averages := batch_stats_path(params_path)).exists():
        arrays |= read_arrays(averages)
    parameters = {
        name: Parameter(name, array, array, name)
        for name, array in arrays.items()
        if not is_ignored(name, ignore)
    }
    if params_path.name == "params" and average.exists():
        notes += (f"{params_path} are read; {average} is the average of them",)
    return MatchedWeights(str(params_path), None, parameters), description, notes


def _describe(
    path: epath.Path,
    weights: MatchedWeights,
    name: str | None,
    options: dict[str, Any],
    image_size: ImageSize | None,
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
        try:
            name, overrides, notes = find_model(
                weights, name=name, beside=beside, options=options
            )
        except SetupError as error:
            raise SetupError(
                f"{error.marked}: name it by {argument('name')}, such as "
                f"{argument('name', 'focalnet_tiny_srf')}"
            ) from error
        notes = beside.notes + notes
        if recorded is not None:
            notes += (
                f"{weights.origin} records a model, {recorded.name}; its options are not "
                "taken, because a name is given",
            )
            beside = Beside(
                preprocessing=recorded.preprocessing, classes=recorded.classes
            )
        description, more = _with_beside(
            name, overrides, beside, image_size, weights.meta
        )
        notes += more
    source = {
        "file": weights.origin,
        "sha256": weights.sha256,
        "dialect": weights.dialect and weights.dialect.name,
        "dtype": _recorded_dtypes(weights),
    }
    return dataclasses.replace(description, source=source), notes


def _with_beside(
    name: str,
    overrides: dict[str, Any],
    beside: Beside,
    image_size: ImageSize | None,
    meta: Any,
) -> tuple[ModelDescription, tuple[str, ...]]:
    """Describes a model with the preprocessing and the classes that files state."""
    notes = ()
    preprocessing = beside.preprocessing
    if preprocessing is None:
        preprocessing = default_preprocessing(name, segment=SEGMENT in overrides)
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
    if (HEAD_OPTIONS - {"num_classes"}) & overrides.keys() or not head:
        classes, head = None, 0  # There is no head.
    elif classes and len(classes) != head:
        notes += (
            f"{beside.origin} beside the weights names {len(classes):,} classes, and the "
            f"head has {head:,}: the names are not taken",
        )
        classes = None
    classes = without_made_up(classes or []) or None
    if not classes and head in _OFFICIAL_HEADS:
        notes += (
            f"nothing says which {head:,} classes the head has: {_OFFICIAL_HEADS[head]}",
        )
    description = ModelDescription(name, overrides, preprocessing, classes)
    if SEGMENT in overrides:
        known = read_meta(meta, overrides.get("num_classes", Segmenter.num_classes))
        description = dataclasses.replace(
            description, scale=DEFAULT_SCALE, **known._asdict()
        )
    return description, notes


def check_image_size(model: Model, size: ImageSize, name: str) -> None:
    """Raises SetupError for images that leave the last stage of a model no map.

    Args:
      model: which the images are for.
      size: of the images.
      name: how messages call the model.
    """
    least = model.encoder.smallest_input()
    if len(least) != 2:
        return  # The model is for inputs that are no images.
    if any(side < needed for side, needed in zip(height_and_width(size), least)):
        raise SetupError(
            f"{argument('image_size')}={size} is too small for {name}, which "
            f"needs {size_spelt(least)} (or {argument('pad_to_patch')}=True)"
        )


def _padding_notes(
    weights: MatchedWeights, model: Model, image_size: ImageSize
) -> tuple[str, ...]:
    """Says if transformers would pad where this model leaves rows and columns out."""
    encoder = model.encoder
    is_theirs = weights.dialect is not None and weights.dialect.name == "transformers"
    if not is_theirs or encoder.pad_to_patch:
        return ()
    sides, strides = height_and_width(image_size), encoder.total_stride
    if not any(side % stride for side, stride in zip(sides, strides)):
        return ()
    shape = " x ".join(map(str, strides))
    return (
        f"{image_size} pixels are not a multiple of {shape}: transformers pads such "
        "maps, and here their last rows and columns are left out; pad_to_patch=True pads",
    )


def _recorded_dtypes(weights: MatchedWeights) -> str | dict[str, str]:
    """The dtype of all parameters, or the dtype of each if there are several."""
    dtypes = {
        path: p.array.dtype.name
        for path, p in weights.parameters.items()
        if not is_count(p.array.dtype)
    }
    return dtypes if len(set(dtypes.values())) > 1 else next(iter(dtypes.values()))
