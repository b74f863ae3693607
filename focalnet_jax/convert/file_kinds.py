"""What a file is, told by its first bytes, whatever its name says."""

import json
import pathlib
import re
import struct
import zipfile

from focalnet_jax.errors import SetupError

SAFETENSORS = "safetensors"
PYTORCH_ZIP = "PyTorch's zip archive"
PICKLE = "a pickle"
INDEX = "an index of shards"

_ARCHIVE = "archive: unpack it, and give the file of weights that is in it"
# The first bytes of files that hold no weights, or hold them in a form not read here.
_READABLE = "a safetensors file or one of torch.save is needed"
_ANNEX = "not the file itself: fetch it by `git annex get`"
# A pointer of git-annex, or the text of a link to one's content.
_ANNEXED = rb"[^\n]*[/\\]annex[/\\]objects[/\\]"
# How pickles begin that don't name their protocol, which are those of protocols 0 and 1:
# with a dict or a list that is remembered, a function by its name, or torch's number.
_OLD_PICKLE = rb"\([dl]p\d+\n|[}\]]q.|c[\w.]+\n\w+\n(p\d+\n|q.|\(|\))|L\d+L\n\."
_OTHERS = (
    (
        b"version https://git-lfs",
        "a pointer of Git LFS, not the file itself: fetch it by `git lfs pull`",
    ),
    (b"\x1f\x8b", f"a gzip {_ARCHIVE}"),
    (b"BZh", f"a bzip2 {_ARCHIVE}"),
    (b"\xfd7zXZ\x00", f"an xz {_ARCHIVE}"),
    (b"\x28\xb5\x2f\xfd", f"a zstd {_ARCHIVE}"),
    (b"7z\xbc\xaf\x27\x1c", f"a 7z {_ARCHIVE}"),
    (b"Rar!", f"a rar {_ARCHIVE}"),
    (b"\x04\x22\x4d\x18", f"an lz4 {_ARCHIVE}"),
    (b"\x02\x21\x4c\x18", f"an lz4 {_ARCHIVE}"),
    (b"\x1f\x9d", f"a compress (.Z) {_ARCHIVE}"),
    (b"LZIP", f"an lzip {_ARCHIVE}"),
    (b"\x89LZO", f"an lzop {_ARCHIVE}"),
    (b"\x5d\x00\x00", f"an lzma {_ARCHIVE}"),
    (b"!<arch>\n", f"an ar {_ARCHIVE}"),
    (b"07070", f"a cpio {_ARCHIVE}"),
    (b"PK\x05\x06", "an empty zip archive: nothing was put into it"),
    (b"PK\x07\x08", f"one part of a zip {_ARCHIVE}"),
    (b"\x89PNG\r\n", f"a PNG image; {_READABLE}"),
    (b"\xff\xd8\xff", f"a JPEG image; {_READABLE}"),
    (b"GIF8", f"a GIF image; {_READABLE}"),
    (b"II*\x00", f"a TIFF image; {_READABLE}"),
    (b"MM\x00*", f"a TIFF image; {_READABLE}"),
    (b"%PDF-", f"a PDF document; {_READABLE}"),
    (b"PAR1", f"a Parquet table; {_READABLE}"),
    (b"ARROW1", f"an Arrow table; {_READABLE}"),
    (b"SQLite format 3", f"an SQLite database; {_READABLE}"),
    (b"\x7fELF", f"a program; {_READABLE}"),
    (b"\x89HDF\r\n\x1a\n", f"an HDF5 file, as Keras writes it; {_READABLE}"),
    (b"\x93NUMPY", f"a single numpy array; {_READABLE}"),
    (b"GGUF", f"a GGUF file; {_READABLE}"),
)


