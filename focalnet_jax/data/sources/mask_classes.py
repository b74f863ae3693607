"""What the indices in masks mean: the classes, their names and their colours."""

import csv
import dataclasses
import importlib.resources
from collections.abc import Sequence
from typing import Any

import numpy as np

from focalnet_jax.data.sources.class_file import lines_of_classes
from focalnet_jax.data.sources.layout import class_name
from focalnet_jax.errors import SetupError, argument, first_few, shown

IGNORED = 255
"""The label of a pixel that doesn't count."""
NO_CLASS = 254
"""What `MaskClasses.table` has for indices that may not occur."""
MOST_CLASSES = NO_CLASS

KNOWN_CLASSES = ("ade20k", "cityscapes")
"""Data sets whose classes the package knows; each has a file `NAME.tsv` beside this one.

The names and colours are those of mmsegmentation 1.2.2. ADE20K's indices are those of
`objectInfo150.txt` in the download, without 0, which stands for all other things.
Cityscapes' are the ids of `labels.py` in cityscapesScripts, as in `*_labelIds.png`.
"""

_COLUMNS = ("index", "class")
_COLORS = ("red", "green", "blue")

Color = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class MaskClasses:
    """What the indices in masks mean.

    Attributes:
      names: of the classes, by label; empty where nobody has named them.
      colors: of the classes in pictures, RGB in [0, 255], by label; empty for none.
      indices: of the classes in masks, by label; None where a label is the index, or is
        the index less 1 with `reduce_zero_label`.
      ignored: further indices, whose pixels don't count. 255 is one, too, unless it is
        among `indices`.
      reduce_zero_label: whether 0 is ignored, and 1 is the first class.
    """

    names: tuple[str, ...] = ()
    colors: tuple[Color, ...] = ()
    indices: tuple[int, ...] | None = None
    ignored: tuple[int, ...] = ()
    reduce_zero_label: bool = False

    def __post_init__(self):
        """Raises SetupError for classes of one name, or too many of them."""
        names = self.names
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise SetupError(
                f"two classes in {argument('classes')} have one name: "
                f"{first_few(repeated)}"
            )
        if len(names) > MOST_CLASSES:
            raise SetupError(
                f"{argument('classes')} has {len(names):,} classes: masks have at most "
                f"{MOST_CLASSES}, since {IGNORED} stands for pixels that don't count"
            )

    def to_json(self) -> dict[str, Any]:
        """The same as values of JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "MaskClasses":
        """The inverse of `to_json`."""
        indices = values["indices"]
        return cls(
            names=tuple(values["names"]),
            colors=tuple(map(tuple, values["colors"])),
            indices=None if indices is None else tuple(indices),
            ignored=tuple(values["ignored"]),
            reduce_zero_label=values["reduce_zero_label"],
        )

    def with_reduce_zero_label(self, reduce_zero_label: bool | None) -> "MaskClasses":
        """The same classes in masks that begin at 1, or at 0; None changes nothing."""
        if reduce_zero_label is None:
            return self
        return dataclasses.replace(
            self, indices=None, ignored=(), reduce_zero_label=reduce_zero_label
        )

    def table(self, num_classes: int) -> np.ndarray:
        """The label of each index from 0 to 255, uint8 `[256]`.

        It has `IGNORED` for what doesn't count, and `NO_CLASS` for what may not occur.

        Args:
          num_classes: how many there are if they have no names.
        """
        first = int(self.reduce_zero_label)
        count = len(self.names) or num_classes
        indices = self.indices or range(first, first + count)
        table = np.full(256, NO_CLASS, np.uint8)
        table[[IGNORED, *range(first), *self.ignored]] = IGNORED
        table[[*indices]] = np.arange(len(indices))
        return table

    def colors_of(self, num_classes: int) -> np.ndarray:
        """The colour of each class in pictures, uint8 `[num_classes, 3]`."""
        if len(self.colors) >= num_classes:
            return np.array(self.colors[:num_classes], np.uint8).reshape(-1, 3)
        return distinct_colors(num_classes)


def distinct_colors(count: int) -> np.ndarray:
    """Colours that differ from each other and from black, uint8 `[count, 3]`.

    They are those of the PASCAL VOC development kit, without its first, which is black.
    """
    numbers = np.arange(1, count + 1)
    colors = np.zeros((count, 3), int)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (numbers >> (3 * bit + channel) & 1) << (7 - bit)
    return colors.astype(np.uint8)


def read_mask_classes(classes: str | None) -> MaskClasses:
    """The classes of masks.

    Args:
      classes: a name in `KNOWN_CLASSES`, or a file. The file has the name of a class in
        each line, in the order of their indices. Or it is a table whose first line names
        the columns `index` and `class`, and perhaps `red`, `green` and `blue`. They are
        parted by commas, semicolons or tabs. An index without a class is ignored. None
        stands for classes without names.

    Raises:
      SetupError: the file can't be read, or is no such list.
    """
    if classes is None:
        return MaskClasses()
    if classes in KNOWN_CLASSES:
        file = importlib.resources.files(__package__).joinpath(f"{classes}.tsv")
        return _of_table(file.read_text(encoding="utf-8").splitlines(), classes)
    known = " nor ".join(map(repr, KNOWN_CLASSES))
    lines = lines_of_classes(classes, known=known)
    if not lines:
        raise SetupError(f"{argument('classes')}={classes!r} is empty")
    if {*_COLUMNS} <= {*_cells(lines[0])}:
        return _of_table(lines, classes)
    return MaskClasses(tuple(class_name(line.strip()) for line in lines))


def _cells(line: str, delimiter: str | None = None) -> list[str]:
    delimiter = delimiter or _delimiter(line)
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter))]


def _delimiter(line: str) -> str:
    return max(",;\t", key=line.count)


def _of_table(lines: Sequence[str], place: str) -> MaskClasses:
    """The classes of a table, whose first line names the columns."""
    delimiter = _delimiter(lines[0])
    columns = _cells(lines[0], delimiter)
    known: dict[int, tuple[str, Color]] = {}
    ignored = []
    for number, line in enumerate(lines[1:], start=2):
        row = dict(zip(columns, _cells(line, delimiter)))
        index = _level(row["index"], f"{place}, line {number}, index")
        if index in known or index in ignored:
            raise SetupError(f"{place}, line {number}: index {index} is there twice")
        if name := row.get("class"):
            color = tuple(
                _level(row.get(c) or "", f"{place}, line {number}, {c}")
                for c in _COLORS
                if c in columns
            )
            known[index] = (class_name(name), color)  # type: ignore[assignment]
        else:
            ignored.append(index)
    if not known:
        raise SetupError(f"{place} has no classes")
    names, colors = zip(*(known[index] for index in sorted(known)))
    return MaskClasses(
        names=names,
        colors=colors if {*_COLORS} <= {*columns} else (),
        indices=tuple(sorted(known)),
        ignored=tuple(sorted(ignored)),
    )


def _level(text: str, place: str) -> int:
    if not text.isdecimal() or int(text) > 255:
        raise SetupError(f"{place}: {shown(text)} is no whole number from 0 to 255")
    return int(text)
