"""The descriptions that lie in a run's directory, beside checkpoints and metrics.

config.json     the resolved configuration
versions.json   Python, packages and devices
model.json      what is needed to use the parameters elsewhere
metrics.jsonl   one object a line, `step` and metrics
events.out...   the same for TensorBoard
checkpoints/    Orbax
"""

import importlib.metadata
import json
import platform
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from focalnet_jax.data import Source
from focalnet_jax.errors import SetupError
from focalnet_jax.models import FocalNet, create_model
from focalnet_jax.models.variants import ENCODER_OPTIONS
from focalnet_jax.train.config import model_overrides

_PACKAGES = (
    "focalnet_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "chex",
    "grain",
    "array-record",
    "tensorflow-datasets",
    "pillow",
)


def absolute_path(path: str) -> epath.Path:
    """An absolute path; addresses such as `gs://bucket/run` stay as they are."""
    if "://" in path:
        return epath.Path(path)
    return epath.Path(path).expanduser().resolve()


def describe_run(workdir: epath.Path, config: ConfigDict, source: Source) -> None:
    """Writes `config.json`, `versions.json` and `model.json`, on the first process."""
    if jax.process_index() == 0:
        write_json(workdir / "config.json", config.to_dict())
        write_json(workdir / "versions.json", versions())
        write_json(workdir / "model.json", model_description(config, source))


def write_json(path: epath.Path, content: Any) -> None:
    """Writes aside and renames: a reader sees the old file or the new one."""
    aside = path.parent / f"{path.name}.tmp"
    aside.write_text(json.dumps(content, indent=2) + "\n")
    aside.replace(path)


def model_description(config: ConfigDict, source: Source) -> dict[str, Any]:
    """The content of `model.json`: the model and the preprocessing it was trained for."""
    return {
        "name": config.model.name,
        "overrides": model_overrides(config),
        "image_size": config.data.image_size,
        "mean": config.data.mean,
        "std": config.data.std,
        "interpolation": config.data.interpolation,
        "crop": config.data.eval_crop,
        "classes": source.class_names,
    }


def versions() -> dict[str, Any]:
    """The content of `versions.json`."""
    packages = {name: _version(name) for name in _PACKAGES}
    devices = {
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
    }
    return {"python": platform.python_version(), **packages, "devices": devices}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None  # focalnet_jax itself, in a checkout that isn't installed


# May change between runs: the parameters mean the same with any of their values.
_FREE_OPTIONS = (
    "dtype",
    "param_dtype",
    "drop_rate",
    "drop_path_rate",
    "remat",
    "implementation",
)


def check_same_model(directory: epath.Path, model: FocalNet) -> None:
    """Raises SetupError if the parameters in `directory` are those of another model."""
    if differences := model_differences(directory, model):
        lines = "\n  ".join(differences)
        raise SetupError(f"{directory} is of another model:\n  {lines}")


def model_differences(directory: epath.Path, model: FocalNet) -> list[str]:
    """How `model` differs from that of the parameters in `directory`.

    Some options leave no trace in the parameters, and a wrong one computes something
    else without a word. Where no `model.json` says otherwise, there is no difference.

    Args:
      directory: a workdir, its `checkpoints`, or a checkpoint in there.
      model: the model that is to take the parameters.
    """
    places = (directory, directory.parent, directory.parent.parent)
    found = [place / "model.json" for place in places if (place / "model.json").exists()]
    if not found:
        return []
    stored = json.loads(found[0].read_text())
    there = create_model(stored["name"], **stored["overrides"])
    return [
        f"model.{option}: {_option(there, option)} there, {_option(model, option)} here"
        for option in ("num_classes", *ENCODER_OPTIONS)
        if option not in _FREE_OPTIONS
        and _option(there, option) != _option(model, option)
    ]


def _option(model: FocalNet, option: str) -> Any:
    return getattr(model if option == "num_classes" else model.encoder, option)


def _plain(tree: Any) -> Any:
    """As JSON gives it back: tuples as lists."""
    return json.loads(json.dumps(tree))


def changed_fields(workdir: epath.Path, config: ConfigDict) -> list[str]:
    """Fields that differ from those of the run so far, as `field: old -> new`."""
    path = workdir / "config.json"
    if not path.exists():
        return []
    before = _flatten(json.loads(path.read_text()))
    now = _flatten(_plain(config.to_dict()))
    fields = sorted(before.keys() | now.keys())
    return [
        f"{field}: {before.get(field)} -> {now.get(field)}"
        for field in fields
        if before.get(field) != now.get(field)
    ]


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
