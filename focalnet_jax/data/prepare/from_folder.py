"""Image folders as data sets of ArrayRecord files."""

import concurrent.futures
import errno
import hashlib
import os
import pathlib
import re
from collections.abc import Iterator
from functools import partial

import numpy as np
import tensorflow_datasets as tfds

from focalnet_jax.data.prepare.examples import serializer, write_examples
from focalnet_jax.data.prepare.writing import Prepared, ShardFile
from focalnet_jax.data.sources.builders import default_data_dir, path_on_disk
from focalnet_jax.data.sources.folder import ImageFolder
from focalnet_jax.data.sources.layout import (
    class_directories,
    class_name,
    folder_layout,
    link_as_split,
    split_inside,
)
from focalnet_jax.errors import SetupError, argument, first_few

SHARD_SIZE = 512 << 20  # bytes in a file; TFDS recommends 64 MiB to 1 GiB
VERSION = "1.0.0"  # of every data set that is made from a folder
_THREADS = 16  # for reading images; these threads mostly wait


def prepare_folder(
    root: str,
    *,
    name: str,
    data_dir: str | None = None,
    shards: int | None = None,
) -> Prepared:
    """Makes a data set of an image folder, with its images in a fixed random order.

    A record has the features `image`, encoded as in the file, `label` and `file_name`.
    All splits have the same classes: those that occur in any split, sorted by name. The
    data set's directory is `DATA_DIR/NAME/1.0.0`.

    Args:
      root: the folder, `CLASS/xxx.jpg` or `SPLIT/CLASS/xxx.jpg`.
      name: the name that the data set gets. It is of lower-case letters, digits and `_`,
        and not the name of a data set of TFDS.
      data_dir: the directory of all data sets; None for TFDS's own place.
      shards: the number of files for each split; None for files of about 512 MiB.

    Raises:
      SetupError: the folder is not one that `ImageFolder` reads, has empty files, or has
        names of classes or splits that TFDS cannot keep; the name is not allowed; or the
        disk is full.
    """
    _check_name(name)
    data_dir = path_on_disk(data_dir or default_data_dir())
    root = path_on_disk(root)
    folders = _open_splits(root)
    [class_names] = {folder.class_names for folder in folders.values()}
    for line in _remarks(folders):
        print(f"note: {line}")
    info = _dataset_info(name, class_names, description=f"The image folder {root}.")
    fingerprint = hashlib.sha256(repr((class_names, shards)).encode())
    files = {}
    for split, folder in folders.items():
        sizes = _file_sizes(folder)
        keys = _order_keys(folder)
        for part in (split.encode(), sizes.data, keys.data):
            fingerprint.update(part)
        files[split] = _shard_files(
            folder,
            sizes,
            np.argsort(keys, kind="stable"),
            prefix=f"{name}-{split}",
            features=info.features,
            shards=shards,
        )
    existed = write_examples(
        data_dir / name / VERSION, files, info, fingerprint=fingerprint.hexdigest()
    )
    return Prepared(name, data_dir, existed)


def _check_name(name: str) -> None:
    given = f"{argument('name')}={name}"
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise SetupError(f"{given}: it has to be of the letters a-z, digits and _")
    if name in tfds.list_builders(with_community_datasets=False):
        raise SetupError(f"{given} is a data set of TFDS: choose another name")


def _open_splits(root: pathlib.Path) -> dict[str, ImageFolder]:
    """The image folder of each split; a folder without splits is the split `train`."""
    layout = folder_layout(root)
    if layout == "either":
        raise SetupError(
            f"{first_few(class_directories(root))} in {root} can be taken for splits or "
            "for classes: they hold directories and no images.\n"
            "  If they are splits, rename them train, val, test and so on.\n"
            "  If they are classes, make the folder the split of another one: "
            f"{link_as_split(root)}, and give folder:NEW"
        )
    if layout == "classes":
        return {"train": ImageFolder(root)}
    splits = class_directories(root)
    refused = [name for name in splits if not re.fullmatch(r"\w+", name) or name == "all"]
    if refused:
        raise SetupError(
            f"{first_few(refused)} in {root} can't be names of splits: use letters, "
            "digits and _"
        )
    for name in splits:
        if inner := split_inside(root / name):
            raise SetupError(
                f"{inner!r} in {root / name} can be taken for a split or for a class: it "
                "holds directories and no images.\n"
                "  If it is a split, with a directory for each class, give "
                f"folder:{root / name}, or move it to {root}.\n"
                "  If it is a class, rename it, so that it looks like no split, or move "
                "its images into it"
            )
    directories = [d for name in splits for d in class_directories(root / name)]
    classes = sorted({*map(class_name, directories)})
    return {name: ImageFolder(root / name, classes=classes) for name in splits}


