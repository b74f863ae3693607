"""Weights that others have published: their names, and how they are downloaded."""

import http.client
import os
import pathlib
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Sequence

from etils import epath

from focalnet_jax.errors import SetupError, did_you_mean, first_few, nearest
from focalnet_jax.paths import with_home, written_aside
from focalnet_jax.weights.shards import parse_index

_GITHUB = "https://github.com/microsoft/FocalNet/releases/download/v1.0.0"
_HUGGING_FACE = "https://huggingface.co"
_HUB_NAME = re.compile(r"hf:\w[\w.-]*/\w[\w.-]*(@\w[\w./-]*)?", re.ASCII)
# In this order they are asked for. A checkpoint of several files has an index of them.
HUB_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)

# Where runs lie, unless somebody says otherwise.
_RUNS = "runs"
# The endings of files in which weights usually are.
_LIKELY = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl")

# The files at `_GITHUB`, and the variant of each.
RELEASES = {
    "focalnet_tiny_srf": "focalnet_tiny_srf",
    "focalnet_tiny_lrf": "focalnet_tiny_lrf",
    "focalnet_small_srf": "focalnet_small_srf",
    "focalnet_small_lrf": "focalnet_small_lrf",
    "focalnet_base_srf": "focalnet_base_srf",
    "focalnet_base_lrf": "focalnet_base_lrf",
    "focalnet_large_lrf_384": "focalnet_large_fl3",
    "focalnet_large_lrf_384_fl4": "focalnet_large_fl4",
    "focalnet_xlarge_lrf_384": "focalnet_xlarge_fl3",
    "focalnet_xlarge_lrf_384_fl4": "focalnet_xlarge_fl4",
}


# How the addresses of models on the Hugging Face Hub begin.
_HUB_ADDRESS = re.compile(
    r"(?:(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://|HF:)(?P<name>.+)"
)


def published_name(source: str) -> str:
    """The name of a release, if `source` is its address; else `source` itself."""
    if source.startswith(f"{_GITHUB}/"):
        name = source.removeprefix(f"{_GITHUB}/")
        if is_published(name):
            return name
    return source


def likely_files(directory: epath.Path) -> list[str]:
    """The names of the files in a directory that look as if they held weights."""
    return sorted(p.name for p in directory.iterdir() if p.suffix in _LIKELY)


def name_at(address: str) -> str | None:
    """The name of published weights that an address leads to, if it does."""
    if hub := _HUB_ADDRESS.fullmatch(address):
        return _hub_name(hub["name"])
    stem = _stem(address)
    return stem if "://" in address and stem in RELEASES else None


def _stem(source: str) -> str:
    return source.rstrip("/").rpartition("/")[2].removesuffix(".pth")


def check_is_no_name(source: str) -> None:
    """Raises SetupError if `source` is no path, but names or addresses weights."""
    if is_published(published_name(source)) and not os.path.exists(source):
        raise SetupError(
            f"{source!r} names published weights, and a path is needed: "
            "focalnet_jax.load_model and python -m focalnet_jax.convert take names"
        )
    if "://" in source:
        raise SetupError(unknown_name(source))


def is_published(source: str) -> bool:
    """Whether `source` names weights that `download` gets: a release, or `hf:...`."""
    is_on_hub = source.startswith("hf:") and not source.startswith("hf://")
    return is_on_hub or source.removesuffix(".pth") in RELEASES


def unknown_name(source: str) -> str:
    """The message for a name that is no file, no directory and no release."""
    message = f"no file, directory or release is named {source!r}"
    stem = _stem(source)
    if os.path.islink(source):
        return f"{source} is a link to {os.readlink(source)}, which is not there"
    if name := name_at(source):
        kind = "" if name.startswith("hf:") else "the name of the release, "
        return f"{source} is an address: give {kind}{name!r}"
    if "://" in source:
        return (
            f"{source} is an address, of which nothing is read: download the file and "
            "give its path, or give hf:OWNER/NAME or the name of a release"
        )
    for release, variant in RELEASES.items():
        if source.removesuffix(".pth") == variant:
            return f"{message}; the release of that model is {release!r}"
    if "_iso" in stem or "_huge" in stem:
        return f"{message}; the official isotropic and huge weights are offline"
    if near := _nearest_path(source):
        return f"{message}; did you mean {near!r}?"
    directory = source.rstrip("/").rpartition("/")[0]
    # Whoever gives a run where there are none has probably trained it elsewhere.
    is_file = source.endswith(_LIKELY) or source.startswith((".", "~", f"{_RUNS}/"))
    is_file |= os.path.isdir(source.partition("/")[0])
    if not is_file and source.count("/") == 1 and _HUB_NAME.fullmatch(f"hf:{source}"):
        return f"{message}; for that model on the Hugging Face Hub, give 'hf:{source}'"
    if directory and not os.path.isdir(with_home(directory)):
        return f"{message}, and there is no directory {directory!r}"
    if directory and (entries := _entries(directory)):
        return f"{message}; {directory} holds {first_few(entries)}"
    if "/" in source or "." in source:
        return message
    return message + did_you_mean(source, RELEASES)


