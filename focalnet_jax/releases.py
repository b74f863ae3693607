"""Weights that others have published: their names, and how to get them."""

import os
import pathlib
import shutil
import urllib.error
import urllib.request

from tqdm import tqdm

from focalnet_jax.errors import SetupError
from focalnet_jax.written_aside import written_aside

_GITHUB = "https://github.com/microsoft/FocalNet/releases/download/v1.0.0"
_HUGGING_FACE = "https://huggingface.co"
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")

# The files at `_GITHUB`. The other official weights lay in a store that has gone.
RELEASES = (
    "focalnet_tiny_srf",
    "focalnet_tiny_lrf",
    "focalnet_small_srf",
    "focalnet_small_lrf",
    "focalnet_base_srf",
    "focalnet_base_lrf",
    "focalnet_large_lrf_384",
    "focalnet_large_lrf_384_fl4",
    "focalnet_xlarge_lrf_384",
    "focalnet_xlarge_lrf_384_fl4",
)


def is_remote(source: str) -> bool:
    """Whether `fetch` would download it: `hf:OWNER/NAME`, or a release of that name."""
    return source.startswith("hf:") or source.removesuffix(".pth") in RELEASES


def fetch(source: str) -> pathlib.Path:
    """Downloads published weights, once, to `~/.cache/focalnet_jax`.

    Args:
      source: `hf:OWNER/NAME` or `hf:OWNER/NAME@REVISION` for a repository on the Hugging
        Face Hub (`HF_ENDPOINT` and `HF_TOKEN` are heeded), or one of `RELEASES`.

    Raises:
      SetupError: no network, or no such weights.
    """
    cache = cache_directory()
    if not source.startswith("hf:"):
        file = source.removesuffix(".pth") + ".pth"
        return download(f"{_GITHUB}/{file}", cache / "microsoft" / file)

    name, _, revision = source.removeprefix("hf:").partition("@")
    if name.count("/") != 1 or ".." in source:
        raise SetupError(f"{source!r} is not of the form hf:OWNER/NAME")
    revision = revision or "main"
    endpoint = os.environ.get("HF_ENDPOINT", _HUGGING_FACE).rstrip("/")
    for file in _HUB_FILES:
        url = f"{endpoint}/{name}/resolve/{revision}/{file}"
        try:
            return download(url, cache / "hf" / name / revision / file)
        except _NotThereError:
            continue
    raise SetupError(
        f"{endpoint}/{name} has no {' or '.join(_HUB_FILES)} at {revision}, or it is "
        "private and HF_TOKEN doesn't open it"
    )


def cache_directory() -> pathlib.Path:
    """Where downloads are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "focalnet_jax"


class _NotThereError(SetupError):
    """The server knows no such address."""


def download(url: str, path: pathlib.Path) -> pathlib.Path:
    """Downloads aside, then renames; what is there already is not asked for again.

    Raises:
      SetupError: no network, or no answer of the promised length.
    """
    if path.exists():
        return path
    request = urllib.request.Request(url)
    token = os.environ.get("HF_TOKEN")
    if token and "/resolve/" in url:
        # Not sent on to the store that the Hub redirects to.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with (
            urllib.request.urlopen(request, timeout=60) as response,
            written_aside(path) as aside,
        ):
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
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise SetupError(
            f"can't download {url}: {reason}. Where there is no network, fetch the file "
            "elsewhere and give its path"
        ) from error
    return path
