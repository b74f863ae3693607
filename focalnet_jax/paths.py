"""Paths on disks and in buckets, and files that are written whole or not at all."""

import contextlib
import json
import os
import pathlib
import shutil
import urllib.parse
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from focalnet_jax.errors import SetupError, first_line

# The addresses that etils knows, if the library for them is there.
BUCKETS = ("gs://", "s3://", "az://")


def is_remote(path: epath.PathLike) -> bool:
    """Whether the path is the address of a bucket, such as `gs://bucket/run`."""
    return "://" in os.fspath(path)


def without_file_scheme(path: str) -> str:
    """The path that an address `file:///PATH` means; any other text as it is."""
    if not path.startswith("file://"):
        return path
    return "/" + urllib.parse.unquote(urllib.parse.urlparse(path).path).lstrip("/")


def absolute_path(path: epath.PathLike) -> epath.Path:
    """Makes a path absolute and expands `~`; the address of a bucket stays as it is.

    Raises:
      SetupError: it is an address that is neither a file's nor a bucket's, or there is
        no current directory that it could start from.
    """
    text = without_file_scheme(os.fspath(path))
    if text.startswith("~") and os.path.expanduser(text) == text:
        raise SetupError(
            f"{text!r} is no path: that user has no home directory here (a name that "
            f"begins with ~ is given as ./{text})"
        )
    try:
        path = epath.Path(text)
        return path if is_remote(text) else path.expanduser().resolve()
    except FileNotFoundError as error:
        raise SetupError(
            f"{path} is relative to the current directory, which has been deleted"
        ) from error
    except KeyError as error:
        raise SetupError(
            f"{text} is neither a path nor a place in a bucket, gs://BUCKET/PATH"
        ) from error
    except (RuntimeError, OSError, ValueError) as error:  # Loops of links, odd letters.
        raise SetupError(f"{text!r} is no path: {error}") from error


def local_path(path: epath.PathLike) -> pathlib.Path:
    """Makes a path on a disk absolute and expands `~`.

    Raises:
      SetupError: it is an address.
    """
    found = absolute_path(path)
    if is_remote(found):
        raise SetupError(f"{found} is not on a disk, as is needed here")
    return pathlib.Path(found)


def path_exists(path: epath.Path) -> bool:
    """Whether there is something at a path.

    Raises:
      SetupError: that can't be told, as where the library for a bucket is missing.
    """
    try:
        return path.exists()
    except Exception as error:  # The libraries of buckets have no common class.
        raise SetupError(f"{path} can't be reached: {first_line(error)}") from error


@contextlib.contextmanager
def written_aside(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary path to write to, which is renamed to `path` on success.

    The caller writes a file or a directory. What was at `path` stays there until the
    renaming, and it stays for good if the caller fails.
    """
    new_parents = [parent for parent in path.parents if not parent.exists()]
    # The end of the name is enough, so that a long name has room for more.
    aside = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name[-40:]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
    except BaseException:
        with contextlib.suppress(OSError):
            _remove(aside)
        with contextlib.suppress(OSError):  # Somebody may use them by now.
            for parent in new_parents:
                parent.rmdir()
        raise


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