def _nearest_path(source: str) -> str | None:
    """What is there and is nearly spelt like a path that isn't.

    It may be misspelt in any of its parts, and lack the directory in which runs lie.
    """
    directory, _, name = source.rstrip("/").rpartition("/")
    if not directory and name in _entries(_RUNS):
        return f"{_RUNS}/{name}"
    others = () if directory else RELEASES
    near = nearest(name, [*_entries(directory or "."), *others])
    if near in others:
        return None
    if near:
        return f"{directory}/{near}" if directory else near
    above = directory and _nearest_path(directory)
    found = f"{above}/{name}"
    return found if above and os.path.exists(with_home(found)) else None


def _entries(directory: str) -> list[str]:
    """The names of what may hold weights in a directory: of directories and files."""
    try:
        place = pathlib.Path(with_home(directory))
        return sorted(
            path.name
            for path in place.iterdir()
            if not path.name.startswith(".") and (path.is_dir() or path.suffix in _LIKELY)
        )
    except (OSError, ValueError, SetupError):
        return []


def _hub_name(address: str) -> str:
    """`hf:OWNER/NAME@REVISION` for what an address says after the host."""
    parts = re.match(
        r"/*([^/?]+/[^/?@]+)(?:@([^/?]+)|/(?:tree|blob|resolve)/([^/?]+))?", address
    )
    if not parts:
        return "hf:OWNER/NAME"
    revision = parts[2] or parts[3] or "main"
    return f"hf:{parts[1]}" + (f"@{revision}" if revision != "main" else "")


def download(source: str) -> pathlib.Path:
    """Downloads published weights to `~/.cache/focalnet_jax`, once.

    Args:
      source: one of `RELEASES`, or `hf:OWNER/NAME` or `hf:OWNER/NAME@REVISION` for a
        repository on the Hugging Face Hub. The environment variables `HF_ENDPOINT` and
        `HF_TOKEN` are respected.

    Raises:
      SetupError: there is no network, or there are no such weights.
    """
    if not source.startswith("hf:"):
        file = source.removesuffix(".pth") + ".pth"
        return download_file(f"{_GITHUB}/{file}", cache_directory() / "microsoft" / file)

    url, directory = _on_the_hub(source)
    for file in HUB_FILES:
        try:
            path = _download_from_hub(url, directory, file)
        except _NotThereError:
            continue
        if file.endswith(".index.json"):
            _download_shards(url, path)
        return path
    repository, _, revision = url.partition("/resolve/")
    raise SetupError(
        f"{repository} has no {' or '.join(HUB_FILES[:2])} at {revision}, nor an index "
        "of several files, or it is private and HF_TOKEN doesn't open it"
    )


def download_with(
    source: str, beside: Sequence[str]
) -> tuple[pathlib.Path, tuple[str, ...]]:
    """Downloads published weights, and files beside them that the Hub may have, once.

    Args:
      source: as for `download`.
      beside: names of files, each of which may be missing there.

    Returns:
      The path of the weights, and a note if files beside weights that were downloaded
      earlier cannot be downloaded now.

    Raises:
      SetupError: as `download`, and if a file beside the weights is there but cannot be
        downloaded.
    """
    if not source.startswith("hf:"):
        return download(source), ()
    url, directory = _on_the_hub(source)
    has_weights = any(directory.glob("*.safetensors")) or any(directory.glob("*.bin"))
    missing, notes = [], ()
    for file in beside:
        # An empty file remembers that the Hub has none of this name.
        if (directory / file).exists() or _missing(directory, file).exists():
            continue
        try:
            _download_from_hub(url, directory, file)
        except _NotThereError:
            missing.append(file)
        except SetupError as error:
            if not has_weights:
                raise
            notes = (f"what {', '.join(beside)} may say of {source} is unknown: {error}",)
            break
    path = download(source)
    for file in missing:
        _missing(directory, file).touch()
    return path, notes


