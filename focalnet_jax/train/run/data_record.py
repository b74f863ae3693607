"""`data.json`: the data that a run is made of, to be compared when it goes on.

It has an entry for the split to train on and one for the split to evaluate on. Each has
the name, the number of examples and the digests of `fingerprint`, if the records have it.
"""

from typing import Any

import jax
from etils import epath

from focalnet_jax.data import Records
from focalnet_jax.errors import SetupError, shown
from focalnet_jax.paths import read_json, write_json
from focalnet_jax.tasks.base import Splits

_FILE = "data.json"
# What a split is for, and what follows if it has changed.
_ROLES = {
    "train": ("the data to train on", "batches are others than they would have been"),
    "test": ("the data to evaluate on", "results don't compare with earlier ones"),
}
# What differs, by the name of a digest: the first that differs is said.
_DIGESTS = {
    "names": "with other names or classes",
    "contents": "some with other contents",
    "checksums": "in files with other checksums",
}

DataRecord = dict[str, dict[str, Any]]


def record_data(splits: Splits) -> DataRecord:
    """Describes the splits of a run, on the first process; others get an empty record."""
    if jax.process_index():
        return {}
    return {
        role: _describe(split.source)
        for role, split in (("train", splits.train), ("test", splits.test))
        if split is not None
    }


def _describe(source: Records) -> dict[str, Any]:
    fingerprint = getattr(source, "fingerprint", dict)
    return {"name": source.name, "examples": len(source), **fingerprint()}


def write_data(workdir: epath.Path, record: DataRecord) -> None:
    """Writes `data.json`, on the first process."""
    if jax.process_index() == 0:
        write_json(workdir / _FILE, record)


def data_changes(workdir: epath.Path, record: DataRecord, *, unit: str) -> list[str]:
    """How data differ from those of the run so far, a line for each split.

    A data set that lies elsewhere is the same one. A run of an older program has no
    record, so no difference can be seen.

    Args:
      workdir: of the run.
      record: of the data now, from `record_data`.
      unit: what an example is called, in the plural.

    Raises:
      SetupError: the record is damaged.
    """
    before = _read(workdir) if record else {}
    lines = []
    for role, (name, consequence) in _ROLES.items():
        then, now = before.get(role), record.get(role)
        if then and now and (difference := _difference(then, now, unit)):
            lines.append(f"{name}: {difference}; {consequence}")
    return lines


def other_evaluation_set(
    workdir: epath.Path, record: DataRecord, *, unit: str
) -> str | None:
    """What to say if a run was evaluated on other data; None if it was not.

    Args, raises: as `data_changes`.
    """
    before = _read(workdir).get("test") if record else None
    if not before or not (difference := _difference(before, record["test"], unit)):
        return None
    names = [entry["name"] for entry in (before, record["test"])]
    if names[0] != names[1]:
        difference += f" ({names[0]} -> {names[1]})"
    return f"the run was evaluated on other data: {difference}"


def _difference(before: dict[str, Any], now: dict[str, Any], unit: str) -> str | None:
    if before["examples"] != now["examples"]:
        return f"{before['examples']:,} {unit} -> {now['examples']:,} {unit}"
    for name, text in _DIGESTS.items():
        # Digests that only one of them has say nothing.
        if name in before and name in now and before[name] != now[name]:
            return f"{before['examples']:,} {unit} -> as many, {text}"
    return None


def _read(workdir: epath.Path) -> DataRecord:
    path = workdir / _FILE
    if not path.exists():
        return {}
    try:
        record = read_json(path)
        for role in record.keys() & _ROLES:
            _check_entry(role, record[role])
    except ValueError as error:
        raise SetupError(
            f"{path} is damaged: {error}. It says what data the run began with; move it "
            "away to go on without a comparison"
        ) from error
    return record


def _check_entry(role: str, entry: Any) -> None:
    """Raises ValueError for what `_describe` doesn't make."""
    if not isinstance(entry, dict):
        raise ValueError(f"{role!r} is {shown(entry)}, and no object")
    count = entry.get("examples")
    if type(count) is not int or not 0 <= count < 2**63:
        raise ValueError(f"'examples' of {role!r} is {shown(count)}, and no whole number")
    for name in ("name", *(entry.keys() & _DIGESTS)):
        if not isinstance(entry.get(name), str):
            raise ValueError(f"{name!r} of {role!r} is {shown(entry.get(name))}, no text")
