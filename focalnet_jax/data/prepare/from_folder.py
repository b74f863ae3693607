"""Image folders as data sets of ArrayRecord files."""

import hashlib
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from focalnet_jax.data.prepare.examples import write_examples
from focalnet_jax.data.prepare.files import (
    VERSION,
    check_name,
    check_split_names,
    file_sizes,
    order_keys,
    shard_files,
)
from focalnet_jax.data.prepare.writing import Prepared
from focalnet_jax.data.sources.builders import default_data_dir, path_on_disk
from focalnet_jax.data.sources.folder import ImageFolder
from focalnet_jax.data.sources.layout import (
    class_directories,
    class_name,
    folder_layout,
    link_as_split,
    split_inside,
)
from focalnet_jax.errors import SetupError, first_few


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
    check_name(name)
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
        sizes = file_sizes(len(folder), folder.path, root=folder.root)
        keys = order_keys(folder)
        for part in (split.encode(), sizes.data, keys.data):
            fingerprint.update(part)
        files[split] = shard_files(
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
    check_split_names(splits, root)
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
