"""Paths on disks and in buckets, and files that are written whole or not at all."""

import contextlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from focalnet_jax.errors import SetupError


def is_remote(path: epath.PathLike) -> bool:
    """Whether the path is the address of a bucket, such as `gs://bucket/run`."""
    return "://" in os.fspath(path)


def absolute_path(path: epath.PathLike) -> epath.Path:
    """Makes a path absolute and expands `~`; the address of a bucket stays as it is.

    Raises:
      SetupError: there is no current directory, or no home, that it could start from.
    """
    if is_remote(path):
        return epath.Path(path)
    try:
        return epath.Path(path).expanduser().resolve()
    except FileNotFoundError as error:
        raise SetupError(
            f"{path} is relative to the current directory, which has been deleted"
        ) from error
    except RuntimeError as error:
        raise SetupError(f"{path}: this user's home directory isn't known") from error


@contextlib.contextmanager
def written_aside(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary path to write to, which is renamed to `path` on success.

    The caller writes a file or a directory. What was at `path` stays there until the
    renaming, and it stays for good if the caller fails.
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
    """Writes a small file such that a reader sees either the old text or the new one.

    A bucket replaces files in one step by itself, and it cannot rename. On a disk the
    text is written to a temporary file, which is then renamed.
    """
    with errors_named(path):
        if is_remote(path):
            path.write_text(text, encoding="utf-8")
            return
        with written_aside(pathlib.Path(path)) as aside:
            aside.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def errors_named(path: epath.PathLike) -> Iterator[None]:
    """Has an error of writing, such as a full disk, name the file; Python's doesn't."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def write_json(path: epath.Path, content: Any) -> None:
    """Writes `content` as indented JSON, whole or not at all."""
    write_whole(path, json.dumps(content, indent=2) + "\n")
