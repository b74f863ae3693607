"""Opens image folders: their directories or a list say what splits and classes are."""

import pathlib

from focalnet_jax.data.sources.class_file import lines_of_classes
from focalnet_jax.data.sources.folder import ImageFolder
from focalnet_jax.data.sources.imagenet import classes_of_folder, wordnet_ids
from focalnet_jax.data.sources.layout import (
    FOLDER,
    class_directories,
    class_name,
    split_directory,
)
from focalnet_jax.data.sources.listed import ListedImages, read_list
from focalnet_jax.data.sources.source import Source
from focalnet_jax.errors import SetupError, argument
from focalnet_jax.paths import is_remote, with_home, without_file_scheme


def open_folder(
    name: str, *, split: str, classes: str | None, files: str | None
) -> Source:
    given = without_file_scheme(name.removeprefix(FOLDER))
    if is_remote(given):
        raise SetupError(
            f"{argument('name')}={name!r}: an image folder has to be on a disk. In a "
            "bucket data sets lie as ArrayRecord files: see "
            "python -m focalnet_jax.data.prepare"
        )
    root = pathlib.Path(with_home(given))
    if files is None:
        root = split_directory(name, root, split=split, classes=_known_classes(classes))
        present = class_directories(root) if classes == "imagenet2012" else []
    else:
        files = with_home(without_file_scheme(files))
        present = sorted({row.class_name for row in read_list(files) if row.split})
    class_names = None
    if classes == "imagenet2012":
        class_names = classes_of_folder(present)
    elif classes is not None:
        class_names = _classes_of_file(classes)
    if files is None:
        folder = ImageFolder(root, classes=class_names)
    else:
        folder = ListedImages(root, files, split=split, classes=class_names)
    names, subset = folder.class_names, None
    if classes == "imagenet2012":
        names = wordnet_ids()
        # ImageNet-A and -R are folders of the classes that they have.
        subset = folder.labels if len(folder.labels) < len(names) else None
    return Source(
        name=f"{name}, split {split!r}",
        records=folder,
        class_names=tuple(names),
        num_classes=len(folder.class_names),
        subset=subset,
        remarks=folder.remarks,
    )


def _known_classes(classes: str | None) -> set[str] | None:
    """The names of classes that directories may have, if `classes` says so."""
    if classes is None:
        return None
    if classes == "imagenet2012":
        return {*wordnet_ids(), *map(str, range(1000))}
    return {*_classes_of_file(classes)}


def _classes_of_file(classes: str) -> list[str]:
    lines = lines_of_classes(classes, known="'imagenet2012'")
    return [class_name(line.strip()) for line in lines]
