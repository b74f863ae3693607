"""Where the images and the masks of a folder lie: usual layouts, and patterns.

A pattern is a path within the folder, such as `images/{split}/*.jpg`. `{split}` stands
for the split, `*` for any part of a name, and `**/` for any directories, or none. An
image has the mask whose path has the same text in the place of each of these stars:

    leftImg8bit/{split}/*/*_leftImg8bit.png
    gtFine/{split}/*/*_gtFine_labelIds.png
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Mapping

from focalnet_jax.data.sources.layout import use_of_split
from focalnet_jax.data.sources.left_out import LeftOut, kind_of_file
from focalnet_jax.data.sources.listing import EXTENSIONS
from focalnet_jax.errors import SetupError, argument, did_you_mean, first_few

# Directories of images and of masks, with a directory for each split in both: those of
# ADE20K as it is downloaded, other usual ones, and those of mmsegmentation's examples.
_USUAL = (
    ("images", "annotations"),
    ("images", "masks"),
    ("images", "labels"),
    ("img_dir", "ann_dir"),
)

_STARS = re.compile(r"(\*\*/|\*)")

Key = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Side:
    """The images of a split, or its masks.

    Attributes:
      pattern: of their paths, in which the split is filled in.
      files: the path of each within the folder, by the texts that stand for the stars.
      remarks: what is left out, as lines for people.
    """

    pattern: str
    files: Mapping[Key, str]
    remarks: tuple[str, ...] = ()

    def path_of(self, key: Key) -> str:
        """The path that the file of a key has, or would have."""
        texts = iter(key)
        return _STARS.sub(lambda _: next(texts), self.pattern)


def find_sides(
    root: pathlib.Path, *, split: str, images: str | None, masks: str | None
) -> tuple[Side, Side]:
    """The images and the masks of a split.

    Args:
      root: the folder.
      split: its name, or another usual name of what it is for: `val` for `validation`.
      images: the pattern of the images' paths; None for a usual layout.
      masks: the pattern of the masks' paths.

    Raises:
      SetupError: there is no such folder, layout or split, or no images are in it.
    """
    if not root.is_dir():
        raise SetupError(f"there is no folder {root}")
    if (images is None) != (masks is None):
        lacking = argument("images" if images is None else "masks")
        raise SetupError(
            f"{lacking} is missing: the patterns of images and of masks are given both, "
            "or neither"
        )
    if images is None or masks is None:
        return _usual_sides(root, split)
    if _split_in(images) != _split_in(masks) or _stars(images) != _stars(masks):
        raise SetupError(
            f"{argument('images')}={images!r} and {argument('masks')}={masks!r} need the "
            "same stars in the same order, and both {split} or neither: an image has the "
            "mask with the same text for each star"
        )
    sides = []
    for pattern in (images, masks):
        filled = pattern.replace("{split}", split)
        sides.append(Side(filled, dict(_matches(root, filled))))
    if not sides[0].files:
        raise SetupError(
            f"split {split!r} of {root} is empty: no file fits "
            f"{argument('images')}={images!r}{_near_miss(root, sides[0].pattern)}"
        )
    return sides[0], sides[1]


def splits_of(root: pathlib.Path, images: str | None) -> list[str]:
    """The names of the splits of a folder, sorted; `["train"]` if it has none.

    Args:
      root: the folder.
      images: the pattern of the images' paths; None for a usual layout.

    Raises:
      SetupError: there is no such folder or layout, or there are no images in it.
    """
    if not root.is_dir():
        raise SetupError(f"there is no folder {root}")
    if images is None:
        return _directories_in(root / _usual_layout(root)[0])
    before, split, after = images.partition("{split}")
    if not split:
        return ["train"]
    # A star in the place of the split; after the first one, all have the same text.
    number = len(_stars(before))
    keys = _matches(root, f"{before}*{after.replace('{split}', '*')}")
    found = sorted({key[number] for key, _ in keys})
    if not found:
        raise SetupError(f"no file in {root} fits {argument('images')}={images!r}")
    return found


def _split_in(pattern: str) -> bool:
    return "{split}" in pattern


def _stars(pattern: str) -> list[str]:
    return _STARS.findall(pattern)


def _matches(root: pathlib.Path, pattern: str) -> Iterator[tuple[Key, str]]:
    """The keys and paths of the files that fit a pattern."""
    parts = _STARS.split(pattern)
    stars = {"*": "([^/]*)", "**/": "((?:[^/]+/)*)"}
    fits = re.compile("".join(stars.get(part) or re.escape(part) for part in parts))
    start = os.path.dirname(parts[0])
    depth = None if "**/" in parts else pattern.count("/")
    for path in _files_below(root, start, depth=depth):
        if found := fits.fullmatch(path):
            yield found.groups(), path


def _files_below(
    root: pathlib.Path, start: str, *, depth: int | None = None
) -> Iterator[str]:
    """The paths, within a folder, of the files below a directory of it.

    Links are followed, and what begins with a dot is left out.

    Args:
      root: the folder.
      start: the directory.
      depth: how many slashes a path has at most; None for any number.
    """
    top = pathlib.Path(os.path.realpath(root / start))
    above = {os.fspath(root / start): frozenset(map(str, (top, *top.parents)))}
    for place, directories, names in os.walk(root / start, followlinks=True):
        # A link that leads to a directory above it would have no end.
        outer = above.pop(place) | {os.path.realpath(place)}
        inside = os.path.relpath(place, root)
        inside = "" if inside == "." else f"{inside}/"
        directories[:] = sorted(
            name
            for name in directories
            if not name.startswith(".")
            and os.path.realpath(f"{place}/{name}") not in outer
            and (depth is None or inside.count("/") < depth)
        )
        for name in directories:
            above[os.path.join(place, name)] = outer
        yield from (f"{inside}{name}" for name in sorted(names) if name[0] != ".")


def _near_miss(root: pathlib.Path, pattern: str) -> str:
    """A file that a pattern may have been meant for, to be shown."""
    start = os.path.dirname(_STARS.split(pattern)[0])
    while start and not (root / start).is_dir():
        start = os.path.dirname(start)
    file = next(_files_below(root, start), None)
    return f". There is {file!r}, for one" if file else ""


# --- Usual layouts -------------------------------------------------------------


def _usual_layout(root: pathlib.Path) -> tuple[str, str]:
    """The directories of images and of masks in a folder.

    Raises:
      SetupError: there are none, or there are several of masks.
    """
    layouts = _layouts_in(root)
    if not layouts:
        inner = [path for path in sorted(root.iterdir()) if path.is_dir()]
        if near := next((path for path in inner if _layouts_in(path)), None):
            raise SetupError(f"{root} has no images itself: did you mean {near}?")
        usual = " or ".join(f"{images} and {masks}" for images, masks in _USUAL)
        raise SetupError(
            f"{root} has no directories of images and masks: {usual}, with a directory "
            f"of each split in both. For any other layout give {argument('images')} and "
            f"{argument('masks')}, such as 'photos/*.jpg' and 'photos/*_mask.png'"
        )
    if len(layouts) > 1:
        masks = " and ".join(repr(masks) for _, masks in layouts)
        raise SetupError(
            f"{root} has the masks of its images in {masks}: say which by "
            f"{argument('images')}='images/{{split}}/*.jpg' and "
            f"{argument('masks')}='{layouts[0][1]}/{{split}}/*.png'"
        )
    return layouts[0]


def _usual_sides(root: pathlib.Path, split: str) -> tuple[Side, Side]:
    """The images and masks of a split in a folder with one of the usual layouts."""
    images, masks = _usual_layout(root)
    image_side = _by_directory(root, f"{images}/{_split_directory(root, images, split)}")
    if not image_side.files:
        raise SetupError(
            f"split {split!r} of {root} is empty: there are no images in "
            f"{image_side.pattern.removesuffix('/**/*')} (images end in "
            f"{', '.join(EXTENSIONS)})"
            + "".join(f"\n{remark}" for remark in image_side.remarks)
        )
    mask_side = _by_directory(root, f"{masks}/{_split_directory(root, masks, split)}")
    return image_side, dataclasses.replace(
        mask_side, pattern=mask_side.pattern.removesuffix("*") + "*.png"
    )


def _layouts_in(root: pathlib.Path) -> list[tuple[str, str]]:
    return [pair for pair in _USUAL if all((root / name).is_dir() for name in pair)]


def _split_directory(root: pathlib.Path, directory: str, split: str) -> str:
    """The directory of a split: of its name, or of the only name with the same use."""
    names = _directories_in(root / directory)
    if split in names:
        return split
    use = use_of_split(split)
    alike = [name for name in names if use and use_of_split(name) == use]
    if len(alike) == 1:
        return alike[0]
    if not names:
        raise SetupError(
            f"{root / directory} has no directories, and no split {split!r}: it has one "
            f"for each split, as in {directory}/training. For images without splits give "
            f"{argument('images')} and {argument('masks')}"
        )
    raise SetupError(
        f"{root / directory} has no split {split!r}{did_you_mean(split, names)}"
    )


def _directories_in(directory: pathlib.Path) -> list[str]:
    entries = [entry for entry in directory.iterdir() if entry.is_dir()]
    return sorted(entry.name for entry in entries if not entry.name.startswith("."))


def _by_directory(root: pathlib.Path, directory: str) -> Side:
    """All images below a directory, by their paths in it without their endings."""
    files: dict[Key, str] = {}
    left_out = LeftOut()
    for path in _files_below(root, directory):
        stem, ending = os.path.splitext(path)
        if ending.lower() not in EXTENSIONS:
            left_out.add(kind_of_file(os.path.basename(path)), path)
            continue
        place, name = os.path.split(os.path.relpath(stem, directory))
        key = (f"{place}/" if place else "", name)
        if other := files.get(key):
            raise SetupError(
                f"{first_few(sorted([other, path]))} in {root} have one name but for "
                "their endings, by which an image finds its mask: move one of them away"
            )
        files[key] = path
    remarks = left_out.lines(root / directory, extensions=EXTENSIONS)
    return Side(f"{directory}/**/*", files, remarks)
