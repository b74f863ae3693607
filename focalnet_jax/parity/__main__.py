"""Converts PyTorch weights and compares both frameworks layer by layer.

    python -m focalnet_jax.parity --torch=focalnet_tiny_srf.pth
    python -m focalnet_jax.parity --torch=hf:microsoft/focalnet-tiny --golden
    python -m focalnet_jax.parity --torch=FILE --images=DIR --report=parity.html

The PyTorch side is timm's FocalNet for timm's weights, else transformers'. Both have
the same options, so a wrong one that leaves no trace in weights shows in neither:
--golden compares with logits that the released weights are known to give.

Exit status: 0 if both agree, 1 if not or if something is missing.
"""

import argparse
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from focalnet_jax.convert import to_torch
from focalnet_jax.convert.__main__ import (
    add_model_arguments,
    parse_options,
    positive,
    print_reading,
)
from focalnet_jax.convert.fit import Changes, fit
from focalnet_jax.convert.names import Source
from focalnet_jax.convert.reading import read_model
from focalnet_jax.data import BadRecordError, Preprocessing
from focalnet_jax.errors import SetupError
from focalnet_jax.models import FocalNet
from focalnet_jax.parity import golden
from focalnet_jax.parity.compare import TOLERANCES, Comparison, Verdict, table


def main(argv: list[str] | None = None) -> bool:
    """Runs the command line; returns whether both sides agree.

    Raises:
      SetupError: something that the user can mend.
    """
    args = parse(argv)
    write_report = _import_report() if args.report else None
    jax.config.update("jax_enable_x64", args.precision == "float64")
    jax.config.update("jax_default_matmul_precision", "highest")
    types = dict(dtype=args.precision, param_dtype=args.precision)
    reading = read_model(
        args.torch,
        name=args.model,
        options=parse_options(args.set) | types,
        image_size=args.image_size,
        wrapper=args.wrapper,
        prefix=args.prefix,
        ignore=args.ignore,
    )
    print_reading(reading)
    model, source = reading.model, reading.source
    if not isinstance(model, FocalNet):
        raise SetupError("a backbone has no logits to compare")
    fitted = fit(source, model, Changes())
    for note in fitted.notes + fitted.dtype_notes:
        print(f"note: {note}")

    if args.golden:
        return check_golden(args, reading.description.name, model, fitted.params)

    is_timm = source.dialect is not None and source.dialect.name == "timm"
    kind = args.against or ("timm" if is_timm else "transformers")
    images = read_images(args, reading.description.preprocessing, model)
    verdict = compare_layers(
        model,
        fitted.params,
        kind,
        images.astype(args.precision),
        source=source if source.dialect else None,
        tolerance=TOLERANCES[args.precision]
        if args.tolerance is None
        else args.tolerance,
        batch_size=args.batch_size,
    )
    setting = (
        f"jax {jax.__version__} on {jax.devices()[0].device_kind} against {kind}, "
        f"{args.precision}, {len(images)} images of {images.shape[1]} x "
        f"{images.shape[2]} pixels"
    )
    print(f"\n{setting}\n")
    print(table(verdict.differences))
    print(f"\n{verdict}")
    options = ["normalize_modulator", "use_postln"]
    options += ["stem_padding"] * model.encoder.use_conv_embed
    given = ", ".join(f"{name}={getattr(model.encoder, name)}" for name in options)
    print(
        f"(both with {given}: whether the weights are meant so, only --golden can tell)"
    )
    if args.report:
        write_report(
            pathlib.Path(args.report),
            verdict,
            title=f"{source.origin}: {reading.description.name}",
            setting=setting,
        )
        print(f"wrote {args.report}")
    return verdict.passes


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m focalnet_jax.parity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--torch",
        metavar="FILE",
        required=True,
        help="weights; or anything that python -m focalnet_jax.convert reads",
    )
    add("--images", metavar="DIR", help="of images; by default four of random numbers")
    add(
        "--golden",
        action="store_true",
        help=f"compare with the first three logits for COCO's {golden.IMAGE}, looked for "
        f"in --images, else downloaded; known for {', '.join(golden.LOGITS)}",
    )
    add("--report", metavar="FILE.html", help="write a page with a picture")
    add("--precision", choices=list(TOLERANCES), default="float32")
    add(
        "--tolerance",
        type=float,
        help=f"on the layers' relative errors; by default {TOLERANCES}",
    )
    add("--against", choices=["timm", "transformers"], help="the PyTorch side")
    add("--batch-size", type=positive, default=8, metavar="N")
    add_model_arguments(parser)
    args = parser.parse_args(argv)
    if args.report and not args.report.endswith((".html", ".htm")):
        parser.error(f"--report={args.report}: it is an HTML page, FILE.html")
    if args.golden and args.report:
        parser.error("--golden compares three numbers: it has no --report")
    return args


