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
import secrets
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from focalnet_jax.data import Preprocessing, Source
from focalnet_jax.errors import SetupError
from focalnet_jax.train.config import model_overrides
from focalnet_jax.weights.description import ModelDescription, write_json

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


# What a step is done on follows from these and its number.
_FIELDS_OF_EXAMPLES = ("seed", "batch_size", "data.name", "data.train_split")


def check_shared(workdir: epath.Path) -> None:
    """Raises SetupError unless all processes of the run see the same directory.

    Each would write its part of a checkpoint to a place where the others' isn't.
    """
    if jax.process_count() == 1:
        return
    token = multihost_utils.broadcast_one_to_all(np.uint32(secrets.randbits(32)))
    sign = workdir / f"seen_by_all_{token:08x}"
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        sign.write_text("")
    multihost_utils.sync_global_devices("the sign is written")
    seen = multihost_utils.process_allgather(np.bool_(sign.exists()))
    if jax.process_index() == 0:
        sign.unlink()
    if not seen.all():
        others = ", ".join(map(str, np.flatnonzero(~seen)))
        raise SetupError(
            f"the processes of a run need the same workdir, and {others} of "
            f"{jax.process_count()} don't see {workdir} of process 0: name one on a "
            "shared file system or in a bucket, --workdir=gs://BUCKET/RUN"
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
    """Fields that differ from those of the run so far, as `field: old -> new`.

    Raises:
      SetupError: one of them decides what examples a step is done on.
    """
    path = workdir / "config.json"
    if not path.exists():
        return []
    before = _flatten(json.loads(path.read_text()))
    now = _flatten(_plain(config.to_dict()))
    changed = {
        field: f"{field}: {before.get(field)} -> {now.get(field)}"
        for field in sorted(before.keys() | now.keys())
        if before.get(field) != now.get(field)
    }
    names = (before.get("data.name", ""), now["data.name"])
    moved = all(name.startswith("folder:") for name in names)
    if lines := [
        changed[field]
        for field in _FIELDS_OF_EXAMPLES
        if field in changed and not (moved and field == "data.name")
    ]:
        listed = "\n  ".join(lines)
        raise SetupError(
            f"the run in {workdir} is one on other examples:\n  {listed}\nSet these "
            "fields as they were, or start a new run from its parameters: "
            f"--config.init_from={workdir} and another --workdir"
        )
    return [*changed.values()]


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