def _remarks(folders: dict[str, ImageFolder]) -> Iterator[str]:
    """What is left out of the folders, and which classes a split lacks."""
    for split, folder in folders.items():
        yield from folder.remarks
        present = {folder.class_names[label] for label in folder.labels}
        if missing := sorted({*folder.class_names} - present):
            yield f"the split {split!r} has no images of {first_few(missing)}"


def _dataset_info(
    name: str, class_names: tuple[str, ...], *, description: str
) -> tfds.core.DatasetInfo:
    refused = [c for c in class_names if c != c.strip() or not c.isprintable()]
    if refused:
        raise SetupError(f"TFDS can't keep the names of the classes {first_few(refused)}")
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=name,
            version=tfds.core.Version(VERSION),
            data_dir="",  # TFDS needs a directory only for reading.
            module_name="focalnet_jax.data.prepare",
        ),
        description=description,
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(),
                "label": tfds.features.ClassLabel(names=class_names),
                "file_name": tfds.features.Text(),
            }
        ),
        supervised_keys=("image", "label"),
    )
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    return info


def _file_sizes(folder: ImageFolder) -> np.ndarray:
    """The size of each file in bytes, int64 `[n]`.

    Raises:
      SetupError: a file is empty or cannot be read.
    """

    def sizes(start: int) -> list[int]:
        indices = range(start, min(start + 1024, len(folder)))
        paths = [folder.path(i) for i in indices]
        for path in paths:
            if not os.access(path, os.R_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return [path.stat().st_size for path in paths]

    try:
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            result = np.concatenate([*pool.map(sizes, range(0, len(folder), 1024))])
    except OSError as error:
        raise SetupError(f"a file of {folder.root} can't be read: {error}") from error
    if empty := np.flatnonzero(result == 0).tolist():
        names = [folder.file_name(i) for i in empty]
        raise SetupError(
            f"empty files in {folder.root}: {first_few(names)}. Replace or delete them"
        )
    return result


def _order_keys(folder: ImageFolder) -> np.ndarray:
    """A hash of each file's name, uint64 `[n]`, by which the records are sorted.

    The order depends on nothing but the names, and it mixes the classes.
    """
    names = (os.fsencode(folder.file_name(i)) for i in range(len(folder)))
    digests = (hashlib.blake2b(name, digest_size=8).digest() for name in names)
    keys = (int.from_bytes(digest, "little") for digest in digests)
    return np.fromiter(keys, np.uint64, count=len(folder))


def _shard_files(
    folder: ImageFolder,
    sizes: np.ndarray,
    order: np.ndarray,
    *,
    prefix: str,
    features: tfds.features.FeaturesDict,
    shards: int | None,
) -> list[ShardFile]:
    """The files to write for a split, with about the same number of images in each.

    Args:
      folder: the images.
      sizes: the size of each image in bytes, int64 `[n]`.
      order: the indices of the images in the order in which they are stored, `[n]`.
      prefix: how the names of the files begin.
      features: the features of the data set.
      shards: the number of files; None for files of about `SHARD_SIZE`.
    """
    count = min(shards or -(-int(sizes.sum()) // SHARD_SIZE), len(folder))
    ends = [round(len(folder) * i / count) for i in range(1, count)]
    return [
        ShardFile(
            file_name=f"{prefix}.array_record-{i:05}-of-{count:05}",
            num_records=len(indices),
            num_bytes=int(sizes[indices].sum()),
            payloads=partial(_examples, folder, indices, features),
        )
        for i, indices in enumerate(np.split(order, ends))
    ]


def _examples(
    folder: ImageFolder, indices: np.ndarray, features: tfds.features.FeaturesDict
) -> Iterator[bytes]:
    """Yields the images at these indices as serialised examples."""
    serialize = serializer(features)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        # The pool reads all that it is given at once, so it gets a few at a time.
        for start in range(0, len(indices), 4 * _THREADS):
            piece = indices[start : start + 4 * _THREADS]
            for record in pool.map(folder.__getitem__, piece):
                # The name of a file need not be UTF-8.
                record["file_name"] = os.fsencode(record["file_name"])
                yield serialize(record)
