"""Prepares data sets for `--config.data.name`: ArrayRecord files, without TensorFlow.

    python -m focalnet_jax.data.prepare folder:/data/in22k --name=in22k
    python -m focalnet_jax.data.prepare idx:/data/fashion --name=fashion_mnist
    python -m focalnet_jax.data.prepare imagenet2012
    python -m focalnet_jax.data.prepare imagenet_v2/matched-frequency:3.0.0 --to=/data/b
    python -m focalnet_jax.data.prepare in22k --verify

folder:DIR is an image folder, DIR/CLASS/xxx.jpg or DIR/SPLIT/CLASS/xxx.jpg; images are
stored as they are. idx:DIR holds the four files of MNIST or of a data set like it, whose
name is that in TFDS. Any other SOURCE is a data set that TFDS has prepared in its usual
format, TFRecord: its records are copied to another directory, and nothing is downloaded
or decoded.

A command that was cut short, by Ctrl-C or by a full disk, goes on when it is given again.
"""

import argparse
import concurrent.futures
import hashlib
import io
import json
import logging
import os
import pathlib
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from functools import partial

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
import tqdm

from focalnet_jax.data.prepare.idx import SPLITS, read_split
from focalnet_jax.data.prepare.tfrecord import read_tfrecord
from focalnet_jax.data.prepare.writing import ShardFile, write_data_set
from focalnet_jax.data.sources.builders import (
    default_data_dir,
    folder_hint,
    open_builder,
    path_on_disk,
)
from focalnet_jax.data.sources.folder import (
    ImageFolder,
    class_directories,
    has_splits,
    some,
)
from focalnet_jax.data.sources.shards import (
    CHECKSUMS,
    check_shards,
    read_checksums,
    sha256,
)
from focalnet_jax.errors import SetupError

# Of a file, in bytes. TFDS aims at 64 MiB to 1 GiB.
SHARD_SIZE = 512 << 20
VERSION = "1.0.0"  # of data sets made from folders
_THREADS = 16  # that read images, mostly waiting

# Of `dataset_info.json`, besides `fileFormat`; it is read in two spellings.
_OTHER_FORMAT_FIELDS = (
    "file_format",
    "alternativeFileFormats",
    "alternative_file_formats",
)
_ARRAY_RECORD = tfds.core.FileFormat.ARRAY_RECORD


def main(argv: list[str] | None = None) -> None:
    """Runs the command line.

    Raises:
      SetupError: with what is wrong. What is finished stays.
    """
    args = parse(argv)
    if args.verify:
        verify(args.source, data_dir=args.data_dir)
    elif args.source.startswith("folder:"):
        if not args.name:
            raise SetupError("folder:DIR needs a name for the data set: --name=NAME")
        if args.to:
            raise SetupError(
                "--to is for data sets of TFDS: --data-dir=DIR sets the place"
            )
        prepare_folder(
            args.source.removeprefix("folder:"),
            name=args.name,
            data_dir=args.data_dir,
            shards=args.shards,
        )
    elif args.source.startswith("idx:"):
        if not args.name or args.shards or args.to:
            raise SetupError(
                "idx:DIR has the options --name=NAME, as TFDS spells it, and --data-dir"
            )
        prepare_idx(
            args.source.removeprefix("idx:"), name=args.name, data_dir=args.data_dir
        )
    else:
        for option in ("name", "shards"):
            if getattr(args, option):
                raise SetupError(
                    f"--{option} is for image folders; if {args.source!r} is one, "
                    f"write folder:{args.source}"
                )
        convert(args.source, data_dir=args.data_dir, to=args.to)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m focalnet_jax.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="folder:DIR, idx:DIR, or a data set of TFDS")
    add("--name", help="what to call a folder's data set")
    add(
        "--data-dir",
        metavar="DIR",
        help="where data sets lie; by default $TFDS_DATA_DIR or ~/tensorflow_datasets",
    )
    add(
        "--to",
        metavar="DIR",
        help="where a converted data set goes; by default DATA_DIR-array_record",
    )
    add(
        "--shards",
        type=_positive,
        metavar="N",
        help=f"files for each split of a folder; by default of {SHARD_SIZE >> 20} MiB",
    )
    add("--verify", action="store_true", help="compare files with their checksums")
    return parser.parse_args(argv)


