"""The files of a page that runs a model in the browser.

A page that is opened as a file may load scripts, and no other files. So whatever is not
text lies in scripts, as base64.
"""

import base64
import importlib.resources
import io
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import PIL.Image

from focalnet_jax.convert.weights_and_model import check_image_size
from focalnet_jax.demo.runtime import Runtime
from focalnet_jax.errors import SetupError, counted, first_line
from focalnet_jax.export import export_onnx
from focalnet_jax.image_size import height_and_width
from focalnet_jax.models import count_params
from focalnet_jax.pages import SIGNED, UNSIGNED, colour_table
from focalnet_jax.paths import check_may_write, local_path, written_aside
from focalnet_jax.pretrained import Pretrained
from focalnet_jax.visualize import check_can_look, stage_strides

PAGE = "index.html"
# Files that are the same for all models, in `site/`.
SITE = (
    PAGE,
    "demo.css",
    "demo.js",
    "load.js",
    "prepare.js",
    "worker.js",
    "onnxruntime-licence.txt",
)
ABOUT, PARTS = "about.js", "parts"

_PART = 3 * 2**22  # bytes

# All that is in the directory, as shell-style patterns. No file has 1,000 parts.
FILES = (
    *SITE,
    ABOUT,
    *(
        f"{PARTS}/{name}{'[0-9]' * digits}.js"
        for name in ("script", "wasm", "model")
        for digits in (1, 2, 3)
    ),
)

# Formats of images that browsers read, by the names that PIL has for them.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

# Browsers have an array of at most 2 GiB, and so have the files of graphs.
_LARGEST_MODEL = 2**31 - 2**24


def write_page(
    directory: str | os.PathLike,
    net: Pretrained,
    *,
    runtime: Runtime,
    dtype: str = "float32",
    title: str = "FocalNet",
    examples: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes the page, whole or not at all.

        net = load_model("runs/digits")
        write_page("page", net, runtime=find_runtime())

    Args:
      directory: of the page.
      net: from `load_model`: a classifier of images.
      runtime: from `find_runtime`.
      dtype: in which parameters are stored, as for `export_onnx`.
      title: of the page.
      examples: files of images that the page offers, by their names.
      overwrite: whether it may replace another page.

    Raises:
      OSError: the directory can't be written to.
      SetupError: the model can't be shown so, see `check_can_show`; an example is no
        image that browsers read; or there is something at `directory` that is not to be
        replaced.
    """
    directory = local_path(directory)
    check_may_write(directory, overwrite=overwrite, files=FILES)
    check_can_show(net)
    shown = [_example(name, data) for name, data in (examples or {}).items()]
    blocks = [f"stage{s}/block{d - 1}" for s, d in enumerate(net.model.encoder.depths)]
    outputs = [f"{name}/{kind}" for name in blocks for kind in ("gates", "modulator")]
    graph = export_onnx(net.model, net.params, dtype=dtype, outputs=outputs)
    contents = {
        "script": runtime.script,
        "wasm": runtime.wasm,
        "model": graph.SerializeToString(),
    }
    about = {
        "title": title,
        "text": _text(net, dtype),
        "runtime": f"ONNX Runtime Web {runtime.version}",
        "preprocessing": _preprocessing(net),
        "classes": net.classes,
        "blocks": [
            {"name": name, "stride": stride}
            for name, stride in zip(blocks, stage_strides(net.model))
        ],
        "colours": {"signed": colour_table(SIGNED), "unsigned": colour_table(UNSIGNED)},
        "examples": shown,
    }
    with written_aside(directory) as aside:
        (aside / PARTS).mkdir(parents=True)
        about["files"] = {
            name: {"size": len(data), "parts": list(_write_parts(aside, name, data))}
            for name, data in contents.items()
        }
        text = f"const about = {json.dumps(about, allow_nan=False)};\n"
        (aside / ABOUT).write_text(text, encoding="utf-8")
        site = importlib.resources.files("focalnet_jax.demo").joinpath("site")
        for name in SITE:
            (aside / name).write_bytes(site.joinpath(name).read_bytes())


def check_can_show(net: Pretrained) -> None:
    """Checks that a page can run a model.

    Raises:
      SetupError: it has no head, is not for images of one or three channels, has another
        operator, is too large, or takes only larger images than it is given.
    """
    net.check_predicts()
    encoder = net.model.encoder
    check_can_look(net.model)
    if not encoder.has_focal_modulation:
        raise SetupError(
            "a page runs models with focal modulation itself, and the operator of this "
            f"one is {encoder.modulation}"
        )
    if encoder.in_channels not in (1, 3):
        raise SetupError(
            f"the model takes {encoder.in_channels} channels, and images on a page have "
            "3 for colours or 1 for shades of grey"
        )
    check_image_size(net.model, net.preprocessing.image_size, "the model")
    if 4 * count_params(net.model) > _LARGEST_MODEL:
        raise SetupError(
            f"the model has {count_params(net.model):,} parameters, and a browser holds "
            f"{_LARGEST_MODEL // 4:,} in one file"
        )


def _text(net: Pretrained, dtype: str) -> str:
    height, width = height_and_width(net.preprocessing.image_size)
    kind = "colour" if net.model.encoder.in_channels == 3 else "grey"
    return (
        f"{counted(net.model.num_classes, 'class', 'classes')}, "
        f"{count_params(net.model):,} parameters in {dtype}, {kind} images of {height} x "
        f"{width} pixels."
    )


def _preprocessing(net: Pretrained) -> dict[str, Any]:
    # Defaults that a description leaves out count as well.
    return {"squash": False, "floor_offsets": False} | net.preprocessing.to_json()


def _example(name: str, data: bytes) -> dict[str, str]:
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            image.load()
            kind = image.format
    except Exception as error:  # What PIL says of a damaged file has no common class.
        raise SetupError(f"{name} can't be read: {first_line(error)}") from error
    if kind not in _FORMATS:
        raise SetupError(
            f"{name} is a {kind}, which not all browsers read: they read "
            f"{', '.join(_FORMATS)}"
        )
    return {
        "name": name,
        "type": PIL.Image.MIME[kind],
        "data": base64.b64encode(data).decode(),
    }


def _write_parts(directory: pathlib.Path, name: str, data: bytes) -> Iterator[str]:
    """Writes bytes as scripts; yields the path of each, from the page."""
    for number, start in enumerate(range(0, len(data), _PART)):
        path = f"{PARTS}/{name}{number}.js"
        text = base64.b64encode(data[start : start + _PART]).decode()
        (directory / path).write_text(f'part("{text}");\n', encoding="utf-8")
        yield path
