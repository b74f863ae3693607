"""From a record of an image and a label to arrays, on the host."""

import dataclasses
from typing import Any

import numpy as np

from focalnet_jax.data import BadRecordError, EvalTransform, TrainTransform
from focalnet_jax.data.labels import Labels
from focalnet_jax.image_size import height_and_width

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TrainExample:
    """Makes `image`, uint8 `[h, w, 3]`, and `label`, int32, of a record.

    Attributes:
      transform: of the encoded image.
      labels: which ones are right.
    """

    transform: TrainTransform
    labels: Labels

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, Any]:
        return {
            "image": self.transform(_encoded(record), rng),
            "label": self.labels.read(record),
        }


@dataclasses.dataclass(frozen=True)
class EvalExample:
    """The same for evaluation; None makes a blank row.

    Where several labels of a record are right, there is `labels`, bool `[classes]`, in
    place of `label`.
    """

    transform: EvalTransform
    labels: Labels

    def __call__(self, record: Record | None) -> dict[str, Any]:
        if record is None:
            sides = height_and_width(self.transform.size)
            image, label = np.zeros((*sides, 3), np.uint8), self.labels.blank()
        else:
            image = self.transform(_encoded(record))
            label = self.labels.read(record)
        return {"image": image, "labels" if self.labels.are_sets else "label": label}


@dataclasses.dataclass(frozen=True)
class TrainImage:
    """Makes `image`, uint8 `[h, w, 3]`, of a record, whatever its label is.

    Attributes:
      transform: of the encoded image.
    """

    transform: TrainTransform

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, Any]:
        return {"image": self.transform(_encoded(record), rng)}


@dataclasses.dataclass(frozen=True)
class EvalImage:
    """The same for evaluation; None makes a blank row."""

    transform: EvalTransform

    def __call__(self, record: Record | None) -> dict[str, Any]:
        if record is None:
            sides = height_and_width(self.transform.size)
            return {"image": np.zeros((*sides, 3), np.uint8)}
        return {"image": self.transform(_encoded(record))}


def _encoded(record: Record) -> bytes:
    if not record["image"]:
        raise BadRecordError("its image has zero bytes")
    return record["image"]
