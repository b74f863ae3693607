"""The sizes in the files of transformers' image processors, and what they are here.

The files that this package writes have an entry of its own, which transformers passes
over: what its sizes alone don't tell.
"""

import math
from typing import Any

from focalnet_jax.convert.entries import OBJECT, Content, read_entry, wrong
from focalnet_jax.errors import shown
from focalnet_jax.image_size import LARGEST_SIDE, height_and_width
from focalnet_jax.preprocessing import CROP, VALUES, Preprocessing
from focalnet_jax.values import Either, Several, Whole

SIDE = Whole(1, LARGEST_SIDE)
_SIZE = Either((SIDE, Several(SIDE, least=2, most=2, noun="list"), OBJECT))

_OWN = "focalnet_jax"
_OWN_ENTRIES = ("crop", "squash", "floor_offsets")


def written_sizes(preprocessing: Preprocessing) -> dict[str, Any]:
    """The entries of a `BitImageProcessor` that make images of the same sizes.

    There is none for a result that is no square, and keeps the proportions of images.
    Then they are lost, and images that have the proportions of the result are the same.
    """
    height, width = height_and_width(preprocessing.image_size)
    covered = [int(side / preprocessing.crop) for side in (height, width)]
    size = dict(zip(("height", "width"), covered))
    if height == width and not preprocessing.squash:
        size = {"shortest_edge": covered[0]}
    return {
        "size": size,
        "crop_size": {"height": height, "width": width},
        _OWN: {name: getattr(preprocessing, name) for name in _OWN_ENTRIES},
    }


def read_sizes(
    given: Content, kind: str, crops: bool, origin: str
) -> tuple[dict[str, Any], list[str]]:
    """The size, the crop and whether images are squashed, as of `Preprocessing`; notes.

    What this package has written also says how the place of the crop is rounded.

    Args:
      given: the entries of the file, or what they are by default.
      kind: the image processor.
      crops: whether it cuts out the middle after resizing.
      origin: the file, for messages.
    """
    resized, squash, notes = _size(given, "size", kind in ("ViT", "DeiT"), origin)
    if kind == "ConvNext":
        if crops:
            notes.append(
                f"{origin} has do_center_crop, which preprocessing does not do after the "
                "resizing of ConvNext"
            )
        share = read_entry(given, "crop_pct", CROP, origin=origin)
        crop = share
        if squash or resized[0] >= 384:
            squash, crop = True, 1.0
        else:
            edge = int(resized[0] / share)
            crop = _share(resized, (edge, edge))
        return dict(image_size=resized, crop=crop, squash=squash), notes
    height, width = resized
    if not crops:
        if not squash:
            notes.append(
                f"{origin} has no crop, so that images keep their aspect ratio there; "
                "preprocessing makes all images of one size: it cuts out the middle "
                f"{height} x {width}"
            )
        return dict(image_size=resized, crop=1.0, squash=squash), notes
    image_size, _, crop_notes = _size(given, "crop_size", True, origin)
    if (own := _own_sizes(given, image_size, origin)) is not None:
        return own, []
    crop = _share(image_size, resized)
    covered = tuple(int(side / crop) for side in image_size)
    if covered != resized:
        theirs = f"{height} x {width}" if squash else f"a shorter side of {height}"
        ours = "" if squash else "what covers "
        notes.append(
            f"{origin} resizes to {theirs} and cuts out {image_size[0]} x "
            f"{image_size[1]}, which preprocessing can't do alike for all images: it "
            f"resizes to {ours}{covered[0]} x {covered[1]} and cuts out the middle"
        )
    return dict(image_size=image_size, crop=crop, squash=squash), notes + crop_notes


def _size(
    given: Content, entry: str, is_both: bool, origin: str
) -> tuple[tuple[int, int], bool, list[str]]:
    """Height and width, which are equal for a shorter side; whether both are; notes.

    Args:
      given: the entries of the file, or what they are by default.
      entry: the name of the size.
      is_both: whether a single number is of both sides.
      origin: the file, for messages.
    """
    size = read_entry(given, entry, _SIZE, origin=origin)
    if isinstance(size, int):
        return (size, size), is_both, []
    if isinstance(size, tuple):
        return size, True, []
    sides = {
        name: read_entry(size, name, SIDE, origin=f"{origin}, in {entry},")
        for name in ("shortest_edge", "height", "width")
    }
    shortest, height, width = sides.values()
    if shortest is None and None in (height, width):
        raise wrong(origin, entry, size, "is not a shortest_edge, or height and width")
    heeded = ("shortest_edge",) if shortest else ("height", "width")
    others = [k for k, v in size.items() if v is not None and k not in heeded]
    notes = []
    if others:
        notes = [
            f"{origin} has {entry}={shown(dict(size))}, of which preprocessing heeds "
            f"{' and '.join(heeded)} alone"
        ]
    if shortest:
        return (shortest, shortest), False, notes
    return (height, width), True, notes


def _share(image_size: tuple[int, int], resized: tuple[int, int]) -> float:
    """The share `crop` such that `int(side / crop)` is a side of the resized image.

    There may be none for both sides. Then they become so large that they cover `resized`,
    and the image at least. Nothing is made black, so 1 is the largest share.
    """
    crop = min(1.0, *(side / whole for side, whole in zip(image_size, resized)))
    smaller = math.nextafter(crop, 0)
    is_short = any(
        int(side / crop) < whole <= int(side / smaller)
        for side, whole in zip(image_size, resized)
    )
    return smaller if is_short else crop


def _own_sizes(
    given: Content, image_size: tuple[int, int], origin: str
) -> dict[str, Any] | None:
    """What `written_sizes` recorded; None if it is not there, or the sizes are others."""
    own = read_entry(given, _OWN, OBJECT, origin=origin, default={})
    values = {
        name: read_entry(own, name, VALUES[name], origin=f"{origin}, in {_OWN},")
        for name in _OWN_ENTRIES
    }
    if None in values.values():
        return None
    sizes = dict(image_size=image_size) | values
    written = written_sizes(Preprocessing(**sizes))
    is_as_written = all(given.get(name) == written[name] for name in written)
    return sizes if is_as_written else None
