"""Paths on disks and in buckets, and files that are written whole or not at all."""

import contextlib
import fnmatch
import json
import os
import pathlib
import re
import shutil
import urllib.parse
import uuid
from collections.abc import Collection, Iterator
from typing import Any

from etils import epath

from focalnet_jax.errors import SetupError, argument, first_line, nearest, shown

# The addresses that etils knows, if the library for them is there.
BUCKETS = ("gs://", "s3://", "az://")


def is_remote(path: epath.PathLike) -> bool:
    """Whether the path is the address of a bucket, such as `gs://bucket/run`."""
    return "://" in os.fspath(path)


def without_file_scheme(path: str) -> str:
    """The path that an address `file:///PATH` means; any other text as it is.

    Raises:
      SetupError: the address names a host, or no path.
    """
    address = re.fullmatch(r"file:(?://([^/]*))?(/.*)?", path, re.IGNORECASE | re.DOTALL)
    if not address or (address[1] is None and not address[2]):
        return path  # A file may be called so.
    host, place = address[1] or "", address[2] or ""
    if host.lower() not in ("", "localhost"):
        # This is what `file://` before a relative path looks like.
        raise SetupError(
            f"{path} names the host {host!r}, and files are read and written on this one "
            f"alone: give {host}{place} for a path from here, or file:///{host}{place} "
            "for one from the root"
        )
    if not place:
        raise SetupError(f"{path} names no path: give file:///PATH")
    return "/" + os.fsdecode(urllib.parse.unquote_to_bytes(place)).lstrip("/")


def with_home(path: str | os.PathLike) -> str:
    """A path whose `~` or `~USER` is replaced by that home directory.

    Raises:
      SetupError: there is no such home directory.
    """
    text = os.fspath(path)
    try:
        expanded = os.path.expanduser(text)
    except ValueError:  # There is a character in it that no path has.
        expanded = text
    if text.startswith("~") and expanded == text:
        raise SetupError(
            f"{text!r} is no path: that user has no home directory here (a name that "
            f"begins with ~ is given as ./{text})"
        )
    return expanded


def absolute_path(path: epath.PathLike) -> epath.Path:
    """Makes a path absolute and expands `~`; the address of a bucket stays as it is.

    Raises:
      SetupError: it is an address that is neither a file's nor a bucket's, or there is
        no current directory that it could start from.
    """
    text = with_home(without_file_scheme(os.fspath(path)))
    try:
        path = epath.Path(text)
        return path if is_remote(text) else path.resolve()
    except FileNotFoundError as error:
        raise SetupError(
            f"{path} is relative to the current directory, which has been deleted"
        ) from error
    except KeyError as error:
        raise SetupError(
            f"{text} is neither a path nor a place in a bucket, gs://BUCKET/PATH"
        ) from error
    except (RuntimeError, OSError, ValueError) as error:  # There are odd letters in it.
        raise SetupError(f"{text!r} is no path: {error}") from error


def absolute_text(path: str) -> str:
    """The text of `absolute_path`; raises as that does."""
    return os.fspath(absolute_path(path))


def local_path(path: epath.PathLike) -> pathlib.Path:
    """Makes a path on a disk absolute and expands `~`.

    Raises:
      SetupError: it is an address.
    """
    found = absolute_path(path)
    if is_remote(found):
        raise SetupError(f"{found} is not on a disk, as is needed here")
    return pathlib.Path(found)


def given_name(path: str) -> str:
    """The last name of a path as it is given, whatever a link of that name leads to."""
    return os.path.basename(os.path.abspath(with_home(without_file_scheme(path))))


def from_here(path: epath.PathLike) -> str:
    """An absolute path as one gives it from the current directory, if it lies below."""
    here = pathlib.Path.cwd()
    if not is_remote(path) and pathlib.Path(path).is_relative_to(here):
        return str(pathlib.Path(path).relative_to(here))
    return os.fspath(path)


