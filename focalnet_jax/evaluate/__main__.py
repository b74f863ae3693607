"""Measures models on the evaluation sets of ImageNet, beside what is published of them.

    python -m focalnet_jax.evaluate --weights=hf:microsoft/focalnet-tiny
    python -m focalnet_jax.evaluate --weights=runs/base --data=imagenet_a
    python -m focalnet_jax.evaluate --weights=a.pth --weights=b.pth --top5 \\
        --data=DATA/imagenet-a --data=imagenet_v2=DATA/v2

--weights are those of a classifier for the classes of ImageNet-1K. They can be given
several times: each makes a row of the table.

--data is the name of a data set in TFDS, or NAME=DIR, where DIR is the folder that its
authors publish, or DIR alone, if its name says which set it is. By default, all six:

    imagenet2012       the validation images of ImageNet-1K
    imagenet2012_real  the same, with the sets of labels of ReaL
    imagenet_v2        ImageNet-V2, matched frequency
    imagenet_a         ImageNet-A: the answer is sought among its 200 classes
    imagenet_r         ImageNet-R: the answer is sought among its 200 classes
    imagenet_sketch    ImageNet-Sketch

A data set that is not here is named, with how to get it. The exit status is 1 if none is.
All weights are loaded before the first are measured.
"""

import argparse
import sys
from collections.abc import Iterator

from tqdm import tqdm

from focalnet_jax import command_line
from focalnet_jax.convert import model_arguments
from focalnet_jax.convert.model_arguments import (
    add_reading_arguments,
    add_source,
    model_options,
    reading,
)
from focalnet_jax.data import Source
from focalnet_jax.errors import SetupError, arguments_spelt, counted
from focalnet_jax.evaluate.data_sets import (
    DATA_SETS,
    REAL,
    Asked,
    Opened,
    open_data,
    read_data,
)
from focalnet_jax.evaluate.measure import (
    Loading,
    Measured,
    check_classes,
    check_counts_imagenet,
    measure,
)
from focalnet_jax.evaluate.published import published, variant_of
from focalnet_jax.evaluate.table import Result, as_csv, as_json, text_table
from focalnet_jax.pretrained import Pretrained, load_model

_BATCH_SIZE = 64
_LINES = {"json": as_json, "csv": as_csv}


def main(argv: list[str] | None = None) -> bool:
    """Runs the command line; returns whether anything was measured.

    Raises:
      SetupError: weights or data can't be used. What was measured before is printed.
    """
    args = parse(argv)
    opened = _open(args)
    for data in opened:
        for remark in data.remarks:
            print(f"note: {remark}", file=sys.stderr)
    is_any_here = any(data.source for data in opened)
    if not is_any_here:
        _say_what_is_missing(opened)
    command_line.find_devices()
    nets = [_load(weights, opened, args) for weights in args.weights]
    if not is_any_here:
        return False
    lines = _LINES[args.format]() if args.format else None
    results: list[Result] = []
    try:
        for weights, net in zip(args.weights, nets):
            for result in _results_of(net, weights, opened, args):
                results.append(result)
                for line in lines(result) if lines else ():
                    print(line, flush=True)
    finally:
        if results and not lines:
            _print_tables(results, top5=args.top5)
    _say_what_is_missing(opened)
    return True


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = command_line.parser("python -m focalnet_jax.evaluate", __doc__)
    add = parser.add_argument
    add_source(parser, required=True, action="append", more="; repeatable")
    add(
        "--data",
        action="append",
        default=[],
        metavar="NAME|NAME=DIR|DIR",
        help="a data set; repeatable; by default all",
    )
    add("--data-dir", metavar="DIR", help="where data sets of TFDS lie")
    add("--real", metavar="FILE", help="real.json, for ReaL in a folder")
    add("--top5", action="store_true", help="print a table of top-5, too")
    add(
        "--batch-size",
        type=command_line.positive,
        default=_BATCH_SIZE,
        metavar="N",
        help=f"how many images are computed at a time; by default {_BATCH_SIZE}",
    )
    add(
        "--workers",
        type=command_line.whole,
        default=0,
        metavar="N",
        help="processes that decode images; by default 0, for two threads",
    )
    add(
        "--max-bad-records",
        type=command_line.whole,
        default=0,
        metavar="N",
        help="how many damaged images may be left out; by default 0",
    )
    command_line.add_formats(
        parser,
        json="print an object in a line for each model and data set",
        csv="print lines of CSV, and a first line of names",
    )
    add_reading_arguments(parser)
    return parser.parse_args(argv)


