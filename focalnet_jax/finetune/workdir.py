"""What a run on a folder leaves in its workdir, beside what every run leaves there.

finetune.json   what the command was given: the folder, the weights, the seed, the share
images.csv      the class, the split and the SHA-256 of each image
start/          the weights that the run starts from, with a new head
report.html     the page of results
"""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from focalnet_jax.errors import SetupError, first_few
from focalnet_jax.paths import read_json, with_home, write_json
from focalnet_jax.train.config import all_fields
from focalnet_jax.train.run.lock import LOCK
from focalnet_jax.train.run.workdir import changed_fields
from focalnet_jax.weights.params import CHECKPOINTS, newest_params_path

RECORD = "finetune.json"
IMAGES = "images.csv"
START = "start"
REPORT = "report.html"

# How the command line calls what the record has, and another run must not change.
_OPTIONS = {"weights": "--weights", "seed": "--seed", "test_share": "--test-share"}
# Fields that say where things lie, and how the machine loads images. What a net learns
# doesn't depend on them.
_PLACES = {"data.name", "data.files", "init_from", "data.threads", "data.workers"}


def read_record(workdir: pathlib.Path) -> dict[str, Any] | None:
    """What the run in a workdir was given; None if there is no run yet.

    A run that has ended before its first checkpoint has learnt nothing. It counts as
    none, so that a corrected command can take its place.

    Raises:
      SetupError: something else lies there, or the record is damaged.
    """
    if not workdir.exists():
        return None
    if not workdir.is_dir():
        raise SetupError(f"{workdir} is a file: --workdir is a directory")
    path = workdir / RECORD
    if not path.exists():
        there = [name for name in sorted(os.listdir(workdir)) if name[0] != "."]
        if there:
            raise SetupError(
                f"{workdir} holds {first_few(there)}, and no run of this command: give "
                "another --workdir"
            )
        return None
    try:
        record = read_json(epath.Path(path))
        if missing := sorted({"images", *_OPTIONS} - record.keys()):
            raise ValueError(f"it lacks {missing[0]!r}")
    except ValueError as error:
        raise SetupError(
            f"{path} is damaged: {error}. It says what the run was begun with: give "
            "another --workdir"
        ) from error
    may_go_on = newest_params_path(epath.Path(workdir)) or (workdir / LOCK).exists()
    return record if may_go_on else None


def write_record(workdir: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Writes what the run was given."""
    write_json(epath.Path(workdir / RECORD), dict(record))


def check_same(
    workdir: pathlib.Path, before: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Raises SetupError unless a command goes on with the run that lies in a workdir."""
    for name, option in _OPTIONS.items():
        same = [now[name]]
        if isinstance(now[name], str):
            # Weights that are gone by now were named by their absolute path.
            same.append(os.path.abspath(with_home(now[name])))
        if before[name] not in same:
            was, given = (
                f"without {option}" if value is None else f"with {option}={value}"
                for value in (before[name], now[name])
            )
            raise SetupError(
                f"the run in {workdir} was begun {was}, and this command is {given}: "
                "give the same, or another --workdir"
            )


def check_as_trained(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Raises SetupError unless a finished run was trained with this configuration.

    Otherwise its report would state settings that the net was not trained with.
    """
    fields = all_fields(config.task)
    changes = changed_fields(epath.Path(workdir), config, fields)
    if changes := [c for c in changes if c.partition(":")[0] not in _PLACES]:
        listed = "\n  ".join(changes)
        raise SetupError(
            f"the run in {workdir} is finished, and these fields differ from those that "
            f"it was trained with:\n  {listed}\nGive them as they were, or another "
            "--workdir"
        )


@contextlib.contextmanager
def undone_on_failure(workdir: pathlib.Path) -> Iterator[None]:
    """Leaves nothing of a new run that fails before its first step."""
    is_new = not (workdir / RECORD).exists()
    made = [path for path in (workdir, *workdir.parents) if not path.exists()]
    try:
        yield
    except BaseException:  # Ctrl-C as well.
        # A lock is that of another run, which began at the same time.
        is_begun = any((workdir / name).exists() for name in ("config.json", LOCK))
        if is_new and not is_begun:
            for name in (RECORD, IMAGES):
                (workdir / name).unlink(missing_ok=True)
            shutil.rmtree(workdir / START, ignore_errors=True)
            with contextlib.suppress(OSError):  # There may be more than this in them.
                for path in (workdir / CHECKPOINTS, *made):
                    if path.exists():
                        path.rmdir()
        raise
