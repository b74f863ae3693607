"""Files of tensors: safetensors, which need no torch, and PyTorch's own files.

PyTorch's files are pickles, which can run code when they are loaded. They are always read
with `torch.load(weights_only=True)`, which refuses such code.
"""

import dataclasses
import hashlib
import os
import pathlib
import re
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from focalnet_jax.errors import SetupError, first_line
from focalnet_jax.paths import written_aside

_SAFETENSORS = (".safetensors",)
_PICKLES = (".pth", ".pt", ".bin")
SUFFIXES = (*_SAFETENSORS, *_PICKLES)

# Entries of checkpoints that hold weights, in the order in which they are tried.
_WRAPPERS = ("state_dict", "model", "teacher")
# The greatest number of wrappers in one another. A pickle may contain itself.
_DEPTH = 8


@dataclasses.dataclass(frozen=True)
class Weights:
    """Tensors by name, just as a file or a state dict holds them.

    Attributes:
      origin: the name of the file, for messages.
      tensors: numpy arrays by name. No name and no precision is changed.
      sha256: the hash of the file; None if the tensors are not from a file.
      metadata: texts that a safetensors file holds beside its tensors.
      notes: sentences for the user about which tensors were read.
    """

    origin: str
    tensors: dict[str, np.ndarray]
    sha256: str | None = None
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_weights(
    source: Mapping[str, Any] | str | os.PathLike, *, wrapper: str | None = None
) -> Weights:
    """Reads tensors from a file, or takes those of a state dict.

    Args:
      source: a file with one of the endings `SUFFIXES`, or a mapping from names to torch
        tensors or numpy arrays, which may lie below a wrapper such as `state_dict`.
      wrapper: the entry that holds the weights. With None the entries `state_dict`,
        `model` and `teacher` are tried.

    Raises:
      SetupError: there is no such file, it is of another kind or damaged, or it is a
        pickle that holds more than tensors.
    """
    if isinstance(source, Mapping):
        origin, content, sha256, metadata = "the state dict", source, None, {}
    elif hasattr(source, "state_dict"):
        raise SetupError(f"a {type(source).__name__} is given: pass its state_dict()")
    else:
        path = pathlib.Path(source).expanduser()
        _check_readable(path)
        if path.suffix in _SAFETENSORS:
            content, metadata = _read_safetensors(path)
        else:
            content, metadata = _read_pickle(path), {}
        origin = path.name
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    state_dict, notes = _unwrap(origin, content, wrapper)
    tensors = {name: _to_numpy(origin, name, t) for name, t in state_dict.items()}
    return Weights(origin, tensors, sha256, metadata, notes)


