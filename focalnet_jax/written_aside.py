"""Files and directories that are there whole or not at all."""

import contextlib
import pathlib
import shutil
import uuid
from collections.abc import Iterator


@contextlib.contextmanager
def written_aside(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path to write to, a file or a directory, that becomes `path` on success.

    What was at `path` stays until then, and stays for good after an error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield aside
        if aside.is_dir() and path.exists():
            old = path.with_name(f"{aside.name}.old")
            path.rename(old)
            try:
                aside.rename(path)
            except BaseException:
                old.rename(path)
                raise
            shutil.rmtree(old)
        else:
            aside.replace(path)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        else:
            aside.unlink(missing_ok=True)