def read_images(
    args: argparse.Namespace, preprocessing: Preprocessing, model: FocalNet
) -> np.ndarray:
    """Images `[n, h, w, c]` from `--images`, or random ones of the model's size."""
    if args.images is None:
        side = preprocessing.image_size
        shape = (4, side, side, model.encoder.in_channels)
        return np.random.default_rng(0).normal(size=shape).astype(np.float32)
    if model.encoder.in_channels != 3:
        raise SetupError(
            f"the model takes {model.encoder.in_channels} channels, images have 3"
        )
    directory = pathlib.Path(args.images)
    if not directory.is_dir():
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
        except (OSError, BadRecordError) as error:
            raise SetupError(f"{path} is no readable image: {error}") from error
    return np.stack(images)


def _import_report():
    try:
        from focalnet_jax.parity.report import write_report
    except ImportError as error:
        raise SetupError(f"{error}: pip install matplotlib") from error
    return write_report


def compare_layers(
    model: FocalNet,
    params: Any,
    kind: str,
    images: np.ndarray,
    *,
    tolerance: float,
    batch_size: int = 8,
    source: Source | None = None,
) -> Verdict:
    """Runs both frameworks on the images and compares what each layer returns.

    Args:
      model, params: ours.
      kind: of the peer.
      images: `[n, h, w, c]`, of the precision to compare in.
      tolerance: on the relative error of each layer.
      batch_size: images at a time.
      source: what `params` were converted from, for the peer to have it as it is; None
        gives it `params`, converted.
    """
    try:
        import torch

        from focalnet_jax.parity import peers
    except ImportError as error:
        raise SetupError(f"{error}: pip install '.[parity]'") from error
    peer = peers.build_peer(kind, model)
    if images.dtype == np.float64:
        peer.double()
    peers.load_peer(
        peer,
        to_torch(params, model, dialect=kind)
        if source is None
        else peers.own_state_dict(
            peer, kind, source, use_postln=model.encoder.use_postln
        ),
    )
    if kind == "transformers":  # pads sizes that don't divide, where others floor
        model = model.clone(encoder=model.encoder.clone(pad_to_patch=True))

    @jax.jit
    def apply(params, images):
        logits, outputs = model.apply({"params": params}, images)
        return outputs | {"logits": logits}

    comparison = Comparison(tolerance)
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        with torch.no_grad():
            theirs = {k: v.numpy() for k, v in peers.run_peer(peer, kind, batch).items()}
        ours = apply(params, jnp.asarray(batch))
        comparison.add(jax.device_get({name: ours[name] for name in theirs}), theirs)
        if len(images) > batch_size:
            print(f"compared {start + len(batch):,} of {len(images):,} images")
    return comparison.verdict()


def check_golden(
    args: argparse.Namespace, name: str, model: FocalNet, params: Any
) -> bool:
    """Compares the first three logits of one photograph with the known ones."""
    expected = golden.golden_logits(name)
    if model.num_classes != golden.NUM_CLASSES:
        raise SetupError(
            f"the head is not that of ImageNet-1K: it has {model.num_classes:,} classes"
        )
    image = golden.golden_image(args.images and pathlib.Path(args.images))
    images = golden.PREPROCESSING(image)[None].astype(args.precision)
    logits, _ = jax.jit(model.apply)({"params": params}, jnp.asarray(images))
    given = np.asarray(logits[0, :3])
    error = np.abs(given - expected).max()
    passes = bool(error <= golden.TOLERANCE)
    print(f"\ngolden logits of {name} for {image.name}, class {int(logits[0].argmax())}")
    print(f"expected  {np.array2string(expected, precision=4)}")
    print(f"given     {np.array2string(given, precision=4)}")
    print(
        f"\n{'PASS' if passes else 'FAIL'}: differ by {error:.1e} (tolerance "
        f"{golden.TOLERANCE:.0e})"
    )
    return passes


if __name__ == "__main__":
    try:
        sys.exit(0 if main() else 1)
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except (SetupError, OSError) as error:
        sys.exit(f"error: {error}")
