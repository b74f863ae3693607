"""Predicts the classes of images.

    python -m focalnet_jax.predict photo.jpg --weights=runs/digits
    python -m focalnet_jax.predict photos '*.png' --weights=hf:microsoft/focalnet-tiny
    find . -name '*.jpg' | python -m focalnet_jax.predict - --weights=runs/digits --json

IMAGE is a file, a directory whose images are taken at any depth, a pattern such as
'photos/*.jpg', or - for a list of files on standard input, one a line, or as `find
-print0` writes it.

An image that can't be read is named and skipped, and the exit status is 1.
"""

import argparse
import collections
import concurrent.futures
import glob
import json
import math
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from tqdm import tqdm

from focalnet_jax import command_line
from focalnet_jax.convert.model_arguments import (
    add_reading_arguments,
    add_source,
    model_options,
    reading,
    spell,
)
from focalnet_jax.csv_lines import with_names
from focalnet_jax.data.sources.listing import EXTENSIONS, images_and_directories
from focalnet_jax.errors import SetupError, counted, first_line
from focalnet_jax.output import nobody_reads
from focalnet_jax.paths import did_you_mean_beside
from focalnet_jax.pretrained import Prediction, Pretrained, load_model

_BATCH_SIZE = 32

T = TypeVar("T")


class OfImage(Protocol):
    """What is known of an image.

    Attributes:
      image: its path.
      problem: why it could not be read; None if it could.
    """

    @property
    def image(self) -> str: ...
    @property
    def problem(self) -> str | None: ...


class Result(NamedTuple):
    """What is known of an image: its predictions, or why it could not be read."""

    image: str
    predictions: list[Prediction]
    problem: str | None = None


def main(argv: list[str] | None = None) -> bool:
    """Runs the command line; returns whether all images could be read.

    Raises:
      SetupError: there are no images or no weights, or they can't be used.
    """
    args = parse(argv)
    images = find_images(args.images)
    command_line.find_devices()
    net = load_model(args.weights, **vars(reading(args)), **model_options(args.set))
    net.check_predicts()
    return show(
        classify(net, images, topk=args.topk, batch_size=args.batch_size),
        _WRITERS[args.format](),
        count=len(images),
    )


def show(
    results: Iterable[OfImage],
    write: Callable[[Any], list[str]],
    *,
    count: int,
) -> bool:
    """Prints the results of images, and names those that could not be read.

    Args:
      results: one for each image.
      write: makes lines of a result.
      count: of the images.

    Returns:
      Whether all images could be read.
    """
    skipped = 0
    shown = dict(desc="compiling", unit="image", leave=False, disable=None)
    with tqdm(total=count, **shown) as bar:
        for result in results:
            if result.problem:
                skipped += 1
                bar.write(f"skipped {result.image}: {result.problem}", file=sys.stderr)
            else:
                for line in write(result):
                    bar.write(line, file=sys.stdout)
            bar.set_description("predicting", refresh=False)
            bar.update()
            if nobody_reads():
                break
    if skipped:
        print(f"{counted(skipped, 'image')} could not be read", file=sys.stderr)
    return not skipped


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = command_line.parser("python -m focalnet_jax.predict", __doc__)
    add = parser.add_argument
    add("images", metavar="IMAGE", nargs="+")
    add_source(parser, required=True)
    add(
        "--topk",
        type=command_line.positive,
        default=5,
        metavar="N",
        help="how many classes are shown for each image; by default 5",
    )
    add(
        "--batch-size",
        type=command_line.positive,
        default=_BATCH_SIZE,
        metavar="N",
        help=f"how many images are computed at a time; by default {_BATCH_SIZE}",
    )
    command_line.add_formats(
        parser,
        json="print an object in a line for each image",
        csv="print a line for each class, and a first line of names",
    )
    parser.set_defaults(format="text")
    add_reading_arguments(parser)
    return parser.parse_args(argv)


# --- Which images ------------------------------------------------------------


def find_images(given: Iterable[str]) -> list[str]:
    """The files that command-line arguments name; each argument names one or more.

    Raises:
      SetupError: an argument names none.
    """
    return [path for argument in given for path in _files_of(argument)]


