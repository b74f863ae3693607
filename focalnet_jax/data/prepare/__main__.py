"""Makes data sets that the trainer can read: ArrayRecord files, without TensorFlow.

    python -m focalnet_jax.data.prepare folder:/data/in22k --name=in22k
    python -m focalnet_jax.data.prepare masks:/data/ade --name=ade20k --classes=ade20k
    python -m focalnet_jax.data.prepare idx:/data/fashion --name=fashion_mnist
    python -m focalnet_jax.data.prepare imagenet2012
    python -m focalnet_jax.data.prepare imagenet_v2/matched-frequency:3.0.0 --to=/data/b
    python -m focalnet_jax.data.prepare in22k --verify

SOURCE is one of four things. folder:DIR is an image folder, DIR/CLASS/xxx.jpg or
DIR/SPLIT/CLASS/xxx.jpg; its images are stored as they are. masks:DIR is a folder of
images beside masks, DIR/images/SPLIT/xxx.jpg and DIR/annotations/SPLIT/xxx.png, or as
--images and --masks say. idx:DIR is a directory with the four files of MNIST, or of a
data set in the same format; NAME is its name in TFDS. Any other SOURCE is the name of a
data set that TFDS has prepared in its usual format, TFRecord. Its records are copied to
another directory; nothing is downloaded or decoded.

If a command is cut short, for example by Ctrl-C or by a full disk, give it again: it
continues after the files that are finished.
"""

import argparse
import logging
import shlex

from focalnet_jax.command_line import parser, positive, run
from focalnet_jax.data.prepare.files import SHARD_SIZE
from focalnet_jax.data.prepare.from_folder import prepare_folder
from focalnet_jax.data.prepare.from_idx import prepare_idx
from focalnet_jax.data.prepare.from_pairs import prepare_pairs
from focalnet_jax.data.prepare.from_tfrecord import copy_tfrecord
from focalnet_jax.data.prepare.verify import verify
from focalnet_jax.data.prepare.writing import Prepared
from focalnet_jax.data.sources.builders import open_builder
from focalnet_jax.data.sources.layout import use_of_split
from focalnet_jax.errors import SetupError


def main(argv: list[str] | None = None) -> None:
    """Runs the command line.

    Raises:
      SetupError: something is wrong with the options or the data. Files that are
        finished stay.
    """
    args = _parse(argv)
    if args.verify:
        verify(args.source, data_dir=args.data_dir)
    else:
        _say_how_to_use(_prepare(args))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    arguments = parser("python -m focalnet_jax.data.prepare", __doc__)
    add = arguments.add_argument
    add(
        "source",
        metavar="SOURCE",
        help="folder:DIR, masks:DIR, idx:DIR, or a name of TFDS",
    )
    add("--name", help="the data set's name, for folder:DIR, masks:DIR and idx:DIR")
    add(
        "--data-dir",
        metavar="DIR",
        help="directory of all data sets; $TFDS_DATA_DIR or ~/tensorflow_datasets by "
        "default",
    )
    add(
        "--to",
        metavar="DIR",
        help="directory that a TFRecord data set is copied to; DATA_DIR-array_record by "
        "default",
    )
    add(
        "--shards",
        type=positive,
        metavar="N",
        help="number of files for each split of a folder; by default, files have "
        f"{SHARD_SIZE >> 20} MiB",
    )
    add(
        "--images",
        metavar="PATTERN",
        help="for masks:DIR: the images' paths in it, such as 'photos/{split}/*.jpg'",
    )
    add(
        "--masks",
        metavar="PATTERN",
        help="for masks:DIR: the masks' paths in it, such as 'photos/{split}/*_mask.png'",
    )
    add(
        "--classes",
        metavar="CLASSES",
        help="for masks:DIR: ade20k, cityscapes, or a file with the names of the classes",
    )
    add("--verify", action="store_true", help="compare files with their checksums")
    return arguments.parse_args(argv)


def _prepare(args: argparse.Namespace) -> Prepared:
    """Prepares the source by the function for its kind."""
    kind, _, root = args.source.partition(":")
    of_masks = {name: getattr(args, name) for name in ("images", "masks", "classes")}
    if kind != "masks" and (given := [name for name in of_masks if of_masks[name]]):
        raise SetupError(f"--{given[0]} is for images with masks: masks:DIR")
    if kind in ("folder", "masks"):
        if not args.name:
            raise SetupError(f"{kind}:DIR needs a name for the data set: --name=NAME")
        if args.to:
            raise SetupError(
                "--to is for data sets of TFDS: --data-dir=DIR sets the place"
            )
        options = dict(name=args.name, data_dir=args.data_dir, shards=args.shards)
        if kind == "masks":
            return prepare_pairs(root, **options, **of_masks)
        return prepare_folder(root, **options)
    if kind == "idx":
        if not args.name or args.shards or args.to:
            raise SetupError(
                "idx:DIR has the options --name=NAME, as TFDS spells it, and --data-dir"
            )
        return prepare_idx(root, name=args.name, data_dir=args.data_dir)
    for option in ("name", "shards"):
        if getattr(args, option):
            raise SetupError(
                f"--{option} is for image folders; if {args.source!r} is one, "
                f"write folder:{args.source}"
            )
    return copy_tfrecord(args.source, data_dir=args.data_dir, to=args.to)


def _say_how_to_use(prepared: Prepared) -> None:
    """Prints the trainer's options for a data set."""
    builder = open_builder(prepared.name, data_dir=str(prepared.data_dir))
    if prepared.existed:
        print(
            f"{builder.data_dir} is prepared already: --verify compares it with its "
            "checksums; to prepare it anew, delete it first"
        )
    data = {"name": prepared.name, "data_dir": prepared.data_dir}
    splits = builder.info.splits
    if "train" not in splits:
        for_training = (split for split in splits if use_of_split(split) == "train")
        data["train_split"] = next(for_training, "SPLIT")
    if len(splits) > 1:
        usual = (split for split in ("validation", "val", "test") if split in splits)
        data["test_split"] = next(usual, "SPLIT")
    options = [f"--config.data.{key}={shlex.quote(str(v))}" for key, v in data.items()]
    label = dict(builder.info.features.items()).get("label")
    names = dict(builder.info.metadata or {}).get("mask_classes", {}).get("names", ())
    if count := getattr(label, "num_classes", None) or len(names):
        options.append(f"--config.model.num_classes={count}")
    print("use it with " + " ".join(options))


if __name__ == "__main__":
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS logs much
    run(
        main,
        interrupted="interrupted; the same command goes on after the files that are "
        "finished",
    )
