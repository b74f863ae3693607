"""The descriptions that lie in a run's directory, beside checkpoints and metrics.

config.json     the resolved configuration
versions.json   Python, packages and devices
model.json      what is needed to use the parameters elsewhere
metrics.jsonl   one object a line, `step` and metrics
events.out...   the same for TensorBoard
summary.html    curves and last values
checkpoints/    Orbax
"""

import importlib.metadata
import json
import platform
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from focalnet_jax.data import Preprocessing, Source
from focalnet_jax.model_description import ModelDescription, write_json
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


def describe_run(workdir: epath.Path, config: ConfigDict, source: Source) -> None:
    """Writes `config.json`, `versions.json` and `model.json`, on the first process."""
    if jax.process_index() == 0:
        write_json(workdir / "config.json", config.to_dict())
        write_json(workdir / "versions.json", versions())
        description_of(config, source).write(workdir)


def description_of(config: ConfigDict, source: Source) -> ModelDescription:
    """The model and the preprocessing it is trained for."""
    preprocessing = Preprocessing(
        image_size=config.data.image_size,
        mean=config.data.mean,
        std=config.data.std,
        interpolation=config.data.eval_interpolation,
        crop=config.data.eval_crop,
    )
    return ModelDescription(
        name=config.model.name,
        overrides=model_overrides(config),
        preprocessing=preprocessing,
        classes=source.class_names,
    )


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
