"""`model.json`: what is needed to use the parameters that lie beside it."""

import dataclasses
import json
from typing import Any

from etils import epath

from focalnet_jax.data import Preprocessing
from focalnet_jax.errors import SetupError
from focalnet_jax.models import FocalNet, FocalNetBackbone, create_backbone, create_model
from focalnet_jax.models.variants import ENCODER_OPTIONS
from focalnet_jax.paths import write_whole

Model = FocalNet | FocalNetBackbone
_FILE = "model.json"
BACKBONE_OPTIONS = frozenset({"out_stages", "out_norm"})
HEAD_OPTIONS = BACKBONE_OPTIONS | {"num_classes"}

# May change between runs: the parameters mean the same with any of their values.
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
      name: of the variant.
      overrides: further arguments of `create_model`; with `out_stages` among them, of
        `create_backbone`.
      preprocessing: what the model was trained for.
      classes: their names, if known.
      source: where converted parameters come from: `file`, `sha256`, `dialect` and
        `dtype`, by parameter if they are several.
    """

    name: str
    overrides: dict[str, Any]
    preprocessing: Preprocessing
    classes: list[str] | None = None
    source: dict[str, Any] | None = None

    def create(self, **overrides) -> Model:
        """Makes the model, with some options changed."""
        return create(self.name, self.overrides | overrides)

    def write(self, directory: epath.Path) -> None:
        write_json(directory / _FILE, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The content of `model.json`."""
        content = {
            "name": self.name,
            "overrides": self.overrides,
            **dataclasses.asdict(self.preprocessing),
            "classes": self.classes,
        }
        if self.source is not None:
            content["source"] = self.source
        return content


def create(name: str, overrides: dict[str, Any]) -> Model:
    """Makes a classifier, or a backbone if `overrides` say which stages it returns."""
    is_backbone = BACKBONE_OPTIONS & overrides.keys()
    return (create_backbone if is_backbone else create_model)(name, **overrides)


def default_preprocessing(name: str, *, image_size: int | None = None) -> Preprocessing:
    """What the released weights of a variant are for.

    The official evaluation: bicubic, 256 / 224 of the crop. The image size is by default
    the one in the names of the releases.
    """
    is_384 = name.startswith(("focalnet_large", "focalnet_xlarge"))
    return Preprocessing(image_size=image_size or (384 if is_384 else 224))


def find_description(path: epath.Path) -> ModelDescription | None:
    """Reads the `model.json` that belongs to parameters; None where there is none.

    Args:
      path: a workdir, its `checkpoints`, a checkpoint in there, or a directory of
        converted parameters.
    """
    for place in (path, path.parent, path.parent.parent):
        if (place / _FILE).exists():
            return _read(place / _FILE)
    return None


def _read(path: epath.Path) -> ModelDescription:
    return parse_description(path.read_text(), origin=str(path))


def parse_description(text: str, *, origin: str) -> ModelDescription:
    """Reads the text of a `model.json`.

    Raises:
      SetupError: naming `origin`, if it describes no model.
    """
    try:
        content = json.loads(text)
        preprocessing = Preprocessing(
            image_size=content.pop("image_size"),
            mean=tuple(content.pop("mean")),
            std=tuple(content.pop("std")),
            interpolation=content.pop("interpolation"),
            crop=content.pop("crop"),
        )
        description = ModelDescription(preprocessing=preprocessing, **content)
        description.create()
        return description
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SetupError(f"{origin} is no description of a model: {error!r}") from error


def write_json(path: epath.Path, content: Any) -> None:
    """Writes it indented, whole or not at all."""
    write_whole(path, json.dumps(content, indent=2) + "\n")


def check_same_model(directory: epath.Path, model: Model) -> None:
    """Raises SetupError if the parameters in `directory` are those of another model."""
    if differences := model_differences(directory, model):
        lines = "\n  ".join(differences)
        raise SetupError(f"{directory} is of another model:\n  {lines}")


def model_differences(directory: epath.Path, model: Model) -> list[str]:
    """How `model` differs from that of the parameters in `directory`.

    Some options leave no trace in the parameters, and a wrong one computes something
    else without a word. Where no `model.json` says otherwise, there is no difference.

    Args:
      directory: as for `find_description`.
      model: the model that is to take the parameters.
    """
    description = find_description(directory)
    if description is None:
        return []
    there = description.create()
    return [
        f"model.{option}: {_option(there, option)} there, {_option(model, option)} here"
        for option in (*sorted(HEAD_OPTIONS), *ENCODER_OPTIONS)
        if option not in _FREE_OPTIONS
        and _option(there, option) != _option(model, option)
    ]


def _option(model: Model, option: str) -> Any:
    return getattr(model if option in HEAD_OPTIONS else model.encoder, option, None)
