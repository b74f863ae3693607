"""PyTorch's files, read without torch and without running what is in them.

A file of `torch.save` is a pickle, and beside it the plain bytes of the tensors. A pickle
is a program: it names functions and has them called. Here a name stands for one of the
few methods of `_Unpickler` that make arrays of bytes, or else for a `StandIn`, which does
nothing. So whatever a trainer puts beside its tensors, such as its arguments, runs no
code and does not keep the tensors from being read.

The newer files are zip archives: `data.pkl` is the pickle, and `data/KEY` holds the bytes
of a storage, which tensors share. The older ones are a row of pickles, then the storages.
"""

import collections
import dataclasses
import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

_STORAGES = {
    "DoubleStorage": np.dtype("float64"),
    "FloatStorage": np.dtype("float32"),
    "HalfStorage": np.dtype("float16"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("int64"),
    "IntStorage": np.dtype("int32"),
    "ShortStorage": np.dtype("int16"),
    "CharStorage": np.dtype("int8"),
    "ByteStorage": np.dtype("uint8"),
    "UntypedStorage": np.dtype("uint8"),
    "BoolStorage": np.dtype("bool"),
    "ComplexFloatStorage": np.dtype("complex64"),
    "ComplexDoubleStorage": np.dtype("complex128"),
}
_DTYPES = {dtype.name: dtype for dtype in _STORAGES.values()}
_DTYPES |= {f"uint{bits}": np.dtype(f"uint{bits}") for bits in (16, 32, 64)}
_TORCH_DTYPE = re.compile(r"(q?u?int|b?float|complex|bits)\d+\w*|bool")
# The first number in a file of the older kind.
_MAGIC = 0x1950A86A20F9469CFC6C


class StandIn(dict):
    """An object that is no tensor: it keeps what the pickle puts into it, and is inert.

    Attributes:
      kind: the name of the class that the pickle asked for.
      state: the attributes of the object, usually a dict.
    """

    kind = "object"
    __hash__ = object.__hash__  # type: ignore[assignment]  # It is no plain dict.

    def __new__(cls, *args, **options):
        made = super().__new__(cls)  # A pickle may leave `__init__` out.
        made.state = {}
        return made

    def __init__(self, *args, **options):
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *args, **options) -> "StandIn":
        return StandIn()

    def append(self, item: Any) -> None:
        """Takes an item of a list and forgets it."""

    add = extend = append


class UnreadTensor(StandIn):
    """A tensor of a kind that is no plain array, such as a sparse one."""

    shape = ()

    @property
    def dtype(self) -> str:
        return self.kind

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        raise ValueError("it is no plain array")


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage:
    """Numbers in a row, in a file.

    Attributes:
      dtype: the kind of the numbers, with their byte order.
      size: how many there are.
      read: returns bytes, given the first of them and their number.
    """

    dtype: np.dtype
    size: int
    read: Callable[[int, int], bytes]


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor in a file. Its numbers are read when numpy asks for them.

    Attributes:
      storage: the numbers that the tensor is made of, perhaps with others.
      offset: the place of the first number in the storage.
      shape: the shape.
      strides: for each axis, how far apart its numbers are in the storage.
      is_negative: whether the numbers are those in the storage times -1.
    """

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    is_negative: bool = False

    def __post_init__(self):
        # numpy checks nothing: strides may lead anywhere in memory.
        numbers = (self.offset, *self.shape, *self.strides)
        is_whole = all(type(number) is int and number >= 0 for number in numbers)
        if (
            not isinstance(self.storage, _Storage)
            or not is_whole
            or len(self.shape) != len(self.strides)
            or self.offset + self._span > self.storage.size
        ):
            raise pickle.UnpicklingError("a tensor lies outside of its storage")

    @property
    def dtype(self) -> np.dtype:
        """The numpy dtype, in the byte order of this machine."""
        return self.storage.dtype.newbyteorder("=")

    @property
    def _span(self) -> int:
        """How many numbers lie between the first and the last one, both included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides))

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        width = self.storage.dtype.itemsize
        content = self.storage.read(self.offset * width, self._span * width)
        row = np.frombuffer(content, self.storage.dtype)
        if row.size != self._span:
            raise ValueError("the file ends too early")
        strides = [step * width for step in self.strides]
        array = np.lib.stride_tricks.as_strided(row, self.shape, strides)
        array = np.negative(array) if self.is_negative else array
        return array.astype(dtype or self.dtype, copy=False)


class _PickledDtype(StandIn):
    """A numpy dtype, of which the pickle says the byte order after it is made."""

    _code: Any = "O"
    _order: Any = "="

    def __init__(self, code="O", *others):
        super().__init__()
        self._code = code

    def __setstate__(self, state):
        self._order = state[1]

    def dtype(self) -> np.dtype:
        """The dtype, if it is one of plain numbers."""
        if not re.fullmatch(r"[<>|=]?[biufc]\d+", str(self._code)):
            raise pickle.UnpicklingError(f"an array of {self._code!r} is no array")
        return np.dtype(self._code).newbyteorder(self._order)


