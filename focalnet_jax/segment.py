"""Segments images: says of each pixel what it shows.

    python -m focalnet_jax.segment photo.jpg --weights=runs/upernet_ade20k
    python -m focalnet_jax.segment photos '*.png' --weights=DIR --out=segmented

IMAGE is a file, a directory whose images are taken at any depth, a pattern such as
'photos/*.jpg', or - for a list of files on standard input.

--weights takes the workdir of a run of semantic segmentation, a converted directory, or a
file of mmsegmentation's weights.

Of each image two files are written: NAME_mask.png, whose pixels are the labels of classes
at the size of the image, with a palette of their colours; and NAME_picture.png, with the
image, the classes and a legend. An image that can't be read is named and skipped, and the
exit status is 1.
"""

import argparse
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
import PIL.Image

from focalnet_jax import command_line
from focalnet_jax.convert.fit import fit_to_model
from focalnet_jax.convert.model_arguments import (
    add_reading_arguments,
    add_source,
    model_options,
    reading,
    spell,
)
from focalnet_jax.convert.weights_and_model import read_weights_and_model
from focalnet_jax.csv_lines import with_names
from focalnet_jax.data import EvalSegmentationTransform, segmentation_operations
from focalnet_jax.data.images.decoding import decode
from focalnet_jax.data.sources.mask_classes import MaskClasses
from focalnet_jax.errors import SetupError, first_few
from focalnet_jax.heads import Segmenter
from focalnet_jax.label_pictures import (
    Labelled,
    Legend,
    png,
    side_by_side,
    with_palette,
)
from focalnet_jax.paths import check_may_write, local_path, written_aside
from focalnet_jax.predict import find_images, prepared, show
from focalnet_jax.pretrained import Pretrained, with_parameters
from focalnet_jax.tasks.images import normalize
from focalnet_jax.tasks.segmentation_groups import CanvasGroup, group_by_size
from focalnet_jax.tasks.segmentation_views import Views, classes_of_images

_BATCH_SIZE = 4
_MOST_CANVASES = 6
_SIDE = 1024  # of a picture, at most
_MASK, _PICTURE = "_mask.png", "_picture.png"


class Net(NamedTuple):
    """A segmenter and what is needed to use it.

    Attributes:
      pretrained: the model, its variables, and the mean and deviation of images.
      scale: what images are resized to fit into.
      legend: names and colours of the classes.
    """

    pretrained: Pretrained
    scale: tuple[int, int]
    legend: Legend


class Segmented(NamedTuple):
    """What is known of an image: the files of its classes, or why it can't be read.

    Attributes:
      image: its path.
      mask, picture: the files that are written.
      areas: the number of pixels of each class, by label.
      problem: why it could not be read; None if it could.
    """

    image: str
    mask: str = ""
    picture: str = ""
    areas: Sequence[int] = ()
    problem: str | None = None


