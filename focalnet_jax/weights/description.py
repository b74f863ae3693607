"""`model.json`, which says how to use the parameters beside it."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from focalnet_jax.errors import OptionError, SetupError
from focalnet_jax.models import create_backbone, create_model
from focalnet_jax.models.size import Model
from focalnet_jax.models.variants import ENCODER_OPTIONS
from focalnet_jax.paths import write_json
from focalnet_jax.preprocessing import Preprocessing

_FILE = "model.json"
BACKBONE_OPTIONS = frozenset({"out_stages", "out_norm"})
HEAD_OPTIONS = BACKBONE_OPTIONS | {"num_classes"}

# These may change between runs, because the parameters mean the same with any value.
_FREE_OPTIONS = (
    "dtype",
    "param_dtype",
    "drop_rate",
    "drop_path_rate",
    "remat",
    "scan",
    "implementation",
)


@dataclasses.dataclass(frozen=True)
class ModelDescription:
    """The content of a `model.json`.

    Attributes:
      name: the name of the variant.
      overrides: further arguments of `create_model`. If `out_stages` or `out_norm` is
        among them, they are arguments of `create_backbone`.
      preprocessing: how images are prepared for the model.
      classes: the names of the classes, if they are known.
      source: where converted parameters come from: `file`, `sha256`, `dialect` and
        `dtype`. If the parameters have several dtypes, `dtype` has one for each.
      task: the task that the model was trained for.
    """

    name: str
    overrides: dict[str, Any]
    preprocessing: Preprocessing
    classes: list[str] | None = None
    source: dict[str, Any] | None = None
    task: str = "classification"

    def create(self, **overrides) -> Model:
        """Makes the model, with some options changed."""
        return create_classifier_or_backbone(self.name, self.overrides | overrides)

    def write(self, directory: epath.Path) -> None:
        """Writes `model.json` into a directory."""
        write_json(directory / _FILE, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The content of `model.json`."""
        content = {
            "task": self.task,
            "name": self.name,
            "overrides": self.overrides,
            **self.preprocessing.to_json(),
            "classes": self.classes,
        }
        if self.source is not None:
            content["source"] = self.source
        return content


def create_classifier_or_backbone(name: str, overrides: dict[str, Any]) -> Model:
    """Makes a backbone if `overrides` has an option of backbones, else a classifier."""
    is_backbone = BACKBONE_OPTIONS & overrides.keys()
    return (create_backbone if is_backbone else create_model)(name, **overrides)


def default_preprocessing(name: str) -> Preprocessing:
    """The preprocessing that the released weights of a variant are for.

    It is the official evaluation, which resizes bicubically and keeps 224 / 256 of the
    shorter side. The image size is the one in the names of the releases.
    """
    is_384 = name.startswith(("focalnet_large", "focalnet_xlarge"))
    return Preprocessing(image_size=384 if is_384 else 224)


def find_description(path: epath.Path) -> ModelDescription | None:
    """Reads the `model.json` that belongs to parameters; None if there is none.

    Args:
      path: a workdir, its `checkpoints` directory, a checkpoint in that, or a directory
        of converted parameters.

    Raises:
      SetupError: the file describes no model.
    """
    for directory in (path, path.parent, path.parent.parent):
        file = directory / _FILE
        if file.exists():
            return parse_description(file.read_text("utf-8"), origin=str(file))
    return None


def parse_description(text: str, *, origin: str) -> ModelDescription:
    """Reads the text of a `model.json`.

    Raises:
      SetupError: the text describes no model; the message names `origin`.
    """
    try:
        content = json.loads(text)
        task = content.get("task", ModelDescription.task)
        if task != ModelDescription.task:
            raise SetupError(f"{origin} is of the task {task!r}, not of classification")
        preprocessing = Preprocessing.from_json(content)
        others = content.keys() - preprocessing.to_json().keys()
        description = ModelDescription(
            preprocessing=preprocessing, **{key: content[key] for key in others}
        )
        description.create()
        return description
    except OptionError as error:
        raise SetupError(f"{origin}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SetupError(f"{origin} is no description of a model: {error!r}") from error


def entries_that_differ(path: epath.Path, content: Mapping[str, Any]) -> list[str]:
    """Compares a `model.json` with what would be written now, of whatever task.

    Args:
      path: as for `find_description`.
      content: the entries now.

    Returns:
      a line for each entry that differs; none where there is no `model.json`.
    """
    for directory in (path, path.parent, path.parent.parent):
        if (directory / _FILE).exists():
            there = json.loads((directory / _FILE).read_text("utf-8"))
            here = json.loads(json.dumps(content))
            return [
                f"{name}: {there.get(name)} there, {here.get(name)} here"
                for name in sorted(there.keys() | here.keys())
                if there.get(name) != here.get(name)
            ]
    return []


def model_differences(directory: epath.Path, model: Model) -> dict[str, str]:
    """Says how `model` differs from the model of the parameters in `directory`.

    Some options leave no trace in the parameters, so that a wrong value computes
    something else without any error. Without a `model.json` no difference can be seen.

    Args:
      directory: as for `find_description`.
      model: the model that is to take the parameters.

    Returns:
      By option, the value there and the value here, for people.
    """
    description = find_description(directory)
    if description is None:
        return {}
    there = description.create()
    return {
        option: f"{_option(there, option)} there, {_option(model, option)} here"
        for option in (*sorted(HEAD_OPTIONS), *ENCODER_OPTIONS)
        if option not in _FREE_OPTIONS
        and _option(there, option) != _option(model, option)
    }


def _option(model: Model, option: str) -> Any:
    return getattr(model if option in HEAD_OPTIONS else model.encoder, option, None)
