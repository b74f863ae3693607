"""Labels of records: what a data set says of them, and which ones are right."""

import dataclasses
from typing import Any

import numpy as np

from focalnet_jax.data.bad_records import WrongRecordError
from focalnet_jax.errors import argument


@dataclasses.dataclass(frozen=True)
class Labels:
    """What the labels of a split can be.

    Attributes:
      num_classes: labels are below it; None for any.
      subset: the labels that can occur, if they are few of the classes; None for all.
      feature: what a record calls its label.
      are_sets: whether a label is a sequence of ints, any of which is right.
    """

    num_classes: int | None = None
    subset: tuple[int, ...] | None = None
    feature: str = "label"
    are_sets: bool = False

    def read(self, record: dict[str, Any]) -> np.ndarray | np.int32:
        """The label of a record: int32, or for sets bool `[num_classes]`.

        Raises:
          WrongRecordError: a label that can't be.
        """
        label = record[self.feature]
        if not self.are_sets:
            self.check(label)
            return np.int32(label)
        labels = self._empty_set()
        for each in label:
            self.check(each)
            labels[each] = True
        return labels

    def blank(self) -> np.ndarray | np.int32:
        """The label of a row that doesn't count."""
        return self._empty_set() if self.are_sets else np.int32(0)

    def _empty_set(self) -> np.ndarray:
        return np.zeros(self.num_classes or 0, bool)

    def check(self, label: int) -> None:
        """Raises WrongRecordError for a label that can't be."""
        if label < 0:
            raise WrongRecordError(f"has label {label}, that is, none")
        if self.num_classes is not None and label >= self.num_classes:
            raise WrongRecordError(
                f"has label {label}, which does not fit "
                f"{argument('num_classes')}={self.num_classes}"
            )
        if self.subset is not None and label not in self.subset:
            raise WrongRecordError(
                f"has label {label}, which is none of the {len(self.subset)} classes "
                "that the data set is known to have"
            )
