"""ONNX Runtime Web, which runs graphs of ONNX in browsers.

It is Microsoft's, under the MIT licence, and comes from npm as one archive. A page needs
two files of it. They compute on the CPU, in WebAssembly.
"""

import base64
import hashlib
import json
import os
import pathlib
import tarfile
import zlib
from typing import NamedTuple

from focalnet_jax.errors import SetupError, first_line
from focalnet_jax.paths import local_path
from focalnet_jax.weights.releases import cache_directory, download_file

VERSION = "1.30.0"
_ARCHIVE = f"onnxruntime-web-{VERSION}.tgz"
_URL = f"https://registry.npmjs.org/onnxruntime-web/-/{_ARCHIVE}"
# What npm calls the integrity of this version.
_SHA512 = (
    "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7sv"
    "Nc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
)

_SCRIPT = "dist/ort.wasm.bundle.min.mjs"
_WASM = "dist/ort-wasm-simd-threaded.wasm"
_ABOUT = "package.json"


class Runtime(NamedTuple):
    """What a page needs of ONNX Runtime Web.

    Attributes:
      version: such as `"1.30.0"`.
      script: a module of JavaScript.
      wasm: the program of WebAssembly that the module calls.
    """

    version: str
    script: bytes
    wasm: bytes


def find_runtime(given: str | os.PathLike | None = None) -> Runtime:
    """Reads ONNX Runtime Web.

    Args:
      given: the archive that `npm pack onnxruntime-web` writes, or the directory of the
        unpacked package, such as `node_modules/onnxruntime-web`. None takes the archive
        of the version `VERSION` from `~/.cache/focalnet_jax`, to which it is downloaded
        once.

    Raises:
      SetupError: the files are not there, are damaged, or can't be downloaded.
    """
    if given is None:
        return _read(_downloaded())
    path = local_path(given)
    if not path.exists():
        raise SetupError(f"--runtime={given} isn't there")
    return _read(path)


def cached_archive() -> pathlib.Path:
    """Where the archive is kept once it has been downloaded."""
    return cache_directory() / _ARCHIVE


def _downloaded() -> pathlib.Path:
    try:
        path = download_file(_URL, cached_archive())
    except SetupError as error:
        raise SetupError(f"{error} as --runtime=FILE") from error
    digest = hashlib.sha512(path.read_bytes()).digest()
    if base64.b64encode(digest).decode() != _SHA512:
        path.unlink()  # It would stay damaged for good.
        raise SetupError(
            f"{_URL} is not the file that it was: its SHA-512 is another one. It was "
            "deleted here: try again, or give a file that you trust as --runtime=FILE"
        )
    return path


def _read(path: pathlib.Path) -> Runtime:
    read = _from_directory if path.is_dir() else _from_archive
    try:
        about, script, wasm = (read(path, name) for name in (_ABOUT, _SCRIPT, _WASM))
        version = json.loads(about)["version"]
    except (KeyError, TypeError, FileNotFoundError, NotADirectoryError) as error:
        raise SetupError(
            f"{path} is not the package onnxruntime-web of npm: it lacks a file such as "
            f"{_SCRIPT}. The version {VERSION} has it"
        ) from error
    except (ValueError, OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise SetupError(
            f"{path} can't be read as the package onnxruntime-web of npm: "
            f"{first_line(error)}"
        ) from error
    return Runtime(str(version), script, wasm)


def _from_directory(path: pathlib.Path, name: str) -> bytes:
    return (path / name).read_bytes()


def _from_archive(path: pathlib.Path, name: str) -> bytes:
    with tarfile.open(path, "r:gz") as archive:
        file = archive.extractfile(f"package/{name}")
        if file is None:
            raise KeyError(name)
        return file.read()
