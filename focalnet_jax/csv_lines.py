"""Lines of CSV, whatever characters are in their values."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def csv_line(values: Iterable[Any]) -> str:
    """The values as a row of CSV, without an end of line after it."""
    stream = io.StringIO(newline="")
    # What ends a line is quoted in values: with this, both of its characters are.
    csv.writer(stream, lineterminator="\r\n").writerow(values)
    return stream.getvalue().removesuffix("\r\n")


def with_names(
    rows_of: Callable[[T], Iterable[Mapping[str, Any]]],
) -> Callable[[T], list[str]]:
    """Makes a function from a result to lines; the very first line names the columns.

    Args:
      rows_of: the rows of a result, which are values by the names of the columns.
    """
    is_first = True

    def write(result: T) -> list[str]:
        nonlocal is_first
        lines = []
        for row in rows_of(result):
            lines += [csv_line(row)] if is_first else []
            lines.append(csv_line(row.values()))
            is_first = False
        return lines

    return write
