"""From a record of an image and a mask to arrays, on the host."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from focalnet_jax.data import EvalSegmentationTransform, TrainSegmentationTransform
from focalnet_jax.data.images.segmentation import decode_with_label, placed
from focalnet_jax.data.mask_labels import MaskLabels
from focalnet_jax.data.sources.mask_classes import IGNORED

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TrainSegmentation:
    """Makes a training row of a record.

    The row has `image`, uint8 `[h, w, 3]`; `label`, uint8 `[h, w]`, which is 255 where a
    pixel doesn't count; and `valid`, int32 `[2]`, the height and width of the part that
    is inside of the record's image. Outside of it the image is 0, as it has to be after
    it is normalised, too.

    Attributes:
      transform: of the image and its labels.
      labels: what masks can hold.
    """

    transform: TrainSegmentationTransform
    labels: MaskLabels

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, Any]:
        label = self.labels.read(record)
        return self.transform(record["image"], label, rng)._asdict()


@dataclasses.dataclass(frozen=True)
class EvalSegmentation:
    """Makes a row for evaluation of a record, and of None a blank one.

    The row has `image`, uint8 `[*canvas, 3]`, and `valid`, int32 `[2]`, the height and
    width of the resized image on it; `label`, uint8 `[*label_canvas]`, at the image's
    original size, 255 outside of it and where a pixel doesn't count; and `size`, int32
    `[2]`, the original height and width.

    Attributes:
      labels: what masks can hold.
      scale: the image is resized to fit into it: see `resized_size`.
      canvas: height and width of a canvas for the resized image.
      label_canvas: height and width of a canvas for the labels.
      more: further scales, each with its canvas. The image that fits into the first of
        them is `image_1`, its height and width `valid_1`, and so on.
    """

    labels: MaskLabels
    scale: tuple[int, int]
    canvas: tuple[int, int]
    label_canvas: tuple[int, int]
    more: tuple[tuple[tuple[int, int], tuple[int, int]], ...] = ()

    def __call__(self, record: Record | None) -> dict[str, Any]:
        if record is None:
            return self._blank()
        label = self.labels.read(record)
        image = decode_with_label(record["image"], label)
        row = {
            "label": placed(label, self.label_canvas, fill=IGNORED),
            "size": np.array(label.shape, np.int32),
        }
        for suffix, scale, canvas in self._views():
            transform = EvalSegmentationTransform(scale, canvas)
            row[f"image{suffix}"], row[f"valid{suffix}"] = transform(image)
        return row

    def _views(self) -> Iterator[tuple[str, tuple[int, int], tuple[int, int]]]:
        """The end of the names of each view's arrays, its scale and its canvas."""
        yield "", self.scale, self.canvas
        for number, (scale, canvas) in enumerate(self.more, start=1):
            yield f"_{number}", scale, canvas

    def _blank(self) -> dict[str, Any]:
        row = {
            "label": self.labels.blank(self.label_canvas),
            "size": np.array(self.label_canvas, np.int32),
        }
        for suffix, _, canvas in self._views():
            row[f"image{suffix}"] = np.zeros((*canvas, 3), np.uint8)
            # All of it is valid, so that no mean is over nothing.
            row[f"valid{suffix}"] = np.array(canvas, np.int32)
        return row
