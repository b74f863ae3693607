"""What the directories of an image folder are: splits or classes."""

import pathlib
import re
import shlex
import unicodedata
from collections.abc import Collection, Sequence

from focalnet_jax.data.sources.listing import images_and_directories
from focalnet_jax.errors import SetupError, argument, did_you_mean, first_few

# Spelt before the path of an image folder.
FOLDER = "folder:"

# The names of directories that are splits, by what the split is for.
_SPLIT_NAMES = {
    "train": "train|training",
    "val": "val|valid|validation|eval|evaluation|dev",
    "test": "test|testing",
}
_SPLIT_NAME = re.compile(
    f"({'|'.join(f'(?P<{use}>{names})' for use, names in _SPLIT_NAMES.items())})"
    r"([-_ ]?(set|split|data|images|\d+))?",
    re.IGNORECASE,
)


def use_of_split(name: str) -> str | None:
    """What a split is for by the name of its directory; None if it is no such name.

    Returns:
      `"train"`, `"val"` for choosing between models, or `"test"`.
    """
    found = _SPLIT_NAME.fullmatch(name)
    return found and next(use for use in _SPLIT_NAMES if found[use])


def split_directory(
    name: str, root: pathlib.Path, *, split: str, classes: Collection[str] | None
) -> pathlib.Path:
    """The directory whose directories are the classes of a split.

    Args:
      name: of the data set, for messages.
      root: the folder.
      split: a directory in it; or `"train"`, which is the folder if it has no splits.
      classes: names that classes may have, if they are known.

    Raises:
      SetupError: there is no such split, or the directories can be taken for splits as
        well as for classes.
    """
    directory = root / split
    if not directory.is_dir():
        layout = folder_layout(root, classes=classes or ())
        if layout == "splits" or (layout == "either" and split != "train"):
            hint = did_you_mean(split, class_directories(root))
            raise SetupError(f"{name} has no split {split!r}{hint}")
        if layout == "either":
            inner = class_directories(root)
            raise SetupError(_two_readings(root, inner, split=inner[0]))
        if split != "train":
            raise SetupError(
                f"{name} has no split {split!r}: its directories are classes, which "
                "makes it the split 'train'. To have it as another one, name where it "
                f"lies, and it as the split: {argument('name')}={FOLDER}{root.parent} "
                f"and {root.name!r}"
            )
        directory = root
    elif holds_images(directory) and (others := _classes_beside(directory)):
        raise SetupError(
            f"{directory} holds images, as do {first_few(others)} beside it. A split "
            f"holds directories, one of each class. If {split!r} is a class, too, make "
            f"{root} the split of another folder: {link_as_split(root)}, "
            f"and {argument('--name')}={FOLDER}NEW"
        )
    if classes is None and (inner := split_inside(directory)):
        raise SetupError(_two_readings(directory, [inner], split=inner))
    return directory


def _two_readings(folder: pathlib.Path, names: Sequence[str], *, split: str) -> str:
    """The error of directories that can be taken for splits and for classes.

    Args:
      folder: where they are.
      names: theirs.
      split: one of them.
    """
    place = shlex.quote(str(folder))
    return (
        f"{first_few(names)} in {folder} can be taken for splits or for classes: they "
        "hold directories and no images.\n"
        "  If they are splits, with a directory for each class: "
        f"{argument('--name')}={FOLDER}{place} "
        f"{argument('--split')}={shlex.quote(split)}\n"
        "  If they are classes, with images further down: "
        f"{argument('--classes')}=FILE, which has the name of a class in each line, such "
        f"as that of ls {place} > FILE"
    )


def _classes_beside(directory: pathlib.Path) -> list[str]:
    """The names of the other directories beside one that hold images."""
    siblings = sorted(path for path in directory.parent.iterdir() if path.is_dir())
    return [
        path.name
        for path in siblings
        if path.name != directory.name
        and not path.name.startswith(".")
        and holds_images(path)
    ]


def class_name(directory: str) -> str:
    """The name of the class of a directory: in one form, however a letter is composed.

    Copies that macOS has made may spell a letter with an accent as two characters.
    """
    return unicodedata.normalize("NFC", directory)


