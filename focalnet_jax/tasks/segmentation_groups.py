"""Groups of images of similar sizes, so that few programs evaluate a whole split.

A program works on canvases of one size. Without groups there would be one program for
each size of images, or all images would lie on a canvas as large as the largest.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from focalnet_jax.data import resized_size

Size = tuple[int, int]

# Sides of canvases are multiples of these, for images and for labels.
_IMAGE_STEP, _LABEL_STEP = 32, 8
# What a pixel of labels costs over one of the resized image: logits of all classes are
# made for the one, and the net is applied to the other.
_LABEL_COST = 0.1
# So many kinds of sizes are compared with each other; more are rounded first.
_MOST_KINDS = 256


class CanvasGroup(NamedTuple):
    """Images that share canvases.

    Attributes:
      indices: of the images.
      canvases: height and width of a canvas for each scale.
      label_canvas: those of a canvas for the labels at their original size.
    """

    indices: tuple[int, ...]
    canvases: tuple[Size, ...]
    label_canvas: Size


@dataclasses.dataclass
class _Kind:
    """Images whose sizes are equal, or that are to share canvases."""

    indices: list[int]
    canvas: np.ndarray  # height and width for the first scale, and for labels

    @property
    def cost(self) -> float:
        return len(self.indices) * _cost(self.canvas).item()


def _cost(canvases: np.ndarray) -> np.ndarray:
    """Of an image on canvases `[..., 4]`."""
    height, width, label_height, label_width = np.moveaxis(canvases, -1, 0)
    return height * width + _LABEL_COST * label_height * label_width


def group_by_size(
    sizes: np.ndarray, *, scales: tuple[Size, ...], most: int
) -> list[CanvasGroup]:
    """Divides images into groups with little padding.

    Kinds of sizes are merged, the pair that adds the least padding first, until there are
    few enough.

    Args:
      sizes: int `[n, 2]`, the height and width of each original image; 0 for one that
        can't be read, which goes with the others.
      scales: that images are resized to fit into, as of `resized_size`.
      most: how many groups there may be.

    Returns:
      Groups, in which every image stands once; indices ascend in each.
    """
    unreadable = [index for index, size in enumerate(sizes.tolist()) if not min(size)]
    readable = [index for index, size in enumerate(sizes.tolist()) if min(size)]
    if not readable:  # The pipeline says what is wrong with them.
        return [_group([*range(len(sizes))], np.ones((1, 2), int), scales)]
    kinds = _kinds_of(sizes, readable, scales[0])
    while len(kinds) > most:
        _merge_nearest(kinds)
    kinds.sort(key=lambda kind: kind.cost)
    kinds[0].indices += unreadable
    return [
        _group(
            sorted(kind.indices),
            sizes[[index for index in kind.indices if min(sizes[index])]],
            scales,
        )
        for kind in kinds
    ]


def _kinds_of(sizes: np.ndarray, indices: list[int], scale: Size) -> list[_Kind]:
    """The kinds of sizes there are, rounded so far that they aren't too many."""
    step = 1
    while True:
        found: dict[tuple[int, ...], list[int]] = {}
        for index in indices:
            size = tuple(sizes[index].tolist())
            image = _rounded(resized_size(size, scale), step * _IMAGE_STEP)
            canvas = (*image, *_rounded(size, step * _LABEL_STEP))
            found.setdefault(canvas, []).append(index)
        if len(found) <= _MOST_KINDS:
            return [_Kind(members, np.array(key)) for key, members in found.items()]
        step *= 2


def _merge_nearest(kinds: list[_Kind]) -> None:
    """Makes one kind of the two that cost least to be merged."""
    canvases = np.stack([kind.canvas for kind in kinds])
    counts = np.array([len(kind.indices) for kind in kinds])
    costs = np.array([kind.cost for kind in kinds])
    together = np.maximum(canvases[:, None], canvases)
    added = (counts[:, None] + counts) * _cost(together) - costs[:, None] - costs
    np.fill_diagonal(added, np.inf)
    first, second = sorted(np.unravel_index(added.argmin(), added.shape))
    other = kinds.pop(second)
    kinds[first].indices += other.indices
    kinds[first].canvas = together[first, second]


def _group(
    indices: list[int], sizes: np.ndarray, scales: tuple[Size, ...]
) -> CanvasGroup:
    """A group on canvases that are no larger than these images need."""
    each = [tuple(size) for size in sizes.tolist()]
    canvases = [
        _rounded(np.max([resized_size(size, scale) for size in each], 0), _IMAGE_STEP)
        for scale in scales
    ]
    return CanvasGroup(
        tuple(indices), tuple(canvases), _rounded(np.max(each, 0), _LABEL_STEP)
    )


def _rounded(size: np.ndarray | Size, step: int) -> Size:
    height, width = (-(-int(side) // step) * step for side in size)
    return height, width


def padding_of(groups: list[CanvasGroup], sizes: np.ndarray, scale: Size) -> float:
    """The share of the canvases' pixels that belongs to no image, at the first scale."""
    whole = inside = 0
    for group in groups:
        height, width = group.canvases[0]
        for index in group.indices:
            if min(size := tuple(sizes[index].tolist())):
                whole += height * width
                inside += np.prod(resized_size(size, scale))
    return 1 - inside / max(whole, 1)