class _PickledArray(StandIn):
    """A numpy array, whose content the pickle gives after it is made."""

    def __setstate__(self, state):
        _, self.shape, pickled, is_fortran, content = state
        if isinstance(pickled, _PickledDtype) and isinstance(content, bytes):
            self._fill(content, pickled, self.shape, "F" if is_fortran else "C")

    def _fill(self, content, pickled, shape, order):
        array = np.frombuffer(content, pickled.dtype()).reshape(shape, order=order)
        self.array = array.astype(array.dtype.newbyteorder("="))
        self.shape, self.dtype = self.array.shape, self.array.dtype

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.array.astype(dtype or self.dtype)


class _StorageType(str):
    """The name of a kind of storage, such as `FloatStorage`."""

    __slots__ = ()


class _TorchDtype(str):
    """The name of a dtype of torch."""

    __slots__ = ()


class _Unpickler(pickle.Unpickler):
    """Makes tensors and stand-ins, and calls no function but its own.

    Args:
      file: a pickle.
      storage_at: returns the storage at a key, given its dtype, the key and its size.
    """

    def __init__(
        self,
        file: BinaryIO,
        storage_at: Callable[[np.dtype, str, int], _Storage] | None = None,
    ):
        # Python 2 had bytes for texts, and latin1 keeps them as they are.
        super().__init__(file, encoding="latin1")
        self._storage_at = storage_at
        # Methods take no attributes, so that no pickle can change them for a later one.
        self._functions = {
            "collections.OrderedDict": collections.OrderedDict,
            "_codecs.encode": self._encode,
            "builtins.set": self._set,
            "__builtin__.set": self._set,
            "torch.Size": self._size,
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._tensor_of_bytes,
            "torch._utils._rebuild_parameter": self._same,
            "torch._utils._rebuild_parameter_with_state": self._same,
            "torch._utils._rebuild_device_tensor_from_numpy": self._same,
            "torch._tensor._rebuild_from_type": self._of_type,
            "torch._tensor._rebuild_from_type_v2": self._of_type,
            "torch.storage._load_from_bytes": self._storage_of_bytes,
        }
        for core in ("numpy.core", "numpy._core"):
            self._functions[f"{core}.multiarray._reconstruct"] = self._array
            self._functions[f"{core}.numeric._frombuffer"] = self._array_of_bytes

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}"
        if full_name in self._functions:
            return self._functions[full_name]
        if full_name == "numpy.dtype":
            return _PickledDtype
        if module.partition(".")[0] == "torch":
            if name.endswith("Storage"):
                return _StorageType(name)
            if module == "torch" and _TORCH_DTYPE.fullmatch(name):
                return _TorchDtype(name)
            if name.startswith("_rebuild_"):
                return _named(UnreadTensor, f"torch's {name.removeprefix('_rebuild_')}")
        return _named(StandIn, full_name)

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # The class of a whole module, with its source.
            return pid[1]
        kind, storage_type, key, _, size, *view = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise pickle.UnpicklingError(f"{kind!r} is no storage")
        if self._storage_at is None:
            raise pickle.UnpicklingError("a storage lies elsewhere")
        if storage_type not in _STORAGES:
            return _named(UnreadTensor, f"torch.{storage_type}")()
        dtype = _STORAGES[storage_type]
        storage = self._storage_at(dtype, str(key), size)
        return _part(storage, *view[0][1:]) if view and view[0] else storage

    def _encode(self, text, encoding="latin1"):
        return text.encode("latin1")

    def _set(self, items=()):
        return set(items)

    def _size(self, sizes=()):
        return tuple(sizes)

    def _tensor(
        self, storage, offset, shape, strides, _grad=False, _hooks=None, metadata=None
    ):
        if isinstance(storage, UnreadTensor):
            return storage
        # What torch says of a tensor beside its numbers, such as that they are negated.
        marks = {name for name, value in (metadata or {}).items() if value}
        if others := sorted(map(str, marks - {"neg"})):
            return _named(UnreadTensor, f"a tensor marked {', '.join(others)}")()
        return StoredTensor(
            storage, offset, tuple(shape), tuple(strides), is_negative="neg" in marks
        )

    def _tensor_of_bytes(
        self, storage, offset, shape, strides, grad, hooks, dtype, metadata=None
    ):
        if dtype not in _DTYPES:
            return _named(UnreadTensor, f"torch.{dtype}")()
        storage = _viewed(storage, _DTYPES[dtype])
        return self._tensor(storage, offset, shape, strides, grad, hooks, metadata)

    def _same(self, tensor, *others):
        return tensor

    def _of_type(self, function, _type, args, _state):
        return function(*args)  # It is one that `find_class` has given.

    def _storage_of_bytes(self, content):
        return _read_row(io.BytesIO(content), np.frombuffer(content, np.uint8))

    def _array(self, *others):
        return _PickledArray()

    def _array_of_bytes(self, content, dtype, shape, order="C"):
        array = _PickledArray()
        array._fill(bytes(content), dtype, shape, order)
        return array