def class_directories(root: pathlib.Path) -> list[str]:
    """The names of the directories in a folder, sorted by the names of their classes.

    Raises:
      SetupError: there are none, or there are images beside them.
    """
    check_has_no_images(root)
    directories = images_and_directories(root)[1]
    if not directories:
        raise SetupError(
            f"there are no directories in {root}: images lie in directories named after "
            "their classes, CLASS/xxx.jpg"
        )
    return sorted(directories, key=lambda name: (class_name(name), name))


def folder_layout(root: pathlib.Path, *, classes: Collection[str] = ()) -> str:
    """Says whether the directories in a folder are classes or splits.

    Args:
      root: the folder.
      classes: the names of all classes, if they are known.

    Returns:
      `"splits"`, if one of them has the name of a split and holds directories, or all
      have such names; `"classes"`, if one of them holds images; or `"either"`, if they
      hold directories alone, and have other names.

    Raises:
      SetupError: there are no directories, or there are images beside them.
    """
    directories = class_directories(root)
    if any(class_name(name) in classes for name in directories):
        return "classes"
    named = [name for name in directories if _SPLIT_NAME.fullmatch(name)]
    if named == directories:
        return "splits"
    if any(images_and_directories(root / name)[1] for name in named):
        return "splits"
    counts = []
    for name in directories:
        images, inner = images_and_directories(root / name)
        if images:
            return "classes"
        counts.append(len(inner))
    # A split has several classes, so a single directory is one below a class.
    return "either" if max(counts) > 1 else "classes"


def split_inside(root: pathlib.Path) -> str | None:
    """The name of a directory that looks like a class, and could be a split as well.

    It holds directories and no images, and it has the name of a split or is the only one:
    `train/train/CLASS/xxx.jpg`.

    Args:
      root: whose directories are classes.

    Raises:
      SetupError: there are no directories, or there are images beside them.
    """
    directories = class_directories(root)
    for name in directories:
        is_only = len(directories) == 1
        if is_only or name == root.name or _SPLIT_NAME.fullmatch(name):
            images, inner = images_and_directories(root / name)
            if not images and len(inner) > is_only:
                return name
    return None


def link_as_split(root: pathlib.Path) -> str:
    """A command after which the folder `NEW` has `root` as its split `train`."""
    return f"mkdir NEW && ln -s {shlex.quote(str(root.resolve()))} NEW/train"


def _classes_in(directory: pathlib.Path) -> list[str]:
    """The directories in a directory that hold images."""
    names = images_and_directories(directory)[1]
    return [name for name in names if holds_images(directory / name)]


def holds_images(directory: pathlib.Path) -> bool:
    """Whether there are images directly in a directory."""
    return bool(images_and_directories(directory)[0])


def check_has_no_images(directory: pathlib.Path) -> None:
    """Raises SetupError for images directly in a directory that isn't a class."""
    images, _ = images_and_directories(directory)
    if not images:
        return
    text = (
        f"{first_few(images)} in {directory} belong to no class: images lie in "
        "directories named after their classes, CLASS/xxx.jpg"
    )
    annotations = directory.parent / "val_annotations.txt"
    if directory.name == "images" and annotations.exists():  # as in Tiny ImageNet
        place = shlex.quote(str(directory.parent))
        text += (
            f". This sorts them by {annotations.name}:\n  cd {place} && while read "
            'f c rest; do mkdir -p "$c" && mv "images/$f" "$c/"; done < '
            f"{annotations.name} && rmdir images"
        )
    elif images[0].startswith("ILSVRC2012_val_"):
        text += (
            ". Those of ImageNet's validation are sorted by the script valprep.sh "
            "of https://github.com/soumith/imagenetloader.torch"
        )
    elif len(beside := _classes_in(directory.parent)) > 1:
        text += (
            f". If {directory.name!r} is a class, as are {len(beside) - 1} directories "
            f"beside it, give {directory.parent}"
        )
    else:
        text += (
            ". Sort them by the list of labels that came with them, or move them away if "
            "there is none"
        )
    raise SetupError(text)