def main(argv: list[str] | None = None) -> bool:
    """Runs the command line; returns whether all images could be read.

    Raises:
      SetupError: there are no images or no weights, they can't be used, or the files
        can't be written.
    """
    args = parse(argv)
    images = find_images(args.images)
    segmentation_operations()  # Are its libraries there?
    out = local_path(args.out)
    places = places_of(images, args.images, out)
    patterns = [f"*{end}" for end in (_MASK, _PICTURE)]
    check_may_write(out, overwrite=args.overwrite, files=patterns)
    command_line.find_devices()
    net = read_net(args)
    return show(
        segment(net, images, places, batch_size=args.batch_size),
        _WRITERS[args.format](net.legend.names),
        count=len(images),
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = command_line.parser("python -m focalnet_jax.segment", __doc__)
    add = parser.add_argument
    add("images", metavar="IMAGE", nargs="+")
    add_source(parser, required=True)
    add(
        "--out",
        default="segmented",
        metavar="DIR",
        help="the directory that is written; by default segmented",
    )
    add("--overwrite", action="store_true", help="replace files that are there already")
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


def read_net(args: argparse.Namespace) -> Net:
    """Reads the weights that a command line names.

    Raises:
      SetupError: they can't be read, or are not of a segmenter of images in RGB.
    """
    how = reading(args)
    found = read_weights_and_model(args.weights, how, model_options(args.set))
    if not isinstance(found.model, Segmenter):
        raise SetupError(
            f"{args.weights} has no head for segmentation: it is a model for "
            f"{found.description.task.replace('_', ' ')}. The workdir of a run with "
            "--config=configs/upernet_ade20k.py has one"
        )
    if found.model.encoder.in_channels != 3:
        raise SetupError(
            f"{args.weights} takes images of {found.model.encoder.in_channels} channels, "
            "and image files are read as RGB"
        )
    fitted = fit_to_model(found.weights, found.model, how)
    pretrained = with_parameters(found, fitted, head=how.head)
    count = found.model.num_classes
    names = [pretrained.class_name(label) for label in range(count)]
    colors = tuple(tuple(color) for color in found.description.colors or ())
    scale = found.description.scale
    assert scale is not None  # Each segmenter has one.
    return Net(
        pretrained,
        (scale[0], scale[1]),
        Legend(names, MaskClasses(colors=colors).colors_of(count)),  # type: ignore[arg-type]
    )


# --- Where files are written ---------------------------------------------------


def places_of(
    images: Sequence[str], given: Sequence[str], out: pathlib.Path
) -> dict[str, pathlib.Path]:
    """The beginning of the names of each image's files, in the order of directories.

    An image of a directory that was given has the same place in `out`, others have their
    name alone.

    Raises:
      SetupError: files of two images would have one name.
    """
    directories = [name for name in given if os.path.isdir(name)]
    places: dict[str, pathlib.Path] = {}
    owners: dict[pathlib.Path, str] = {}
    for image in images:
        parents = [
            parent for parent in directories if pathlib.Path(parent) in _parents(image)
        ]
        inner = os.path.relpath(image, parents[0]) if parents else os.path.basename(image)
        place = out / os.path.splitext(inner)[0]
        if owners.setdefault(place, image) != image:
            raise SetupError(
                f"the files of two images would have one name, {place}{_MASK}: "
                f"{first_few([owners[place], image])}. Segment them with another --out "
                "each"
            )
        places[image] = place
    return places


def _parents(image: str) -> Sequence[pathlib.Path]:
    return pathlib.Path(image).parents


# --- What images show ----------------------------------------------------------


def segment(
    net: Net,
    images: Sequence[str],
    places: dict[str, pathlib.Path],
    *,
    batch_size: int,
) -> Iterator[Segmented]:
    """Segments images in groups of similar sizes, and writes the files of each.

    Args:
      net: the segmenter.
      images: files.
      places: the beginning of the names of each image's files.
      batch_size: how many are computed at a time.
    """
    sizes = np.array([_size_of(image) for image in images], np.int32).reshape(-1, 2)
    for group in group_by_size(sizes, scales=(net.scale,), most=_MOST_CANVASES):
        members = [images[index] for index in group.indices]
        rows = min(batch_size, len(members))
        batch: list[tuple[str, np.ndarray]] = []
        for image, pixels in prepared(_read, members, ahead=2 * rows):
            if isinstance(pixels, str):
                yield Segmented(image, problem=pixels)
                continue
            batch.append((image, pixels))
            if len(batch) == rows:
                yield from _segmented(net, group, batch, places, rows)
                batch = []
        if batch:
            yield from _segmented(net, group, batch, places, rows)


def _size_of(image: str) -> tuple[int, int]:
    """Height and width by the header; 0 and 0 if there is none that can be read."""
    try:
        with PIL.Image.open(image) as opened:
            return opened.height, opened.width
    except Exception:  # PIL's formats raise errors of many classes.
        return 0, 0


def _read(image: str) -> np.ndarray:
    return decode(pathlib.Path(image).read_bytes())


def _segmented(
    net: Net,
    group: CanvasGroup,
    batch: Sequence[tuple[str, np.ndarray]],
    places: dict[str, pathlib.Path],
    rows: int,
) -> Iterator[Segmented]:
    """Computes a batch, which blank images fill up, and writes its files."""
    transform = EvalSegmentationTransform(net.scale, group.canvases[0])
    prepared_images = [(*transform(pixels), pixels.shape[:2]) for _, pixels in batch]
    canvas = group.canvases[0]
    blank = (np.zeros((*canvas, 3), np.uint8), np.array(canvas), group.label_canvas)
    prepared_images += [blank] * (rows - len(batch))
    images, valid, size = (np.stack(arrays) for arrays in zip(*prepared_images))
    classes = np.asarray(
        _classes(
            net.pretrained.model,
            net.pretrained.variables,
            {
                "image": images,
                "valid": valid.astype(np.int32),
                "size": size.astype(np.int32),
            },
            scale=net.scale,
            mean=net.pretrained.preprocessing.mean,
            std=net.pretrained.preprocessing.std,
            canvas=group.label_canvas,
        )
    )
    for (image, pixels), row in zip(batch, classes):
        height, width, _ = pixels.shape
        labels = row[:height, :width]
        yield _written(image, pixels, labels, places[image], net.legend)


@functools.partial(jax.jit, static_argnames=("model", "scale", "mean", "std", "canvas"))
def _classes(model, variables, batch, *, scale, mean, std, canvas) -> jax.Array:
    return classes_of_images(
        model,
        variables,
        batch,
        views=Views(scales=(scale,)),
        normalize=functools.partial(normalize, mean=mean, std=std),
        canvas=canvas,
    )


def _written(
    image: str,
    pixels: np.ndarray,
    labels: np.ndarray,
    place: pathlib.Path,
    legend: Legend,
) -> Segmented:
    mask, picture = f"{place}{_MASK}", f"{place}{_PICTURE}"
    shown = side_by_side([Labelled(pixels, labels)], legend, side=_SIDE)
    for path, content in ((mask, png(with_palette(labels, legend))), (picture, shown)):
        with written_aside(pathlib.Path(path)) as aside:
            aside.write_bytes(content)
    areas = np.bincount(labels.ravel(), minlength=len(legend.names))
    return Segmented(image, mask, picture, areas.tolist())


# --- How results are printed ---------------------------------------------------
#
# Each makes a function from a result to lines, for the names of classes.


def _classes_in(result: Segmented, names: Sequence[str]) -> list[dict]:
    """The classes of an image, the largest one first."""
    total = sum(result.areas)
    order = sorted(range(len(names)), key=lambda label: -result.areas[label])
    return [
        {"name": names[label], "share": result.areas[label] / total, "label": label}
        for label in order
        if result.areas[label]
    ]


def _text(names: Sequence[str]) -> Callable[[Segmented], list[str]]:
    return lambda result: [
        f"{result.image if result.image.isprintable() else repr(result.image)}"
        f" -> {result.mask}, {result.picture}",
        *[
            f"  {found['share']:7.2%}  {found['name']}"
            for found in _classes_in(result, names)
        ],
    ]


def _json(names: Sequence[str]) -> Callable[[Segmented], list[str]]:
    return lambda result: [
        json.dumps(
            {
                "image": result.image,
                "mask": result.mask,
                "picture": result.picture,
                "classes": _classes_in(result, names),
            }
        )
    ]


def _csv(names: Sequence[str]) -> Callable[[Segmented], list[str]]:
    return with_names(
        lambda result: [
            {"image": result.image, "mask": result.mask, **found}
            for found in _classes_in(result, names)
        ]
    )


_WRITERS = {"text": _text, "json": _json, "csv": _csv}


if __name__ == "__main__":
    command_line.leave_out_logs()
    command_line.run(main, spell=spell)
