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
from focalnet_jax.train.config import model_overrides

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "grain",
    "tensorflow-datasets",
    "pillow",
)


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
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    devices = {
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
    }
    return {"python": platform.python_version(), **packages, "devices": devices}


# May change between runs: the parameters mean the same with any of their values.
_FREE_OPTIONS = (
    "dtype",
    "param_dtype",
    "drop_rate",
    "drop_path_rate",
    "remat",
    "implementation",
)


def check_same_model(workdir: epath.Path, config: ConfigDict) -> None:
    """Raises SetupError if the checkpoints in `workdir` are of another model."""
    path = workdir / "model.json"
    if not path.exists():
        return
    stored = json.loads(path.read_text())
    here = {"name": config.model.name, **_plain(model_overrides(config))}
    there = {"name": stored["name"], **stored["overrides"]}
    differences = [
        f"model.{option}: {there.get(option)} there, {here.get(option)} in the config"
        for option in sorted(here.keys() | there.keys())
        if option not in _FREE_OPTIONS and here.get(option) != there.get(option)
    ]
    if differences:
        lines = "\n  ".join(differences)
        raise SetupError(
            f"{workdir} holds checkpoints of another model:\n  {lines}\n"
            "Give another --workdir, or the same options as before"
        )


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
