"""The names of the classes of ImageNet, for heads of the official sizes."""

import functools
import importlib.resources

# Rows of a head for ImageNet-1K, and for ImageNet-22K.
IMAGENET_1K, IMAGENET_22K = 1_000, 21_842

_FILE = "imagenet_classes.tsv"


def imagenet_classes(rows: int) -> tuple[str, ...] | None:
    """The names in the order of the rows of a head; None if it isn't one for ImageNet.

    The order is that of the official releases. A class of several names has all of them,
    such as `"tench, Tinca tinca"`.
    """
    if rows not in (IMAGENET_1K, IMAGENET_22K):
        return None
    return _names()[:rows]


@functools.cache
def _names() -> tuple[str, ...]:
    file = importlib.resources.files(__package__).joinpath(_FILE)
    lines = file.read_text(encoding="utf-8").splitlines()
    return tuple(line.partition("\t")[2] for line in lines if not line.startswith("#"))