def _missing(directory: pathlib.Path, file: str) -> pathlib.Path:
    return directory / f"{file}.missing"


def _on_the_hub(source: str) -> tuple[str, pathlib.Path]:
    """The address before a file's name on the Hub, and its directory in the cache."""
    if not _HUB_NAME.fullmatch(source) or ".." in source:
        raise SetupError(
            f"{source!r} is not of the form hf:OWNER/NAME or hf:OWNER/NAME@REVISION"
        )
    name, _, revision = source.removeprefix("hf:").partition("@")
    revision = revision or "main"
    endpoint = os.environ.get("HF_ENDPOINT", _HUGGING_FACE).rstrip("/")
    url = f"{endpoint}/{name}/resolve/{revision}"
    return url, cache_directory() / "hf" / name / revision


def _download_from_hub(url: str, directory: pathlib.Path, file: str) -> pathlib.Path:
    """Downloads one file of a repository, of which more than one is needed."""
    repository = url.partition("/resolve/")[0]
    instead = (
        f"fetch {' or '.join(HUB_FILES[:2])} and the .json files beside it from "
        f"{repository} elsewhere, into one directory, and give its path"
    )
    return download_file(f"{url}/{file}", directory / file, instead=instead)


def _download_shards(url: str, index: pathlib.Path) -> None:
    """Downloads the files that an index names, to the directory of the index."""
    try:
        weight_map = parse_index(index.read_bytes(), origin=f"{url}/{index.name}")
    except SetupError:
        index.unlink()  # It would stay damaged for good.
        raise
    for file in sorted(set(weight_map.values())):
        _download_from_hub(url, index.parent, file)


def cache_directory() -> pathlib.Path:
    """The directory in which downloads are kept.

    Raises:
      SetupError: there is no home directory, nor another place for them.
    """
    place = os.environ.get("XDG_CACHE_HOME")
    if not place:
        try:
            place = with_home("~/.cache")
        except SetupError as error:
            raise SetupError(
                "there is no home directory to keep downloads in: set XDG_CACHE_HOME to "
                "a directory for them, or download the file and give its path"
            ) from error
    return pathlib.Path(place) / "focalnet_jax"


class _NotThereError(SetupError):
    """The server has nothing at this address."""


def download_file(
    url: str,
    path: pathlib.Path,
    *,
    instead: str = "fetch the file elsewhere and give its path",
) -> pathlib.Path:
    """Downloads one file, whole or not at all, unless it is at `path` already.

    Args:
      url: its address.
      path: where it is written.
      instead: what to do where there is no network.

    Raises:
      SetupError: there is no network, or the answer is not a file of the promised length.
    """
    from tqdm import tqdm  # `import focalnet_jax` does without.

    if path.exists():
        return path
    token = os.environ.get("HF_TOKEN")
    try:
        request = urllib.request.Request(url)
        if token and "/resolve/" in url:
            # The Hub redirects to a store, which must not get the token.
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        with (
            urllib.request.urlopen(request, timeout=60) as response,
            written_aside(path) as aside,
        ):
            if response.headers.get_content_type() == "text/html":
                raise SetupError(f"{url} answers with a web page: is a proxy in between?")
            size = int(response.headers.get("Content-Length") or 0)
            progress = dict(total=size, desc=path.name, disable=None)
            with (
                aside.open("wb") as file,
                tqdm.wrapattr(response, "read", **progress) as reader,
            ):
                shutil.copyfileobj(reader, file)
            received = aside.stat().st_size
            if size and received != size:
                raise SetupError(f"{url} broke off after {received:,} of {size:,} bytes")
    except urllib.error.HTTPError as error:
        kind = _NotThereError if error.code in (401, 403, 404) else SetupError
        raise kind(f"{url} answers {error.code} {error.reason}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise SetupError(
            f"can't download {url}: {reason or type(error).__name__}. Where there is no "
            f"network, {instead}"
        ) from error
    return path