def kind_of(path: pathlib.Path) -> str:
    """Finds the kind of a file of weights.

    Returns:
      `SAFETENSORS`, `PYTORCH_ZIP`, `PICKLE` or `INDEX`.

    Raises:
      SetupError: there is no file, or it is none of these; the message says what it is.
    """
    if path.is_dir():
        raise SetupError(f"{path} is a directory; a file of weights is needed")
    if not path.exists():
        if path.is_symlink():
            target = path.readlink()
            annexed = f": {_ANNEX}" if "/annex/objects/" in str(target) else ""
            raise SetupError(f"{path} is a link to {target}, which is not there{annexed}")
        raise SetupError(f"there is no file {path}")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise SetupError(f"{path} can't be read: {error.strerror}") from error
    if not start:
        raise SetupError(f"{path} is empty")
    # A safetensors file begins with the length of its JSON header in eight bytes, and
    # these may look like the start of another kind. The ninth byte decides. (Eight
    # letters would be a far greater number.)
    if start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < 2**40:
        return SAFETENSORS
    if start.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    if re.match(rb"\x80[\x00-\x05]|" + _OLD_PICKLE, start, re.DOTALL):
        return PICKLE
    if start.lstrip().startswith(b"{") and _is_index(path):
        return INDEX
    raise SetupError(f"{path} is {_described(start, path)}")


def _described(start: bytes, path: pathlib.Path) -> str:
    for beginning, description in _OTHERS:
        if start.startswith(beginning):
            return description
    if re.match(_ANNEXED, start):
        return f"a pointer of git-annex, {_ANNEX}"
    if start.startswith(b"\x0c\xdb"):  # of TensorStore
        return (
            "a part of parameters that Orbax wrote: give the directory in which they "
            "lie, of the run or of the conversion"
        )
    if re.match(rb"RIFF....WEBP", start, re.DOTALL):
        return f"a WebP image; {_READABLE}"
    if start[257:262] == b"ustar":
        return f"a tar {_ARCHIVE}"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if re.match(rb"<(!doctype|html|head|\?xml|!--)", text):
        return (
            "a web page, not the file itself: the address that it was fetched from shows "
            "a page about the file, or asks for a login"
        )
    if not start.strip(b"\x00"):
        return "a row of zeros: the download broke off, or the disk was full"
    if path.suffix == ".onnx" or re.match(rb"\x08[\x01-\x14]\x12.\w", start, re.S):
        return (
            "an ONNX file, whose weights have lost their names: give what it was made "
            "of, such as the directory of a run"
        )
    if re.match(rb"[\x81-\x8f\xde\xdf].{0,3}[\xa1-\xbf\xd9]", start, re.S):
        return (
            "a msgpack file, as Flax writes it: read it by "
            "flax.serialization.msgpack_restore; it needs no conversion"
        )
    if _is_text(start):
        line = start.decode(errors="replace").strip().partition("\n")[0][:60]
        return f"a text, which begins with {line!r}; {_READABLE}"
    return f"damaged, or no file of weights: it begins with {start[:8]!r}; {_READABLE}"


def _is_text(start: bytes) -> bool:
    return not re.search(rb"[\x00-\x08\x0e-\x1f\x7f-\xff]", start)


def _kind_of_zip(path: pathlib.Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise SetupError(
            f"{path} is damaged: it is cut off, as a download is that broke off ({error})"
        ) from error
    if any(re.fullmatch(r"[^/]+/constants\.pkl", name) for name in names):
        raise SetupError(
            f"{path} is a TorchScript archive, a program with its weights: load it by "
            "torch.jit.load where you trust it, and save its state_dict()"
        )
    if sum(bool(re.fullmatch(r"[^/]+/data\.pkl", name)) for name in names) == 1:
        return PYTORCH_ZIP
    if names and all(name.endswith(".npy") for name in names):
        raise SetupError(
            f"{path} is an archive of numpy arrays: pass dict(numpy.load(FILE)) to "
            "focalnet_jax.convert.from_torch, or save it as safetensors"
        )
    shown = f" ({names[0]} and so on)" if names else ""
    raise SetupError(f"{path} is a zip {_ARCHIVE}{shown}")


def _is_index(path: pathlib.Path) -> bool:
    try:
        return "weight_map" in json.loads(path.read_bytes())
    except (ValueError, TypeError, RecursionError):
        return path.name.endswith(".index.json")
