"""Published accuracies of the variants, and the variant of a model."""

import functools
import importlib.resources
from typing import NamedTuple

from focalnet_jax.image_size import ImageSize
from focalnet_jax.models import create_model, list_models
from focalnet_jax.models.size import Model
from focalnet_jax.models.variants import ENCODER_OPTIONS
from focalnet_jax.weights.description import FREE_OPTIONS

_FILE = "published.tsv"
_IMAGE_SIZE = 224  # All that is published there was measured on such images.


class Published(NamedTuple):
    """A published accuracy.

    Attributes:
      top1, top5: in percent, as they are published; None if one is not.
      source: `"paper"` or `"timm"`, which `published.tsv` explains.
    """

    top1: str
    top5: str | None
    source: str


def published(
    variant: str | None, data_set: str, *, image_size: ImageSize = _IMAGE_SIZE
) -> list[Published]:
    """What is published of a variant on a data set; the paper comes first.

    Args:
      variant: the name of it; nothing is published of None.
      data_set: the name of the data set.
      image_size: of its images. Nothing is published of other sizes than 224.
    """
    if image_size != _IMAGE_SIZE:
        return []
    return _table().get((variant or "", data_set), [])


@functools.cache
def _table() -> dict[tuple[str, str], list[Published]]:
    text = importlib.resources.files(__package__).joinpath(_FILE).read_text("utf-8")
    table: dict[tuple[str, str], list[Published]] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            variant, data_set, top1, top5, source = line.split("\t")
            row = Published(top1, None if top5 == "-" else top5, source)
            table.setdefault((variant, data_set), []).append(row)
    return table


def variant_of(model: Model) -> str | None:
    """The name of the variant that a model is, but for its head; None if it is none."""
    options = ENCODER_OPTIONS.keys() - {*FREE_OPTIONS}
    for name in list_models():
        encoder = create_model(name, num_classes=0).encoder
        if all(getattr(encoder, o) == getattr(model.encoder, o) for o in options):
            return name
    return None
