"""What an evaluator leaves beside metrics, for people."""

from collections.abc import Mapping
from typing import NamedTuple


class Details(NamedTuple):
    """What is said of an evaluation beside its metrics.

    Attributes:
      text: lines that are printed after the metrics.
      files: contents by name, which a run keeps in its workdir. Names begin with that of
        the evaluation, such as `test`; those that end in `.png` are pictures.
    """

    text: str
    files: Mapping[str, bytes]
