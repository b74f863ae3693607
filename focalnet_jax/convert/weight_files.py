"""Files of tensors: safetensors, PyTorch's own files, and indexes of several files."""

import dataclasses
import hashlib
import io
import os
import pathlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from focalnet_jax.convert import file_kinds
from focalnet_jax.convert.pytorch_files import (
    StandIn,
    is_module,
    named_tensors,
    read_pickle,
    read_zip,
)
from focalnet_jax.errors import (
    SetupError,
    argument,
    did_you_mean,
    first_few,
    first_line,
    shown,
)
from focalnet_jax.paths import with_home, without_file_scheme, written_aside
from focalnet_jax.weights.releases import check_is_no_name
from focalnet_jax.weights.shards import check_is_no_shard, read_index

_SAFETENSORS = (".safetensors",)
# The endings of files that are written; those of files that are read do not matter.
SUFFIXES = (*_SAFETENSORS, ".pth", ".pt", ".bin")

# Entries of checkpoints that hold weights, in the order in which they are taken.
_WRAPPERS = ("state_dict", "model", "teacher")
# The greatest number of wrappers in one another. A pickle may contain itself.
_DEPTH = 8


@dataclasses.dataclass(frozen=True)
class Weights:
    """Tensors by name, just as a file or a state dict holds them.

    Attributes:
      origin: the name of the file, for messages.
      tensors: numpy arrays by name. No name and no precision is changed.
      sha256: the hash of the file, or of all the files of an index in the order of their
        names; None if the tensors are not from a file.
      metadata: texts that a safetensors file holds beside its tensors.
      notes: sentences for the user about which tensors were read.
      meta: the entry `meta` of a checkpoint, in which mmsegmentation describes it; None
        if there is none.
    """

    origin: str
    tensors: dict[str, np.ndarray]
    sha256: str | None = None
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    meta: Any = None


def read_weights(
    source: Mapping[str, Any] | str | os.PathLike, *, wrapper: str | None = None
) -> Weights:
    """Reads tensors from a file, or takes those of a state dict.

    Args:
      source: a safetensors file, a file of `torch.save`, or the JSON index of several
        files, whatever its name; or a mapping from names to torch tensors or numpy
        arrays, which may lie below a wrapper such as `state_dict`.
      wrapper: the entry that holds the weights. With None the entries `state_dict`,
        `model` and `teacher` are tried, then the only entry that holds tensors.

    Raises:
      SetupError: there is no such file, it is of another kind or damaged, or several
        entries may be meant.
    """
    if isinstance(source, Mapping):
        return _weights("the state dict", source, wrapper, None, {})
    if hasattr(source, "state_dict"):
        raise SetupError(f"a {type(source).__name__} is given: pass its state_dict()")
    if not isinstance(source, (str, os.PathLike)):
        raise SetupError(f"{shown(source)} is neither a path nor a state dict")
    source = without_file_scheme(os.fspath(source))
    check_is_no_name(source)
    path = pathlib.Path(with_home(source))
    kind = file_kinds.kind_of(path)
    if kind == file_kinds.INDEX:
        return _read_shards(path, wrapper)
    check_is_no_shard(path)
    content, metadata = _read_file(path, kind)
    return _weights(path.name, content, wrapper, _sha256([path]), metadata)


def _weights(
    origin: str,
    content: Any,
    wrapper: str | None,
    sha256: str | None,
    metadata: Mapping[str, str],
) -> Weights:
    state_dict, notes = _unwrap(origin, content, wrapper)
    others = {name: value for name, value in state_dict.items() if not _is_tensor(value)}
    if others:
        kinds = [f"{name} ({_kind(value)})" for name, value in others.items()]
        notes += (f"no tensors, and so left out: {first_few(kinds)}",)
    tensors = {
        str(name): _to_numpy(origin, name, tensor)
        for name, tensor in state_dict.items()
        if name not in others
    }
    meta = content.get("meta") if isinstance(content, Mapping) else None
    return Weights(origin, tensors, sha256, metadata, notes, meta)


def _read_file(path: pathlib.Path, kind: str) -> tuple[Any, dict[str, str]]:
    """What a file holds, and the texts beside it."""
    if kind == file_kinds.SAFETENSORS:
        return _read_safetensors(path)
    try:
        read = read_zip if kind == file_kinds.PYTORCH_ZIP else read_pickle
        return read(path), {}
    except Exception as error:  # pickle and zip have no common class of errors.
        raise SetupError(
            f"{path} is damaged, or no PyTorch file: {first_line(error)[:200]}"
        ) from error


def _read_shards(path: pathlib.Path, wrapper: str | None) -> Weights:
    """Reads the files of an index."""
    weight_map = read_index(path)
    files = [path.parent / name for name in sorted(set(weight_map.values()))]
    tensors: dict[str, np.ndarray] = {}
    notes = ()
    for file in files:
        content, _ = _read_file(file, file_kinds.kind_of(file))
        shard = _weights(file.name, content, wrapper, None, {})
        if doubled := sorted(tensors.keys() & shard.tensors.keys()):
            raise SetupError(f"{path}: several files hold {first_few(doubled)}")
        tensors |= shard.tensors
        notes += shard.notes
    for name, file in weight_map.items():
        if name not in tensors:
            raise SetupError(f"{path} says that {name!r} is in {file}, which lacks it")
    if others := sorted(tensors.keys() - weight_map.keys()):
        notes += (f"{path.name} does not name {first_few(others)}, but the files do",)
    return Weights(path.name, tensors, _sha256(files), {}, notes)


