"""Labels of pixels: what a mask says of them, and which ones are right."""

import dataclasses
import functools
from typing import Any

import numpy as np

from focalnet_jax.data.bad_records import BadRecordError
from focalnet_jax.data.images.masks import decode_mask
from focalnet_jax.data.images.segmentation import segmentation_operations
from focalnet_jax.data.sources.mask_classes import IGNORED, NO_CLASS, MaskClasses


@dataclasses.dataclass(frozen=True)
class MaskLabels:
    """What the masks of a split can hold.

    Attributes:
      classes: what their indices mean.
      num_classes: how many classes there are, if `classes` doesn't name them.
    """

    classes: MaskClasses
    num_classes: int

    @functools.cached_property
    def _table(self) -> np.ndarray:
        return self.classes.table(self.num_classes)

    def read(self, record: dict[str, Any]) -> np.ndarray:
        """The labels of a record's pixels, uint8 `[h, w]`: classes, or 255 for ignored.

        Raises:
          BadRecordError: its mask is none, or has an index that is no class.
        """
        indices = decode_mask(record["mask"])
        if indices.dtype != np.uint8:
            if indices.size and (indices.max() > 255 or indices.min() < 0):
                raise self._no_class(indices[(indices > 255) | (indices < 0)])
            indices = indices.astype(np.uint8)
        labels = segmentation_operations().map_levels(indices, [self._table])
        wrong = labels == NO_CLASS
        if wrong.any():
            raise self._no_class(indices[wrong])
        return labels

    def _no_class(self, wrong: np.ndarray) -> BadRecordError:
        values, counts = np.unique(wrong, return_counts=True)
        allowed = np.flatnonzero(self._table < NO_CLASS)
        text = (
            f"its mask has the index {values[0]} at {counts[0]:,} pixels, which is no "
            f"class: {len(allowed)} classes have the indices {allowed[0]} to "
            f"{allowed[-1]}"
        )
        if self.classes.indices is None:
            # The usual reason is a first index that was taken for a class, or wasn't.
            reduced = not self.classes.reduce_zero_label
            first, last = allowed[[0, -1]] + (1 if reduced else -1)
            text += f", or with reduce_zero_label={reduced} {first} to {last}"
        return BadRecordError(text)

    def blank(self, size: tuple[int, int]) -> np.ndarray:
        """Labels of pixels that don't count, uint8 `[h, w]`."""
        return np.full(size, IGNORED, np.uint8)
