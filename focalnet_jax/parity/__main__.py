"""Converts PyTorch weights and compares both frameworks layer by layer.

    python -m focalnet_jax.parity --torch=focalnet_tiny_srf.pth
    python -m focalnet_jax.parity --torch=hf:microsoft/focalnet-tiny --golden
    python -m focalnet_jax.parity --torch=FILE --images=DIR --report=parity.html

The PyTorch side is timm's FocalNet for weights with timm's names, and transformers' for
all others. Of a segmenter it has the heads of mmsegmentation, where that can be imported,
else those of transformers.

Both sides get the same options. So the comparison cannot show that an option is wrong if
the option leaves no trace in the weights. --golden can, because it compares with logits
that the released weights are known to give.

The exit status is 0 if both sides agree. It is 1 if they don't, or if something is
missing.
"""

import argparse
import dataclasses
import math
import pathlib
from typing import Any

import jax
import numpy as np

from focalnet_jax import command_line
from focalnet_jax.convert.fit import FittedParams, fit_to_model, named_variables
from focalnet_jax.convert.model_arguments import (
    add_reading_arguments,
    add_source,
    model_options,
    print_notes,
    read_and_print,
    reading,
    spell,
)
from focalnet_jax.convert.names import MatchedWeights
from focalnet_jax.convert.weights_and_model import WeightsAndModel
from focalnet_jax.errors import SetupError, counted
from focalnet_jax.heads import Segmenter
from focalnet_jax.image_size import ImageSize, height_and_width
from focalnet_jax.models import FocalNet
from focalnet_jax.models.size import Model
from focalnet_jax.parity import golden
from focalnet_jax.parity.compare import TOLERANCES, table
from focalnet_jax.parity.layers import compare_layers, compare_segmenters
from focalnet_jax.paths import local_path
from focalnet_jax.preprocessing import Preprocessing

_BATCH_SIZE = 8
# Whose nets classifiers are compared with, and whose heads segmenters.
_NETS, _HEADS = ("timm", "transformers"), ("mmsegmentation", "transformers")


