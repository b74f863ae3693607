"""Paths, of disks and of buckets; and what is written there whole or not at all."""

import contextlib
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator

from etils import epath


def is_remote(path: epath.PathLike) -> bool:
    """Whether it is the address of a bucket, such as `gs://bucket/run`."""
    return "://" in os.fspath(path)


def absolute_path(path: epath.PathLike) -> epath.Path:
    """An absolute path, with `~` expanded; addresses of buckets stay as they are."""
    if is_remote(path):
        return epath.Path(path)
    return epath.Path(path).expanduser().resolve()


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


def write_whole(path: epath.Path, text: str) -> None:
    """Writes a small file of which a reader sees the old content or the new.

    In a bucket that is so, and nothing can be renamed; elsewhere it is written aside.
    """
    if is_remote(path):
        path.write_text(text)
        return
    with written_aside(pathlib.Path(path)) as aside:
        aside.write_text(text)
