"""Writes a page that runs a model in the browser, on the images that one gives it.

    python -m focalnet_jax.demo --weights=runs/digits page --example=seven.png
    python -m focalnet_jax.demo --weights=hf:microsoft/focalnet-tiny page

DIR becomes a directory. Open DIR/index.html in a browser, or put DIR on a server. The
page shows the most probable classes, and the gates and modulators inside. It makes no
connections: no image leaves the machine.

The model runs in ONNX Runtime Web, which is downloaded from registry.npmjs.org once.
"""

import argparse
import os
import pathlib

from focalnet_jax import command_line
from focalnet_jax.convert.model_arguments import (
    add_reading_arguments,
    add_source,
    model_options,
    reading,
    spell,
)
from focalnet_jax.demo.page import FILES, PAGE, check_can_show, write_page
from focalnet_jax.demo.runtime import VERSION, find_runtime
from focalnet_jax.errors import SetupError
from focalnet_jax.export.onnx_graph import DTYPES
from focalnet_jax.paths import check_may_write, local_path, writing
from focalnet_jax.pretrained import load_model


def main(argv: list[str] | None = None) -> None:
    """Runs the command line.

    Raises:
      SetupError: something is wrong, and nothing was written at DIR.
    """
    args = parse(argv)
    if not args.directory:
        raise SetupError("DIR is empty: it is the directory that is written")
    directory = local_path(args.directory)
    check_may_write(directory, overwrite=args.overwrite, files=FILES)
    examples = _read_examples(args.example)
    command_line.find_devices()
    net = load_model(args.weights, **vars(reading(args)), **model_options(args.set))
    check_can_show(net)
    runtime = find_runtime(args.runtime)
    if runtime.version != VERSION:
        print(f"note: ONNX Runtime Web {runtime.version} is not {VERSION}, the tried one")
    with writing(directory):
        write_page(
            directory,
            net,
            runtime=runtime,
            dtype=args.dtype,
            title=args.title or _title(args.weights),
            examples=examples,
            overwrite=args.overwrite,
        )
    size = sum(file.stat().st_size for file in directory.rglob("*.*"))
    print(f"wrote {directory}: {size / 1e6:.1f} MB\nopen {directory / PAGE} in a browser")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = command_line.parser("python -m focalnet_jax.demo", __doc__)
    add = parser.add_argument
    add("directory", metavar="DIR")
    add_source(parser, required=True)
    add(
        "--dtype",
        choices=DTYPES,
        default=DTYPES[0],
        help="in which parameters are stored; float16 makes the page smaller",
    )
    add("--title", metavar="TEXT", help="of the page; by default the end of SOURCE")
    add(
        "--example",
        action="append",
        default=[],
        metavar="IMAGE",
        help="an image that the page offers; repeatable",
    )
    add(
        "--runtime",
        metavar="FILE",
        help="the archive of ONNX Runtime Web, as `npm pack onnxruntime-web` writes it, "
        "or its unpacked directory; by default it is downloaded",
    )
    add("--overwrite", action="store_true", help="replace DIR")
    add_reading_arguments(parser)
    return parser.parse_args(argv)


def _title(source: str) -> str:
    """The last part of a path or a name, such as `digits` of `runs/digits`."""
    path = pathlib.PurePath(source)
    return (path.stem if os.path.isfile(source) else path.name) or "FocalNet"


def _read_examples(paths: list[str]) -> dict[str, bytes]:
    examples = {}
    for path in map(pathlib.Path, paths):
        if path.name in examples:
            raise SetupError(f"two --example have the name {path.name}")
        try:
            examples[path.name] = path.read_bytes()
        except OSError as error:
            raise SetupError(
                f"--example={path} can't be read: {error.strerror}"
            ) from error
    return examples


if __name__ == "__main__":
    command_line.run(main, spell=spell)