def _check_readable(path: pathlib.Path) -> None:
    if not path.exists():
        raise SetupError(f"there is no file {path}")
    if path.is_dir():
        raise SetupError(f"{path} is a directory; a file of weights is needed")
    if path.suffix not in SUFFIXES:
        raise SetupError(f"{path} ends in {path.suffix!r}, not in {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise SetupError(f"{path} is empty")
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors file begins with the length of its JSON header in eight bytes, and
    # these may look like the start of a pickle. The ninth byte decides.
    is_safetensors = start[8:] == b"{"
    if is_safetensors and path.suffix in _PICKLES:
        raise SetupError(f"{path} is a safetensors file: rename it to .safetensors")
    is_pickle = start.startswith((b"PK\x03\x04", b"\x80")) and not is_safetensors
    if is_pickle and path.suffix in _SAFETENSORS:
        raise SetupError(f"{path} is a PyTorch file: rename it to .pth")


def _read_safetensors(
    path: pathlib.Path,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    import safetensors

    # For a dtype that numpy lacks, such as float8, safetensors raises an AttributeError.
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return file.get_tensors(), file.metadata() or {}
    except (safetensors.SafetensorError, AttributeError, ValueError, OSError) as error:
        raise SetupError(
            f"{path} is damaged, or no safetensors file: {first_line(error)}"
        ) from error


def _read_pickle(path: pathlib.Path) -> Any:
    torch = _import_torch(f"to read {path}")
    try:
        # torch warns of old versions of the pickle protocol.
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle and zip have no common class of errors.
        if wanted := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise SetupError(
                f"{path} is refused: it holds {wanted[1]}, which is not a tensor, and to "
                "load that could run code. If you trust the file, load it where you made "
                "it and save its state_dict() alone"
            ) from error
        if "Weights only" in str(error):
            raise SetupError(
                f"{path} is refused: it is a pickle of more than tensors, and to load it "
                "could run code; or it is damaged"
            ) from error
        # pickle raises a KeyError for an instruction that it does not know.
        reason = "no pickle" if isinstance(error, KeyError) else first_line(error)
        raise SetupError(f"{path} is damaged, or no PyTorch file: {reason}") from error


def _import_torch(purpose: str) -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise SetupError(
            f"{purpose}, torch is needed: pip install torch; safetensors files need none"
        ) from error
    return torch


def _unwrap(
    origin: str, content: Any, wrapper: str | None
) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Finds the mapping that holds the tensors; adds a note if there are others."""
    notes = ()
    for _ in range(_DEPTH):
        if not isinstance(content, Mapping):
            raise SetupError(
                f"{origin} holds {type(content).__name__}, not named tensors"
            )
        if wrapper is not None:
            if not isinstance(content.get(wrapper), Mapping):
                holders = [str(k) for k, v in content.items() if isinstance(v, Mapping)]
                raise SetupError(
                    f"{origin} has no weights under {wrapper!r}; there is "
                    + (", ".join(holders) or "no wrapper in it")
                )
            content, wrapper = content[wrapper], None
            continue
        inside = [k for k, v in content.items() if isinstance(v, Mapping) and v]
        found = [k for k in _WRAPPERS if k in inside]
        if not found:
            if _holds_tensors(content):
                return content, notes
            listed = ", ".join(map(str, list(content)[:5]))
            instead = f", but {listed}" if listed else ""
            raise SetupError(f"{origin} holds no named tensors{instead}")
        others = [k for k in inside if k != found[0] and _holds_tensors(content[k])]
        if others:
            notes += (
                f"of the weights in {origin}, those under {found[0]!r} are taken, not "
                f"those under {', '.join(map(repr, others))}",
            )
        content = content[found[0]]
    raise SetupError(f"{origin} has wrappers in wrappers, {_DEPTH} deep")


def _holds_tensors(content: Mapping) -> bool:
    return any(map(_is_tensor, content.values()))


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _to_numpy(origin: str, name: str, tensor: Any) -> np.ndarray:
    if not isinstance(name, str) or not _is_tensor(tensor):
        raise SetupError(
            f"{origin} holds {name!r}, {type(tensor).__name__}, among its tensors"
        )
    if not type(tensor).__module__.startswith("torch"):
        return np.asarray(tensor)
    torch = _import_torch("for torch tensors")
    try:
        tensor = tensor.detach().cpu()
        if tensor.dtype == torch.bfloat16:  # numpy's is that of ml_dtypes.
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()
    except (RuntimeError, TypeError) as error:
        # The tensor may be sparse, quantised, float8 or without data.
        raise SetupError(
            f"{origin} holds {name!r} as {tensor.dtype}, {tensor.layout}, on "
            f"{tensor.device}, which is no plain array: {first_line(error)}"
        ) from error


def write_weights(
    path: pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    *,
    wrapper: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a file of tensors, whole or not at all.

    Args:
      path: the file, whose ending is one of `SUFFIXES` and decides on its kind.
      tensors: contiguous arrays by name.
      wrapper: the entry of a PyTorch file that is to hold the tensors.
      metadata: texts that a safetensors file is to hold beside the tensors.

    Raises:
      SetupError: torch is needed and not installed.
    """
    with written_aside(path) as aside:
        if path.suffix in _SAFETENSORS:
            import safetensors.numpy

            # transformers reads no file without this entry.
            metadata = {"format": "pt", **(metadata or {})}
            aside.write_bytes(safetensors.numpy.save(dict(tensors), metadata))
        else:
            torch = _import_torch(f"to write {path}")
            content = {name: _to_tensor(torch, array) for name, array in tensors.items()}
            with aside.open("wb") as file:
                torch.save({wrapper: content} if wrapper else content, file)


def _to_tensor(torch: ModuleType, array: np.ndarray) -> Any:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