def prepare_folder(
    root: str,
    *,
    name: str,
    data_dir: str | None = None,
    shards: int | None = None,
) -> pathlib.Path:
    """Makes an image folder a data set, its images in a fixed random order.

    Its features are `image`, encoded as in the file, `label` and `file_name`. If there
    are splits, their classes are those of all of them together, sorted by name.

    Args:
      root: the folder, `CLASS/xxx.jpg` or `SPLIT/CLASS/xxx.jpg`.
      name: of the data set; in lower case, and not that of a data set of TFDS.
      data_dir: where data sets lie; None for TFDS's own place.
      shards: number of files for each split; None for files of some 512 MiB.

    Returns:
      the data set's directory, `DATA_DIR/NAME/1.0.0`.

    Raises:
      SetupError: as `ImageFolder`; empty files; a name that won't do; a full disk.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise SetupError(f"--name={name}: it has to be of the letters a-z, digits and _")
    if name in tfds.list_builders(with_community_datasets=False):
        raise SetupError(f"--name={name} is a data set of TFDS: choose another name")
    data_dir = path_on_disk(data_dir or default_data_dir())
    folders = _open_splits(path_on_disk(root))
    [class_names] = {folder.class_names for folder in folders.values()}
    if odd := [c for c in class_names if c != c.strip() or not c.isprintable()]:
        raise SetupError(f"TFDS can't keep the names of the classes {some(odd)}")

    info = _folder_info(name, class_names, root)
    fingerprint = hashlib.sha256(repr((class_names, shards)).encode())
    plan = []
    lengths = {}
    for split, folder in folders.items():
        sizes = _file_sizes(folder)
        keys = _order_keys(folder)
        for part in (split.encode(), sizes, keys):
            fingerprint.update(part)
        order = np.argsort(keys, kind="stable")
        count = min(shards or -(-int(sizes.sum()) // SHARD_SIZE), len(folder))
        ends = [round(len(folder) * i / count) for i in range(count + 1)]
        lengths[split] = np.diff(ends).tolist()
        for i in range(count):
            indices = order[ends[i] : ends[i + 1]]
            plan.append(
                ShardFile(
                    file_name=f"{name}-{split}.array_record-{i:05}-of-{count:05}",
                    num_records=len(indices),
                    num_bytes=int(sizes[indices].sum()),
                    payloads=partial(_examples, folder, indices, info.features),
                )
            )

    directory = data_dir / name / VERSION
    _write(directory, plan, fingerprint, info, lengths)
    _say_how_to_use(name, data_dir, info)
    return directory


def prepare_idx(root: str, *, name: str, data_dir: str | None = None) -> pathlib.Path:
    """Makes the files of MNIST, or of a data set like it, what TFDS would make of them.

    But without TensorFlow, and with the images in the order of the files.

    Args:
      root: the directory with `train-images-idx3-ubyte.gz` and the other three.
      name: as TFDS spells it: `mnist`, `fashion_mnist`, `kmnist`.
      data_dir: where data sets lie; None for TFDS's own place.

    Returns:
      the data set's directory, `DATA_DIR/NAME/VERSION`.

    Raises:
      SetupError: damaged files, or a data set that isn't of their kind; a full disk.
    """
    data_dir = path_on_disk(data_dir or default_data_dir())
    builder = open_builder(name, data_dir=str(data_dir), data_dir_option="--data-dir")
    info = builder.info
    features = info.features
    splits = {split: read_split(path_on_disk(root), split) for split in SPLITS}
    for images, labels in splits.values():
        if {*features} != {"image", "label"} or (
            features["image"].shape != (*images.shape[1:], 1)
            or features["label"].num_classes <= labels.max()
        ):
            raise SetupError(
                f"{root} doesn't hold {name}: {images.shape[1]} x {images.shape[2]} "
                f"pixels and labels to {labels.max()}, but TFDS says {features}"
            )
    fingerprint = hashlib.sha256()
    for arrays in splits.values():
        for array in arrays:
            fingerprint.update(array)
    plan = [
        ShardFile(
            file_name=f"{name}-{split}.array_record-00000-of-00001",
            num_records=len(labels),
            num_bytes=images.nbytes,
            payloads=partial(_idx_examples, images, labels, features),
        )
        for split, (images, labels) in splits.items()
    ]
    info.set_file_format(_ARRAY_RECORD, override=True)
    directory = path_on_disk(builder.data_dir)
    lengths = {split: [len(labels)] for split, (_, labels) in splits.items()}
    _write(directory, plan, fingerprint, info, lengths)
    _say_how_to_use(name, data_dir, info)
    return directory


def _write(
    directory: pathlib.Path,
    plan: list[ShardFile],
    fingerprint,
    info: tfds.core.DatasetInfo,
    lengths: dict[str, list[int]],
) -> None:
    """Writes files, and metadata that say how many records of a split each has."""

    def write_metadata(directory: pathlib.Path) -> None:
        splits = []
        for split in lengths:
            files = directory.glob(f"{info.name}-{split}.array_record-*")
            size = sum(file.stat().st_size for file in files)
            splits.append(tfds.core.SplitInfo(split, lengths[split], size))
        info.set_splits(tfds.core.SplitDict(splits))
        info.write_to_directory(directory)

    write_data_set(directory, plan, fingerprint.hexdigest()[:12], write_metadata)


def convert(
    name: str, *, data_dir: str | None = None, to: str | None = None
) -> pathlib.Path:
    """Copies a data set that TFDS has prepared as TFRecord into ArrayRecord files.

    There are as many as before, and with the same records in the same order. The
    original stays as it is.

    Args:
      name: as TFDS spells it, with config and version if need be.
      data_dir: where it lies; None for TFDS's own place.
      to: the directory of data sets to write to. It has to be another one, since TFDS
        opens what `dataset_info.json` says, and that names the old format. None for
        `DATA_DIR-array_record`.

    Returns:
      the copy's directory, `TO/NAME/CONFIG/VERSION`.

    Raises:
      SetupError: no such data set, or not as TFRecord; a missing or damaged file; a full
        disk.
    """
    builder = _prepared(name, data_dir)
    source = path_on_disk(builder.data_dir)
    *parts, version = builder.info.full_name.split("/")
    name = f"{'/'.join(parts)}:{version}"
    source_root = source.parents[len(parts)]
    file_format = builder.info.file_format
    if file_format == _ARRAY_RECORD:
        print(f"{source} is {_ARRAY_RECORD.value} already")
        _say_how_to_use(name, source_root, builder.info)
        return source
    if file_format != tfds.core.FileFormat.TFRECORD:
        raise SetupError(
            f"{source} is prepared as {file_format.value}; only tfrecord is converted"
        )
    to = path_on_disk(to or f"{source_root}-{_ARRAY_RECORD.value}")
    if to == source_root:
        raise SetupError(f"--to={to} is where the original lies: name another directory")

    copies = _copies(builder, source)
    info = json.loads((source / "dataset_info.json").read_text())
    sizes = {copy.file_name: copy.num_bytes for copy in copies.values()}
    fingerprint = hashlib.sha256(json.dumps([info, sizes]).encode())

    def write_metadata(directory: pathlib.Path) -> None:
        for path in source.iterdir():
            if path.is_file() and path not in copies and path.name != CHECKSUMS:
                shutil.copyfile(path, directory / path.name)
        for field in _OTHER_FORMAT_FIELDS:
            info.pop(field, None)
        info["fileFormat"] = _ARRAY_RECORD.value
        text = json.dumps(info, indent=2)
        (directory / "dataset_info.json").write_text(text)

    directory = to / builder.info.full_name
    write_data_set(
        directory, list(copies.values()), fingerprint.hexdigest()[:12], write_metadata
    )
    _say_how_to_use(name, to, builder.info)
    return directory


def _copies(
    builder: tfds.core.DatasetBuilder, source: pathlib.Path
) -> dict[pathlib.Path, ShardFile]:
    """What is to be written, by the file that it is copied from."""
    copies = {}
    missing = []
    for split in builder.info.splits.values():
        template = split.filename_template
        new_template = template.replace(filetype_suffix=_ARRAY_RECORD.value)
        for i, length in enumerate(split.shard_lengths):
            place = dict(shard_index=i, num_shards=split.num_shards)
            original = source / template.relative_filepath(**place)
            if not original.exists():
                missing.append(original.name)
                continue
            copies[original] = ShardFile(
                file_name=new_template.relative_filepath(**place),
                num_records=length,
                num_bytes=original.stat().st_size,
                payloads=partial(read_tfrecord, original),
            )
    if missing:
        raise SetupError(f"{source} lacks {some(missing)}")
    return copies


def verify(name: str, *, data_dir: str | None = None) -> None:
    """Reads all files of a data set, and compares them with their checksums.

    Raises:
      SetupError: naming the files that differ, or if there are no checksums.
    """
    builder = _prepared(name, data_dir)
    directory = path_on_disk(builder.data_dir)
    checksums = read_checksums(directory)
    if not checksums:
        raise SetupError(
            f"{directory} has no {CHECKSUMS}, for it wasn't written by this command"
        )
    for split in builder.info.splits:
        check_shards(builder, split)
    files = tqdm.tqdm(sorted(checksums), unit="file", disable=None)
    damaged = [file for file in files if sha256(directory / file) != checksums[file]]
    if damaged:
        raise SetupError(
            f"in {directory} there is damage to {some(damaged)}: copy them again, or "
            "delete the directory and prepare it again"
        )
    print(f"{directory}: all {len(checksums):,} files fit their checksums")


def _open_splits(root: pathlib.Path) -> dict[str, ImageFolder]:
    """A folder by split: those in it, or `train` alone."""
    if not has_splits(root):
        return {"train": ImageFolder(root)}
    names = class_directories(root)
    if odd := [name for name in names if not re.fullmatch(r"\w+", name) or name == "all"]:
        raise SetupError(
            f"{some(odd)} in {root} can't be names of splits: use letters, digits and _"
        )
    classes = sorted({c for name in names for c in class_directories(root / name)})
    return {name: ImageFolder(root / name, classes=classes) for name in names}


def _folder_info(name: str, class_names: tuple[str, ...], root) -> tfds.core.DatasetInfo:
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=name,
            version=tfds.core.Version(VERSION),
            data_dir="",  # only for reading
            module_name="focalnet_jax.data.prepare",
        ),
        description=f"The image folder {path_on_disk(root)}.",
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(),
                "label": tfds.features.ClassLabel(names=class_names),
                "file_name": tfds.features.Text(),
            }
        ),
        supervised_keys=("image", "label"),
    )
    info.set_file_format(_ARRAY_RECORD)
    return info


def _file_sizes(folder: ImageFolder) -> np.ndarray:
    """int64, of each file; an empty one is an error."""

    def sizes(start: int) -> list[int]:
        indices = range(start, min(start + 1024, len(folder)))
        return [folder.path(i).stat().st_size for i in indices]

    try:
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            result = np.concatenate([*pool.map(sizes, range(0, len(folder), 1024))])
    except OSError as error:
        raise SetupError(f"a file of {folder.root} can't be read: {error}") from error
    if len(empty := np.flatnonzero(result == 0)):
        names = [folder.file_name(i) for i in empty]
        raise SetupError(
            f"empty files in {folder.root}: {some(names)}. Replace or delete them"
        )
    return result


def _order_keys(folder: ImageFolder) -> np.ndarray:
    """uint64; records are sorted by these hashes of their names.

    So the order depends on nothing else, and any part of it has all classes.
    """
    names = (os.fsencode(folder.file_name(i)) for i in range(len(folder)))
    digests = (hashlib.blake2b(name, digest_size=8).digest() for name in names)
    keys = (int.from_bytes(digest, "little") for digest in digests)
    return np.fromiter(keys, np.uint64, count=len(folder))


def _examples(folder: ImageFolder, indices: np.ndarray, features) -> Iterator[bytes]:
    """Serialised `tf.train.Example`s, which is what TFDS reads."""
    serializer = tfds.core.ExampleSerializer(features.get_serialized_info())
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        # In pieces, or all of them would be read at once.
        for start in range(0, len(indices), 4 * _THREADS):
            piece = indices[start : start + 4 * _THREADS]
            for record in pool.map(folder.__getitem__, piece):
                # Names of files needn't be UTF-8.
                record["file_name"] = os.fsencode(record["file_name"])
                yield _serialized(record, features, serializer)


def _idx_examples(images: np.ndarray, labels: np.ndarray, features) -> Iterator[bytes]:
    serializer = tfds.core.ExampleSerializer(features.get_serialized_info())
    for image, label in zip(images, labels):
        stream = io.BytesIO()
        PIL.Image.fromarray(image).save(stream, format="png")
        record = {"image": stream.getvalue(), "label": int(label)}
        yield _serialized(record, features, serializer)


def _serialized(record: dict, features, serializer) -> bytes:
    example = serializer.get_tf_example(features.encode_example(record))
    # Its features are a map, whose order would depend on the process.
    return example.SerializeToString(deterministic=True)


def _prepared(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """Opens a data set that TFDS, or this command, has prepared."""
    builder = open_builder(name, data_dir=data_dir, data_dir_option="--data-dir")
    if not builder.is_prepared():
        raise SetupError(
            f"{name!r} is not prepared in {builder.data_dir}{folder_hint(name)}. If the "
            "data set lies elsewhere, name the place, --data-dir=DIR; else prepare it "
            f"first:\n  pip install '.[prepare]' && tfds build {name}"
        )
    return builder


def _say_how_to_use(name: str, data_dir: pathlib.Path, info: tfds.core.DatasetInfo):
    options = {"name": name, "data_dir": data_dir}
    if len(info.splits) > 1:
        tests = ("validation", "val", "test")
        options["test_split"] = next((s for s in tests if s in info.splits), "SPLIT")
    lines = [f"--config.data.{key}={shlex.quote(str(v))}" for key, v in options.items()]
    label = dict(info.features.items()).get("label")
    if count := getattr(label, "num_classes", None):
        lines.append(f"--config.model.num_classes={count}")
    print("use it with " + " ".join(lines))


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


if __name__ == "__main__":
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS says much
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(
            "interrupted; the same command goes on after the files that are finished"
        )
    except (SetupError, OSError) as error:
        sys.exit(f"error: {error}")