def _sha256(paths: list[pathlib.Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


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


def _import_torch(purpose: str) -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise SetupError(
            f"{purpose}, torch is needed: pip install torch; .safetensors needs none"
        ) from error
    return torch


def _unwrap(
    origin: str, content: Any, wrapper: str | None
) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Finds the mapping that holds the tensors; adds a note if there are others."""
    notes = ()
    if is_module(content):
        notes += (_module_note(origin, content),)
        content = named_tensors(content)
    for _ in range(_DEPTH):
        if not isinstance(content, Mapping) or (_kind(content) != "dict" and not content):
            raise SetupError(f"{origin} holds {_kind(content)}, not named tensors")
        inside = _entries_with_weights(content)
        if wrapper is not None:
            if wrapper not in inside:
                raise _no_such_wrapper(origin, content, wrapper, inside)
            chosen, wrapper = wrapper, None
        else:
            chosen, note = _chosen_entry(origin, content, inside)
            notes += (note,) if note else ()
        if chosen is None:
            return content, notes
        if is_module(content[chosen]):
            notes += (_module_note(repr(chosen), content[chosen]),)
        content = inside[chosen]
    raise SetupError(f"{origin} has wrappers in wrappers, {_DEPTH} deep")


def _entries_with_weights(content: Mapping) -> dict[str, Mapping]:
    """The entries that are mappings, or whole modules, with tensors somewhere in them."""
    found = {}
    for name, value in content.items():
        value = named_tensors(value) if is_module(value) else value
        if isinstance(name, str) and isinstance(value, Mapping) and _has_tensors(value):
            found[name] = value
    return found


def _has_tensors(content: Mapping, depth: int = _DEPTH) -> bool:
    """Whether there are tensors by name; those of an optimiser do not count."""
    for name, value in content.items():
        if not isinstance(name, str) or name.startswith("optim"):
            continue
        if _is_tensor(value) or is_module(value):
            return True
        if isinstance(value, Mapping) and depth and _has_tensors(value, depth - 1):
            return True
    return False


def _looks_like_a_net(content: Mapping, depth: int = _DEPTH) -> bool:
    """Whether there are tensors whose names have dots, as those of nested modules."""
    return any(
        "." in str(name)
        if _is_tensor(value)
        else isinstance(value, Mapping) and depth and _looks_like_a_net(value, depth - 1)
        for name, value in content.items()
    )


def _chosen_entry(
    origin: str, content: Mapping, inside: Mapping[str, Mapping]
) -> tuple[str | None, str | None]:
    """The entry to look into, None for `content` itself; and a note on the others."""
    # An optimiser that names its tensors is not what is meant.
    inside = {name: e for name, e in inside.items() if not name.startswith("optim")}
    known = [name for name in _WRAPPERS if name in inside]
    nets = {name: e for name, e in inside.items() if _looks_like_a_net(e)}
    inside = nets or inside
    names = [name for name, value in content.items() if _is_tensor(value)]
    if not known and (any("." in str(n) for n in names) or (names and not inside)):
        return None, None
    if not inside:
        listed = first_few([str(name) for name in content])
        instead = f", but {listed}" if listed else ""
        raise SetupError(f"{origin} holds no named tensors{instead}")
    if not known and len(inside) > 1:
        raise SetupError(
            f"{origin} holds weights in several entries, {', '.join(map(repr, inside))}: "
            f"choose one, as by {argument('wrapper', next(iter(inside)))}"
        )
    chosen = known[0] if known else next(iter(inside))
    others = [name for name in inside if name != chosen]
    if others:
        return chosen, (
            f"of the weights in {origin}, those under {chosen!r} are taken, not those "
            f"under {', '.join(map(repr, others))}; "
            f"{argument('wrapper', others[0])} takes others"
        )
    if not known:
        return chosen, f"the weights in {origin} are those under {chosen!r}"
    return chosen, None


def _no_such_wrapper(
    origin: str, content: Mapping, wrapper: str, inside: Mapping[str, Mapping]
) -> SetupError:
    message = f"{origin} has no weights under {wrapper!r}"
    if wrapper in content:
        message += f", which is {_kind(content[wrapper])}"
    if inside:
        return SetupError(message + did_you_mean(wrapper, inside))
    if any(map(_is_tensor, content.values())):
        message += "; its tensors lie in no wrapper"
    return SetupError(message)


def _module_note(place: str, module: StandIn) -> str:
    return (
        f"{place} is a whole module, {module.kind}: its parameters are taken, and no code"
    )


def _kind(value: Any) -> str:
    """The class of a value, for messages."""
    is_stand_in = isinstance(value, StandIn) or (
        isinstance(value, type) and issubclass(value, StandIn)
    )
    return value.kind if is_stand_in else type(value).__name__


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _to_numpy(origin: str, name: str, tensor: Any) -> np.ndarray:
    if not type(tensor).__module__.startswith("torch"):
        try:
            return np.asarray(tensor)
        except Exception as error:  # Of zip, if the bytes of the tensor are damaged.
            raise SetupError(
                f"{origin} holds {name!r} as {tensor.dtype}, which can't be read: "
                f"{first_line(error)}"
            ) from error
    torch = _import_torch("for torch tensors")
    try:
        tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
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
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Writes a file of tensors, whole or not at all.

    Args:
      path: the file, whose ending is one of `SUFFIXES` and decides on its kind.
      tensors: contiguous arrays by name.
      wrapper: the entry of a PyTorch file that is to hold the tensors.
      metadata: texts that a safetensors file is to hold beside the tensors.
      meta: what a PyTorch file is to hold under `meta`, beside the wrapper.

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
            # To a full disk torch.save raises something else than an OSError.
            file = io.BytesIO()
            beside = {} if meta is None else {"meta": meta}
            torch.save({wrapper: content} | beside if wrapper else content, file)
            aside.write_bytes(file.getbuffer())


def _to_tensor(torch: ModuleType, array: np.ndarray) -> Any:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
