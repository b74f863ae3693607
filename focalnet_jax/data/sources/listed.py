"""Images of a folder whose classes and splits stand in a written list.

The list is a CSV file in UTF-8. Its first line names the columns:

    file,class,split
    rose/1.jpg,rose,train
    rose/2.jpg,rose,test
    rose/3.jpg,rose,

`file` is a path within the folder. A file without a split is in none. Other columns may
stand beside these. Commas, semicolons or tabs part them.
"""

import collections
import csv
import io
import operator
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from focalnet_jax.csv_lines import csv_line
from focalnet_jax.data.sources.fingerprint import contents_digest, digest
from focalnet_jax.data.sources.folder import labels_of
from focalnet_jax.data.sources.layout import class_name
from focalnet_jax.errors import SetupError, did_you_mean, first_few
from focalnet_jax.paths import written_aside

_COLUMNS = ("file", "class", "split")
_OTHER_COLUMNS = ("note", "sha256")  # They need not be there.


class Listed(NamedTuple):
    """A line of a list.

    Attributes:
      file: the path within the folder.
      class_name: of its class.
      split: of which the image is a part; empty for none.
      note: what is to be known of it.
      sha256: of the file's contents, in hexadecimal digits; empty if it is not known.
    """

    file: str
    class_name: str
    split: str
    note: str = ""
    sha256: str = ""


def read_list(path: str | os.PathLike) -> list[Listed]:
    """Reads a list.

    Raises:
      SetupError: it can't be read, lacks a column or a class, or has a file twice.
    """
    try:
        # Names of files need not be UTF-8.
        text = pathlib.Path(path).read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise SetupError(f"the list {path} can't be read: {error.strerror}") from error
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)
    try:
        lines = csv.DictReader(
            io.StringIO(text, newline=""), delimiter=delimiter, strict=True
        )
        if missing := [name for name in _COLUMNS if name not in (lines.fieldnames or ())]:
            raise SetupError(
                f"{path} lacks the column {missing[0]!r}: the first line of a list names "
                f"its columns, {', '.join(_COLUMNS)}"
            )
        rows, seen = [], set()
        for line in lines:
            file, name, split = (line[column] or "" for column in _COLUMNS)
            place = f"{path}, line {lines.line_num}"
            if not file or not name:
                raise SetupError(f"{place}: there is no {'class' if file else 'file'}")
            if file in seen:
                raise SetupError(f"{place}: {file!r} is there twice")
            seen.add(file)
            others = (line.get(column) or "" for column in _OTHER_COLUMNS)
            rows.append(Listed(file, class_name(name), split, *others))
    except csv.Error as error:
        raise SetupError(f"{path} is no CSV file: {error}") from error
    return rows


def write_list(path: pathlib.Path, rows: Iterable[Listed]) -> None:
    """Writes a list, whole or not at all."""
    lines = map(csv_line, [(*_COLUMNS, *_OTHER_COLUMNS), *rows])
    text = "".join(f"{line}\n" for line in lines)
    with written_aside(path) as aside:
        aside.write_bytes(text.encode("utf-8", "surrogateescape"))


class ListedImages(Sequence):
    """The images of one split: records as those of `ImageFolder`, in the list's order.

    Attributes:
      root: the folder.
      class_names: the name of each class, by label. All splits have the same ones.
      labels: the labels that occur, in ascending order.
      remarks: what is to be said, as lines for people.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        path: str | os.PathLike,
        *,
        split: str,
        classes: Sequence[str] | None = None,
    ):
        """Reads the list.

        Args:
          root: the folder.
          path: of the list.
          split: its name in the list.
          classes: the names of all classes, in the order of their labels. None for the
            sorted names of the classes of all splits.

        Raises:
          SetupError: as `read_list`; there is no such split, a file of it is not there,
            or a class is not in `classes`.
        """
        self.root = pathlib.Path(root)
        rows = [row for row in read_list(path) if row.split]
        counts = collections.Counter(row.split for row in rows)
        if split not in counts:
            hint = did_you_mean(split, counts) if counts else "; it has no splits at all"
            raise SetupError(f"{path} has no split {split!r}{hint}")
        names = sorted({row.class_name for row in rows})
        self.class_names = tuple(names if classes is None else map(class_name, classes))
        labels = labels_of(names, self.class_names, of=f"the list {path}")
        label_of = dict(zip(names, labels))
        rows = [row for row in rows if row.split == split]
        self._files = [row.file for row in rows]
        self._labels = [label_of[row.class_name] for row in rows]
        self.labels = tuple(sorted({*self._labels}))
        self.remarks = ()
        if missing := [file for file in self._files if not self._is_there(file)]:
            raise SetupError(
                f"{len(missing):,} of {len(rows):,} images of the split {split!r} in "
                f"{path} are not in {self.root}: {first_few(missing)}"
            )

    def __len__(self) -> int:
        return len(self._files)

    # A folder has no slices.
    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        """Reads a file and makes it a record.

        Raises:
          OSError: the file can't be read.
        """
        with open(self.path(index), "rb") as file:
            image = file.read()
        return {
            "image": image,
            "label": self.label(index),
            "file_name": self.file_name(index),
        }

    def path(self, index: int) -> pathlib.Path:
        """The path of an image."""
        return self.root / self.file_name(index)

    def label(self, index: int) -> int:
        """The label of an image: the index of its class in `class_names`."""
        return self._labels[self._position(index)]

    def file_name(self, index: int) -> str:
        """The path of an image within the folder, as the list has it."""
        return self._files[self._position(index)]

    def fingerprint(self) -> dict[str, str]:
        """What tells these images from others, as `ImageFolder.fingerprint`."""
        names = repr((self._files, self._labels, self.class_names)).encode()
        return {
            "names": digest(names),
            "contents": contents_digest(len(self), self.path),
        }

    def _is_there(self, file: str) -> bool:
        return os.path.exists(os.path.join(self.root, file))

    def _position(self, index: int) -> int:
        """An index from 0 on, for one that may count from the end."""
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.root} has {len(self)} images, but none at {index}")
        return index % len(self)