def spell(name: str) -> str:
    """How this command calls what an error names."""
    if name in ("data", "data_dir", "max_bad_records", "workers", "batch_size"):
        return command_line.option(name)
    return model_arguments.spell(name)


def _open(args: argparse.Namespace) -> list[Opened]:
    asked = [read_data(text) for text in args.data] or [*map(Asked, DATA_SETS)]
    names = [each.name for each in asked]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SetupError(f"--data has {twice[0]} twice: a table has one column of it")
    if args.real is not None and not any(e.name == REAL and e.folder for e in asked):
        raise SetupError(
            f"--real={args.real} is for ReaL in a folder: give --data={REAL}=DIR, too"
        )
    # `open_source` calls the data set and its parts by other names.
    with arguments_spelt(
        lambda name: command_line.option("data_dir" if name == "data_dir" else "data")
    ):
        return [_open_one(each, args) for each in asked]


def _open_one(asked: Asked, args: argparse.Namespace) -> Opened:
    """Opens a data set. One that nobody has named may be of no use."""
    try:
        return open_data(asked, data_dir=args.data_dir, real=args.real)
    except SetupError as error:
        if args.data:
            raise
        return Opened(asked.name, None, f"can't be used: {error.marked}")


def _load(weights: str, opened: list[Opened], args: argparse.Namespace) -> Pretrained:
    """Loads a model, and checks that its classes are those of the data sets."""
    net = load_model(weights, **vars(reading(args)), **model_options(args.set))
    try:
        check_counts_imagenet(net)
        for data in opened:
            if data.source is not None:
                check_classes(net, data.source)
    except SetupError as error:
        raise SetupError(f"--weights={weights}: {error.marked}") from error
    return net


def _results_of(
    net: Pretrained, weights: str, opened: list[Opened], args: argparse.Namespace
) -> Iterator[Result]:
    """Yields the results of a model, one after the other."""
    size = net.preprocessing.image_size
    variant = variant_of(net.model)
    for data in opened:
        measured = None
        if data.source is not None:
            measured = _measure(net, weights, data.name, data.source, args)
        yield Result(
            weights=weights,
            variant=variant,
            image_size=size,
            data=data.name,
            measured=measured,
            published=published(variant, data.name, image_size=size),
        )


def _measure(
    net: Pretrained, weights: str, name: str, source: Source, args: argparse.Namespace
) -> Measured:
    loading = Loading(args.batch_size, args.workers, args.max_bad_records)
    title = f"{weights} on {DATA_SETS[name].title}"
    total = len(source)
    with tqdm(total=total, desc=title, unit="image", leave=False, disable=None) as bar:

        def advance(images: int) -> None:
            bar.update(min(images, total - bar.n))

        measured = measure(net, source, loading, before_batch=advance)
    damaged = f", {measured.damaged:,} damaged" if measured.damaged else ""
    print(
        f"{title}: top-1 {measured.top1:.2%}, top-5 {measured.top5:.2%}, "
        f"{counted(measured.images, 'image')}{damaged}",
        file=sys.stderr,
    )
    return measured


def _print_tables(results: list[Result], *, top5: bool) -> None:
    for metric in ("top1", "top5") if top5 else ("top1",):
        print(text_table(results, metric=metric), end="\n\n")


def _say_what_is_missing(opened: list[Opened]) -> None:
    for data in opened:
        if data.source is None:
            title = DATA_SETS[data.name].title
            how = SetupError(data.how).spelt(spell, command_line.assigned)
            print(f"{title} {how}", file=sys.stderr)


if __name__ == "__main__":
    command_line.leave_out_logs()
    command_line.run(main, spell=spell)