def main(argv: list[str] | None = None) -> bool:
    """Runs the command line; returns whether both sides agree.

    Raises:
      SetupError: something is missing or wrong that the user can correct.
    """
    args = parse(argv)
    if args.report:
        _import_report()  # A missing library is better reported before the work.
    jax.config.update("jax_enable_x64", args.precision == "float64")
    jax.config.update("jax_default_matmul_precision", "highest")
    options = model_options(args.set)
    dtypes = dict(dtype=args.precision, param_dtype=args.precision)
    if given := dtypes.keys() & options.keys():
        raise SetupError(f"--set={min(given)}: here --precision says the dtype")
    found = read_and_print(args.torch, args, options | dtypes)
    model = found.model
    if not isinstance(model, FocalNet | Segmenter):
        raise SetupError(
            "only classifiers and segmenters have logits to compare: --head=reset "
            "--set=num_classes=0 compares the encoder of other models"
        )
    sides = _HEADS if isinstance(model, Segmenter) else _NETS
    if args.against and args.against not in sides:
        raise SetupError(
            f"--against={args.against} has no net for a {type(model).__name__}: give "
            f"{' or '.join(sides)}"
        )
    fitted = fit_to_model(found.weights, found.model, reading(args))
    print_notes(fitted.notes + fitted.dtype_notes)
    if not args.golden:
        return _compare_and_print(args, model, found, fitted)
    if isinstance(model, Segmenter):
        raise SetupError("--golden is for classifiers, and this is a segmenter")
    if args.image_size:
        print("note: --golden has an image of 224 pixels, whatever --image-size says")
    return golden.check_golden(
        found.description.name,
        model,
        fitted.params,
        dtype=args.precision,
        directory=args.images,
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = command_line.parser("python -m focalnet_jax.parity", __doc__)
    add = parser.add_argument
    add_source(parser, "--torch", metavar="FILE", required=True)
    add(
        "--images",
        type=_path,
        metavar="DIR",
        help="a directory of images; by default four images of random numbers",
    )
    add(
        "--golden",
        action="store_true",
        help=f"compare the first three logits for COCO's {golden.IMAGE}, which is taken "
        "from --images or downloaded; they are known for " + ", ".join(golden.LOGITS),
    )
    add(
        "--report",
        type=_path,
        metavar="FILE.html",
        help="write an HTML page with a picture",
    )
    add("--precision", choices=list(TOLERANCES), default="float32")
    add(
        "--tolerance",
        type=_tolerance,
        help=f"the greatest relative error of a layer; by default {TOLERANCES}",
    )
    add(
        "--against",
        choices=list(dict.fromkeys(_NETS + _HEADS)),
        help="the PyTorch side; for a segmenter, whose heads it has",
    )
    add(
        "--batch-size",
        type=command_line.positive,
        metavar="N",
        help=f"number of images at a time; by default {_BATCH_SIZE}",
    )
    add_reading_arguments(parser)
    args = parser.parse_args(argv)
    if args.report and args.report.suffix not in (".html", ".htm"):
        parser.error(f"--report={args.report}: it is an HTML page, FILE.html")
    unused = {"report", "tolerance", "against", "batch_size"}
    for name in sorted(unused):
        if args.golden and getattr(args, name) is not None:
            option = command_line.option(name)
            parser.error(f"--golden compares three known numbers: it has no {option}")
    return args


def _path(text: str) -> pathlib.Path:
    """Reads a path on a disk; a `type` for argparse."""
    try:
        return local_path(text)
    except SetupError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _tolerance(text: str) -> float:
    """Reads a number from 0; a `type` for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return number


def _compare_and_print(
    args: argparse.Namespace,
    model: FocalNet | Segmenter,
    found: WeightsAndModel,
    fitted: FittedParams,
) -> bool:
    weights = _taken(found.weights, fitted)
    dialect = weights.dialect and weights.dialect.name
    if args.images is None:
        images = random_images(found.description.preprocessing.image_size, model)
    else:
        images = read_images(args.images, found.description.preprocessing, model)
    tolerance = args.tolerance
    if tolerance is None:
        tolerance = TOLERANCES[args.precision]
    options: dict[str, Any] = dict(
        # With changes, the peer can't take the tensors as they are.
        weights=weights if dialect and not _are_changed(args) else None,
        tolerance=tolerance,
        batch_size=args.batch_size or _BATCH_SIZE,
    )
    images = images.astype(args.precision)
    if isinstance(model, Segmenter):
        heads = args.against or _usual_heads()
        verdict = compare_segmenters(model, fitted.variables, heads, images, **options)
        peer = f"transformers' encoder with the heads of {heads}"
    else:
        peer = args.against or ("timm" if dialect == "timm" else "transformers")
        verdict = compare_layers(model, fitted.params, peer, images, **options)
    setting = (
        f"jax {jax.__version__} on {jax.devices()[0].device_kind} against {peer}, "
        f"{args.precision}, {len(images)} images of {images.shape[1]} x "
        f"{images.shape[2]} pixels"
    )
    print(f"\n{setting}\n")
    print(table(verdict.differences))
    print(f"\n{verdict}")
    unseen = ["normalize_modulator", "use_postln"]
    unseen += ["stem_padding"] * model.encoder.use_conv_embed
    given = ", ".join(f"{name}={getattr(model.encoder, name)}" for name in unseen)
    print(f"(both have {given}; only --golden can tell whether that is right)")
    if args.report:
        title = f"{weights.origin}: {found.description.name}"
        _import_report()(args.report, verdict, title=title, setting=setting)
        print(f"wrote {args.report}")
    return verdict.passes


def _usual_heads() -> str:
    """mmsegmentation's heads where they can be imported; else it says why they aren't."""
    try:
        from focalnet_jax.parity.segmenters import usual_heads
    except ImportError as error:
        raise SetupError(f"{error}: pip install 'focalnet_jax[parity]'") from error
    heads, reason = usual_heads()
    if reason:
        print(f"note: mmsegmentation's heads are left, because {reason}")
    return heads


def _taken(weights: MatchedWeights, fitted: FittedParams) -> MatchedWeights:
    """The weights without those that the model has no place for, such as a head."""
    taken = named_variables(fitted.variables).keys() & weights.parameters.keys()
    parameters = {path: p for path, p in weights.parameters.items() if path in taken}
    return dataclasses.replace(weights, parameters=parameters)


def _are_changed(args: argparse.Namespace) -> bool:
    return bool(args.head or args.resize_kernels or args.add_levels)


def random_images(size: ImageSize, model: Model) -> np.ndarray:
    """Four images of random numbers, `float32 [4, height, width, channels]`."""
    shape = (4, *height_and_width(size), model.encoder.in_channels)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def read_images(
    directory: pathlib.Path, preprocessing: Preprocessing, model: Model
) -> np.ndarray:
    """Reads all images of a directory, in the order of their names.

    Returns:
      `float32 [n, height, width, 3]`.

    Raises:
      SetupError: there are no images or one cannot be read, or the model does not take
        three channels.
    """
    import PIL.Image

    if model.encoder.in_channels != 3:
        raise SetupError(
            f"the model takes {counted(model.encoder.in_channels, 'channel')}, images "
            "have 3"
        )
    if not directory.is_dir():
        if directory.exists():
            raise SetupError(f"{directory} is a file: give a directory of images")
        raise SetupError(f"there is no directory {directory}")
    PIL.Image.init()
    paths = sorted(
        p for p in directory.iterdir() if p.suffix.lower() in PIL.Image.EXTENSION
    )
    if not paths:
        raise SetupError(f"{directory} holds no images")
    images = []
    for path in paths:
        try:
            images.append(preprocessing(path))
        except (OSError, ValueError) as error:
            raise SetupError(f"{path} is no readable image: {error}") from error
    return np.stack(images)


def _import_report():
    try:
        from focalnet_jax.parity.report import write_report
    except ImportError as error:
        raise SetupError(f"{error}: pip install matplotlib") from error
    return write_report


if __name__ == "__main__":
    command_line.run(main, spell=spell)