def _named(base: type[StandIn], kind: str) -> type[StandIn]:
    """A class of its own for each name and use, which no other pickle can see."""
    return type(base.__name__, (base,), {"kind": kind})


def _part(storage: _Storage, offset: int, size: int) -> _Storage:
    """Some of the numbers of a storage."""
    start = offset * storage.dtype.itemsize

    def read(first, count):
        return storage.read(start + first, count)

    return _Storage(storage.dtype, min(size, storage.size - offset), read)


def _viewed(storage: _Storage, dtype: np.dtype) -> _Storage:
    """The bytes of a storage as numbers of another kind."""
    order = storage.dtype.byteorder
    size = storage.size * storage.dtype.itemsize // dtype.itemsize
    return _Storage(dtype.newbyteorder(order), size, storage.read)


def read_zip(path: str | os.PathLike) -> Any:
    """Reads a file of `torch.save`, of the newer kind.

    Returns:
      What was saved: mappings, lists and plain values as they were, tensors as
      `StoredTensor` or `UnreadTensor`, and other objects as `StandIn`.

    Raises:
      Exception: of several classes, if the file is damaged.
    """
    archive = zipfile.ZipFile(path)  # It is closed with the last tensor.
    [program] = [n for n in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", n)]
    root = program.removesuffix("data.pkl")
    order = "<"
    if f"{root}byteorder" in archive.namelist():
        order = {b"little": "<", b"big": ">"}[archive.read(f"{root}byteorder")]

    def storage_at(dtype, key, size):
        record = archive.getinfo(f"{root}data/{key}")

        def read(first, count):
            with archive.open(record) as file:
                file.seek(first)
                return file.read(count)

        size = record.file_size // dtype.itemsize
        return _Storage(dtype.newbyteorder(order), size, read)

    return _Unpickler(io.BytesIO(archive.read(program)), storage_at).load()


def read_pickle(path: str | os.PathLike) -> Any:
    """Reads a file of `torch.save`, of the older kind, or a plain pickle.

    Returns:
      As `read_zip`.

    Raises:
      Exception: of several classes, if the file is damaged.
    """
    with open(path, "rb") as file:
        return _read_row(file, np.memmap(path, np.uint8, mode="r"))


def _read_row(file: BinaryIO, content: np.ndarray) -> Any:
    """Reads a row of pickles with the storages after them.

    Args:
      file: the file at its beginning.
      content: all of its bytes.
    """
    first = _Unpickler(file).load()
    if first != _MAGIC or isinstance(first, StandIn):
        return first
    for _ in ("version", "machine"):
        _Unpickler(file).load()
    dtypes: dict[str, tuple[np.dtype, int]] = {}
    starts: dict[str, int] = {}

    def storage_at(dtype, key, size):
        dtypes[key] = dtype, size

        def read(first, count):
            start = starts[key] + first
            return content[start : start + count].tobytes()

        return _Storage(dtype, size, read)

    result = _Unpickler(file, storage_at).load()
    position = None
    for key in _Unpickler(file).load():
        position = file.tell() if position is None else position
        dtype, size = dtypes[key]
        starts[key] = position + 8  # The number of elements stands before them.
        position = starts[key] + size * dtype.itemsize
        if position > content.size:
            raise EOFError("the file ends too early")
    return result


def is_module(value: Any) -> bool:
    """Whether a stand-in is that of a whole module."""
    is_stand_in = isinstance(value, StandIn) and isinstance(value.state, dict)
    return is_stand_in and "_parameters" in value.state


def named_tensors(module: StandIn) -> dict[str, Any]:
    """The parameters and buffers of a whole module, named as in its `state_dict()`."""
    return dict(_named_tensors(module, "", ()))


def _named_tensors(
    module: StandIn, prefix: str, outer: tuple[StandIn, ...]
) -> Iterator[tuple[str, Any]]:
    outer = (*outer, module)
    temporary = module.state.get("_non_persistent_buffers_set", ())
    for kind in ("_parameters", "_buffers"):
        for name, tensor in _items(module, kind):
            if tensor is not None and name not in temporary:
                yield f"{prefix}{name}", tensor
    for name, child in _items(module, "_modules"):
        # A damaged file could hold a module inside of itself.
        if is_module(child) and not any(child is other for other in outer):
            yield from _named_tensors(child, f"{prefix}{name}.", outer)


def _items(module: StandIn, kind: str) -> list[tuple[Any, Any]]:
    entries = module.state.get(kind)
    return list(entries.items()) if isinstance(entries, dict) else []
