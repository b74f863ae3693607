"""Shows what a FocalNet looks at in an image.

    python -m focalnet_jax.visualize photo.jpg --weights=runs/digits
    python -m focalnet_jax.visualize photo.jpg --weights=hf:microsoft/focalnet-tiny \\
        --output=inside --blocks=all --at=60,120

The command writes a directory with gates.png, modulators.png, kernels.png,
receptive_fields.png, and index.html. On that page one points at the image and sees the
gates and the modulator of the place.
"""

import argparse
import os
import pathlib
import re

from focalnet_jax import command_line
from focalnet_jax.convert.model_arguments import (
    add_reading_arguments,
    add_source,
    model_options,
    reading,
    spell,
)
from focalnet_jax.data import BadRecordError
from focalnet_jax.errors import SetupError, did_you_mean, first_line
from focalnet_jax.paths import (
    check_may_write,
    local_path,
    written_aside,
)
from focalnet_jax.pretrained import Pretrained, load_model
from focalnet_jax.visualize.figures import (
    draw_gates,
    draw_kernels,
    draw_modulators,
    draw_receptive_fields,
)
from focalnet_jax.visualize.hover_page import hover_page, png
from focalnet_jax.visualize.inside import (
    BlockMaps,
    Inside,
    depthwise_kernels,
    look_inside,
    receptive_fields,
)

PAGE = "index.html"
PICTURES = ("gates", "modulators", "receptive_fields", "kernels")
# All that is in the directory.
FILES = (PAGE, *(f"{name}.png" for name in PICTURES))


def main(argv: list[str] | None = None) -> None:
    """Runs the command line.

    Raises:
      SetupError: the image, the weights or the place of the output can't be used, and
        nothing was written.
    """
    args = parse(argv)
    image = pathlib.Path(args.image)
    output = local_path(args.output or f"{image.stem}-inside")
    check_may_write(output, overwrite=args.overwrite, files=FILES)
    if not image.is_file():
        what = (
            "is a directory, and one image is shown" if image.is_dir() else "isn't there"
        )
        raise SetupError(f"{args.image} {what}: give the file of an image")
    command_line.find_devices()
    net = load_model(args.weights, **vars(reading(args)), **model_options(args.set))
    pixels = _read(net, image)
    print("compiling the net and its gradient", flush=True)
    inside, fields = look_inside(net, pixels), receptive_fields(net, pixels, at=args.at)
    blocks = _chosen(inside, args.blocks)
    figures = {
        "gates": draw_gates(inside, blocks),
        "modulators": draw_modulators(inside),
        "receptive_fields": draw_receptive_fields(inside, fields, at=args.at),
    }
    if kernels := depthwise_kernels(net.params):  # Other operators may have none.
        figures["kernels"] = draw_kernels(kernels)
    text = hover_page(
        inside,
        title=os.fsencode(image.name).decode(errors="replace"),
        blocks=blocks,
        figures=figures,
    )
    with written_aside(output) as aside:
        aside.mkdir()
        for name, figure in figures.items():
            (aside / f"{name}.png").write_bytes(png(figure))
        (aside / PAGE).write_text(text, encoding="utf-8")
    for prediction in inside.predictions:
        print(f"{prediction.probability:8.2%}  {prediction.name}")
    pictures = ", ".join(f"{name}.png" for name in figures)
    print(f"wrote {output}: {pictures}\nopen {output / PAGE} to point at the image")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = command_line.parser("python -m focalnet_jax.visualize", __doc__)
    add = parser.add_argument
    add("image", metavar="IMAGE")
    add_source(parser, required=True)
    add("--output", metavar="DIR", help="what is written; by default IMAGE's name-inside")
    add("--overwrite", action="store_true", help="replace what is at --output")
    add(
        "--blocks",
        default="last",
        metavar="BLOCKS",
        help="the blocks of gates and page: 'last' of each stage, which is the default, "
        "'all', or names with commas such as stage2/block0,stage2/block5",
    )
    add(
        "--at",
        type=_pixel,
        metavar="ROW,COLUMN",
        help="the pixel of the image, as the model is given it, whose receptive fields "
        "are drawn; by default the middle",
    )
    add_reading_arguments(parser)
    return parser.parse_args(argv)


def _pixel(text: str) -> tuple[int, int]:
    if not re.fullmatch("[0-9]+,[0-9]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not ROW,COLUMN, such as 60,120")
    row, column = map(int, text.split(","))
    return row, column


def _read(net: Pretrained, path: pathlib.Path) -> bytes:
    """The bytes of an image; raises SetupError if they are none."""
    try:
        image = path.read_bytes()
        net.preprocessing(image)
    except OSError as error:
        raise SetupError(f"{path} can't be read: {error.strerror}") from error
    except BadRecordError as error:
        raise SetupError(f"{path} can't be read: {first_line(error)}") from error
    return image


def _chosen(inside: Inside, blocks: str) -> tuple[BlockMaps, ...]:
    if blocks == "last":
        return inside.last_blocks()
    if blocks == "all":
        return inside.blocks
    known = {block.name: block for block in inside.blocks}
    for name in (names := blocks.split(",")):
        if name not in known:
            raise SetupError(f"--blocks={name} is unknown{did_you_mean(name, known)}")
    return tuple(known[name] for name in dict.fromkeys(names))


if __name__ == "__main__":
    command_line.run(main, spell=spell)
