"""The descriptions that lie in a run's directory, beside checkpoints and metrics.

config.json     the resolved configuration
versions.json   the versions of Python and packages, and the devices
model.json      what is needed to use the parameters elsewhere
data.json       the number of examples and fingerprints of the data
run.lock        which run may write here, while one does: see lock.py
metrics.jsonl   `step` and metrics, one object in each line
events.out...   the same for TensorBoard
summary.html    curves and last values
test_...        what else an evaluation says, as tables and pictures
checkpoints/    Orbax
"""

import contextlib
import importlib.metadata
import json
import platform
import secrets
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from focalnet_jax import __version__
from focalnet_jax.errors import SetupError, shown
from focalnet_jax.fields import Field, Fields, converted, flatten, unflatten
from focalnet_jax.paths import read_json, write_json, write_whole
from focalnet_jax.train.config import all_fields
from focalnet_jax.train.processes import failing_together

_PACKAGES = (
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


def check_shared(workdir: epath.Path) -> None:
    """Raises SetupError unless all processes of the run share the directory.

    Otherwise each would write its part of a checkpoint to a place of its own, or to none.
    """
    problem = _not_shared(workdir) if jax.process_count() > 1 else None
    with failing_together():
        if problem:
            raise SetupError(problem)


def _not_shared(workdir: epath.Path) -> str | None:
    """What is wrong, on all processes."""
    token = multihost_utils.broadcast_one_to_all(np.uint32(secrets.randbits(32)))
    sign = workdir / f"seen_by_all_{token:08x}"
    if jax.process_index() == 0:
        sign.write_text("", "utf-8")
    multihost_utils.sync_global_devices("the sign is written")
    sees_it = multihost_utils.process_allgather(np.bool_(sign.exists()))
    if jax.process_index() == 0:
        sign.unlink()
    if not sees_it.all():
        others = ", ".join(map(str, np.flatnonzero(~sees_it)))
        return (
            f"the processes of a run need the same workdir, and {others} of "
            f"{jax.process_count()} don't see {workdir} of process 0: name one on a "
            "shared file system or in a bucket, --workdir=gs://BUCKET/RUN"
        )
    may_write = multihost_utils.process_allgather(np.bool_(_may_write(workdir, token)))
    if not may_write.all():
        others = ", ".join(map(str, np.flatnonzero(~may_write)))
        return (
            f"process {others} of {jax.process_count()} can't write to {workdir}, and "
            "each has to write its part of a checkpoint there"
        )
    return None


def _may_write(workdir: epath.Path, token: int) -> bool:
    trial = workdir / f"written_by_{jax.process_index()}_{token:08x}"
    try:
        trial.write_text("", "utf-8")
        trial.unlink()
    except Exception:  # The libraries that reach buckets raise errors of all kinds.
        return False
    return True


def describe_run(
    workdir: epath.Path, config: ConfigDict, description: Mapping[str, Any]
) -> None:
    """Writes `config.json`, `versions.json` and `model.json`, on the first process.

    Args:
      workdir: where to.
      config: of the run.
      description: of the model, see `Task.description`.
    """
    if jax.process_index() == 0:
        values = _absolute(flatten(config.to_dict()), all_fields(config.task))
        write_json(workdir / "config.json", unflatten(values))
        write_json(workdir / "versions.json", versions())
        write_json(workdir / "model.json", description)


def write_files(workdir: epath.Path, files: Mapping[str, bytes]) -> None:
    """Writes files by name, each whole or not at all."""
    for name, content in files.items():
        write_whole(workdir / name, content)


def versions() -> dict[str, Any]:
    """The content of `versions.json`."""
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    devices = {
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
    }
    return {
        "python": platform.python_version(),
        "focalnet_jax": __version__,
        **packages,
        "devices": devices,
    }


def changed_fields(workdir: epath.Path, config: ConfigDict, fields: Fields) -> list[str]:
    """Fields that differ from those of the run so far, as `field: old -> new`.

    Fields that an older program didn't know had the value that is their default now.

    Raises:
      SetupError: one of them decides what examples a step is done on, or the record of
        them is damaged.
    """
    path = workdir / "config.json"
    if not path.exists():
        return []
    try:
        before = _read_config(path, fields)
    except (ValueError, SetupError) as error:
        raise SetupError(
            f"{path} is damaged: {error}. It says how the run was configured; move it "
            "away to go on without a comparison"
        ) from error
    defaults = {name: field.default for name, field in fields.items()}
    before = _as_stored(defaults) | _absolute(before, fields)
    now = _as_stored(_absolute(flatten(config.to_dict()), fields))
    changed = {
        field: f"{field}: {before.get(field)} -> {now.get(field)}"
        for field in sorted(before.keys() | now.keys())
        if before.get(field) != now.get(field)
    }
    if lines := [
        changed[name]
        for name, field in fields.items()
        if name in changed
        and _leads_to_other_examples(field, before.get(name), now.get(name))
    ]:
        listed = "\n  ".join(lines)
        raise SetupError(
            f"the run in {workdir} is one on other examples:\n  {listed}\nSet these "
            "fields as they were, or start a new run from its parameters: "
            f"--config.init_from={workdir} and another --workdir"
        )
    return [*changed.values()]


def _read_config(path: epath.Path, fields: Fields) -> dict[str, Any]:
    """What `describe_run` has written, by dotted names.

    Raises:
      ValueError, SetupError: it is something else. Only fields that decide about examples
        are looked at, since others may have had other values in an older program.
    """
    values = flatten(read_json(path))
    if not values.keys() & fields.keys():
        raise ValueError("it has no field of a configuration")
    for name in values:
        if any(field.startswith(f"{name}.") for field in fields):
            raise ValueError(f"{name!r} is {shown(values[name])}, and no object")
    for name, field in fields.items():
        if name in values and field.decides_examples:
            converted(name, field, values[name])
    return values


def _absolute(values: dict[str, Any], fields: Fields) -> dict[str, Any]:
    """The same values; those that name places don't depend on where one stands."""
    values = dict(values)
    for name, field in fields.items():
        if field.absolute and isinstance(values.get(name), str):
            with contextlib.suppress(SetupError):  # There may be no such place here.
                values[name] = field.absolute(values[name])
    return values


def _leads_to_other_examples(field: Field, old: Any, new: Any) -> bool:
    decides = field.decides_examples
    return decides(old, new) if callable(decides) else decides


def _as_stored(values: Any) -> Any:
    """Values as JSON gives them back, which makes lists of tuples."""
    return json.loads(json.dumps(values))