def _files_of(argument: str) -> list[str]:
    if argument == "-":
        return _files_of_list(sys.stdin.buffer.read() if sys.stdin else b"")
    if not argument:
        raise SetupError("an IMAGE is empty: it is a file, a directory or a pattern")
    if os.path.isdir(argument):
        if not (files := _files_below(argument)):
            raise SetupError(f"{argument} holds no images{_ENDINGS}")
        return files
    if os.path.exists(argument):
        return [argument]
    if glob.has_magic(argument):
        files = []
        # A pattern such as * also meets what is no image and holds none.
        for path in sorted(glob.glob(argument, recursive=True)):
            if os.path.isdir(path):
                files += _files_below(path)
            elif path.lower().endswith(EXTENSIONS):
                files.append(path)
        if not files:
            raise SetupError(f"no image is named like {argument}{_ENDINGS}")
        return files
    raise SetupError(f"there is no file {argument}{did_you_mean_beside(argument)}")


def _files_of_list(text: bytes) -> list[str]:
    end = b"\0" if b"\0" in text else b"\n"
    names = [os.fsdecode(name.removesuffix(b"\r")) for name in text.split(end)]
    if not (names := [name for name in names if name]):
        raise SetupError("standard input names no files: it has one in each line")
    return names


_ENDINGS = f" (images end in {', '.join(EXTENSIONS)})"


def _files_below(directory: str) -> list[str]:
    """The images of a directory and of those in it, sorted by directory and name."""
    files, pending, seen = [], [directory], set()
    while pending:
        place = pending.pop()
        if (real := os.path.realpath(place)) in seen:  # A link leads back to it.
            continue
        seen.add(real)
        images, directories = images_and_directories(pathlib.Path(place))
        files += [os.path.join(place, name) for name in images]
        pending += [os.path.join(place, name) for name in reversed(directories)]
    return files


# --- What they show ----------------------------------------------------------


def classify(
    net: Pretrained, images: Sequence[str], *, topk: int, batch_size: int
) -> Iterator[Result]:
    """Reads images in threads, and predicts the classes of each, in their order."""
    batch_size = min(batch_size, len(images))
    batch: list[tuple[str, np.ndarray | str]] = []
    for item in prepared(net.preprocessing, images, ahead=2 * batch_size):
        batch.append(item)
        if len(batch) == batch_size:
            yield from _results(net, batch, topk, batch_size)
            batch = []
    yield from _results(net, batch, topk, batch_size)


def _results(net, batch, topk: int, batch_size: int) -> Iterator[Result]:
    arrays = [found for _, found in batch if isinstance(found, np.ndarray)]
    predictions: Iterator[list[Prediction]] = iter(())
    if arrays:
        stacked = np.stack(arrays)
        predictions = iter(net.predict_prepared(stacked, topk=topk, rows=batch_size))
    for image, found in batch:
        if isinstance(found, str):
            yield Result(image, [], problem=found)
        else:
            yield Result(image, next(predictions))


def prepared(
    preprocess: Callable[[str], T], images: Iterable[str], *, ahead: int
) -> Iterator[tuple[str, T | str]]:
    """Each image with what threads make of it, or with why it can't be read.

    Args:
      preprocess: makes anything but a text of an image file.
      images: files.
      ahead: how many of them are read ahead of need.
    """

    def prepare(image):
        try:
            return image, preprocess(image)
        except (OSError, ValueError, MemoryError) as error:
            return image, getattr(error, "strerror", None) or first_line(error)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        pending: collections.deque[concurrent.futures.Future] = collections.deque()
        for image in images:
            pending.append(pool.submit(prepare, image))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


# --- How they are written ----------------------------------------------------
#
# Each makes a function from a result to lines.


def _text() -> Callable[[Result], list[str]]:
    return lambda result: [
        result.image if result.image.isprintable() else repr(result.image),
        *[f"  {p.probability:7.2%}  {p.name}" for p in result.predictions],
    ]


def _json() -> Callable[[Result], list[str]]:
    def write(result):
        predictions = [p._asdict() for p in result.predictions]
        for prediction in predictions:
            if math.isnan(prediction["probability"]):  # JSON has no such number.
                prediction["probability"] = None
        return [json.dumps({"image": result.image, "predictions": predictions})]

    return write


def _csv() -> Callable[[Result], list[str]]:
    return with_names(
        lambda result: [
            {"image": result.image, "rank": rank, **prediction._asdict()}
            for rank, prediction in enumerate(result.predictions, start=1)
        ]
    )


_WRITERS = {"text": _text, "json": _json, "csv": _csv}


if __name__ == "__main__":
    command_line.leave_out_logs()
    command_line.run(main, spell=spell)