def did_you_mean_beside(path: str | os.PathLike) -> str:
    """`"; did you mean PATH?"` for the nearest of what lies where a path should."""
    directory, name = os.path.split(os.fspath(path))
    try:
        near = nearest(name, os.listdir(directory or "."))
    except OSError:
        return ""
    return f"; did you mean {os.path.join(directory, near)}?" if near else ""


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
def writing(path: epath.PathLike) -> Iterator[None]:
    """Says of an error of the disk that `path` can't be written, and why.

    Raises:
      SetupError: in place of an OSError, which may name a temporary file, or none.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise SetupError(f"{path} can't be written: {reason}") from error


def check_may_write(
    path: pathlib.Path, *, overwrite: bool, files: Collection[str] | None = None
) -> None:
    """Checks that a file or a directory may be written, and that nothing else is lost.

    Args:
      path: of the file or of the directory, absolute.
      overwrite: whether what is there may be replaced.
      files: of a directory, the paths in it that may be replaced, as shell-style
        patterns in which `*` stands for slashes, too. None means that a file is written.

    Raises:
      SetupError: there is something at `path` that is not to be replaced, but for an
        empty directory; or there can't be anything.
    """
    parent = next((p for p in path.parents if os.path.exists(p)), path)
    if not parent.is_dir():
        raise SetupError(f"{path} can't be written: {parent} is a file")
    with writing(path):
        if not _is_there(path):
            return
        is_directory = path.is_dir()
        if path.exists() and is_directory != (files is not None):
            kind = "directory" if is_directory else "file"
            raise SetupError(f"{path} is there already, and is a {kind}")
        if is_directory and not os.listdir(path):
            return
        if not overwrite:
            raise SetupError(
                f"{path} is there already; {argument('overwrite', True)} replaces it"
            )
        if is_directory and (other := _other_file(path, files or ())):
            raise SetupError(
                f"{path} holds {other}, which is not written there, so it is not "
                "overwritten"
            )


def _is_there(path: pathlib.Path) -> bool:
    """Whether there is anything at a path, be it a link that leads nowhere."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _other_file(directory: pathlib.Path, files: Collection[str]) -> str | None:
    """The first file or link in a directory whose path in it matches no pattern."""

    def fail(error):
        raise error  # What can't be read may be anything.

    for place, directories, names in os.walk(directory, onerror=fail):
        directories.sort()
        links = [name for name in directories if os.path.islink(f"{place}/{name}")]
        for name in sorted(names + links):
            found = os.path.relpath(os.path.join(place, name), directory)
            if not any(fnmatch.fnmatchcase(found, pattern) for pattern in files):
                return found
    return None


@contextlib.contextmanager
def written_aside(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary path to write to, which is renamed to `path` on success.

    The caller writes a file or a directory. What was at `path` stays there until the
    renaming, and it stays for good if the caller fails. If `path` is a link, it stays as
    well, and what it leads to is replaced. An error of writing names `path`.
    """
    with errors_named(path), _renamed_on_success(path) as aside:
        yield aside


@contextlib.contextmanager
def _renamed_on_success(path: pathlib.Path) -> Iterator[pathlib.Path]:
    path = pathlib.Path(os.path.realpath(path))
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
            _remove(old)
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
    """Removes a file, a directory with all that is in it, or a link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_whole(path: epath.Path, content: str | bytes) -> None:
    """Writes a small file such that a reader sees either the old content or the new one.

    A bucket replaces files in one step by itself, and it cannot rename. On a disk the
    content is written to a temporary file, which is then renamed.
    """
    if isinstance(content, str):
        content = content.encode("utf-8")
    if is_remote(path):
        with errors_named(path):
            path.write_bytes(content)
        return
    with written_aside(pathlib.Path(path)) as aside:
        aside.write_bytes(content)


@contextlib.contextmanager
def errors_named(path: epath.PathLike) -> Iterator[None]:
    """Has an error of writing, such as a full disk, name the file; Python's doesn't."""
    try:
        yield
    except OSError as error:
        # Those of a network, from which the file may come, are of classes of their own.
        if type(error) is OSError and error.errno is not None and not error.filename:
            error.filename = os.fspath(path)
        raise


def read_json(path: epath.Path) -> dict[str, Any]:
    """Reads a file that holds one object of JSON.

    Raises:
      ValueError: it holds something else.
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"it is no JSON: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"it holds {shown(content)}, and no object")
    return content


def write_json(path: epath.Path, content: Any) -> None:
    """Writes `content` as indented JSON, whole or not at all."""
    write_whole(path, json.dumps(content, indent=2) + "\n")
