"""How a map is cut into bands of rows, of which each fits beside a vector unit (VMEM).

A program of a kernel has a band of 8 images and 128 channels. Bands overlap where
depthwise kernels reach beyond them, and what lies in the overlap is computed twice.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp

IMAGES, CHANNELS = 8, 128  # of a vector register of float32

# A tile is a part of a row whose results are in registers together. There are 64 of them.
MAX_TILE_WIDTH = 14

# The rest of VMEM is the compiler's.
USABLE_VMEM = 0.92


@dataclasses.dataclass(frozen=True)
class Bands:
    """How a map is cut.

    Attributes:
      height, width: of the map.
      sizes: height and width of the depthwise kernel of each level; all are odd.
      rows: of a band; the last band may have less.
    """

    height: int
    width: int
    sizes: tuple[tuple[int, int], ...]
    rows: int

    @property
    def count(self) -> int:
        return math.ceil(self.height / self.rows)

    @property
    def last_rows(self) -> int:
        """Rows of the last band."""
        return self.height - (self.count - 1) * self.rows

    def halo(self, *levels: int) -> int:
        """How many rows beyond a band the kernels of these levels reach together.

        Nothing is beyond a band that is the whole map.
        """
        reach = sum(self.sizes[level][0] // 2 for level in levels)
        return reach if self.count > 1 else 0

    @property
    def whole_halo(self) -> int:
        return self.halo(*range(len(self.sizes)))

    @property
    def margin(self) -> tuple[int, int]:
        """Rows and columns around a band in a buffer; beyond the map they are 0."""
        rows = max(self.whole_halo, *(height // 2 for height, _ in self.sizes))
        return rows, max(width // 2 for _, width in self.sizes)

    @property
    def buffer_shape(self) -> tuple[int, int]:
        rows, columns = self.margin
        return self.rows + 2 * rows, self.width + 2 * columns

    @property
    def tile_width(self) -> int:
        return math.ceil(self.width / math.ceil(self.width / MAX_TILE_WIDTH))

    def rows_with(self, halo: int) -> int:
        """Rows of a block that holds a band and its halo."""
        return min(self.rows + 2 * halo, self.height)

    def first_row(self, start, halo: int):
        """Where such a block begins: at the edges of the map it is moved inward."""
        return jnp.clip(start - halo, 0, self.height - self.rows_with(halo))

    def inputs_halo(self, level: int) -> int:
        """Of the inputs of a level in the backward pass.

        They are needed for the gradient of its kernel, and for what their own gradient is
        multiplied by.
        """
        return max(self.halo(level), self.halo(*range(level)))

    @property
    def slopes_halo(self) -> int:
        """Of the derivatives of GELUs, of all levels but the last."""
        return max(map(self.inputs_halo, range(1, len(self.sizes))), default=0)


def forward_bands(
    height: int, width: int, sizes: Sequence[tuple[int, int]], *, itemsize: int, vmem: int
) -> Bands | None:
    """The fewest bands with which the forward pass fits into so many bytes.

    Args:
      height, width: of the map.
      sizes: height and width of each depthwise kernel.
      itemsize: bytes of an entry of the map.
      vmem: bytes.

    Returns:
      None if no number of bands does.
    """
    return _fewest_bands(height, width, sizes, itemsize, vmem, _bytes_of_forward)


def backward_bands(
    height: int, width: int, sizes: Sequence[tuple[int, int]], *, itemsize: int, vmem: int
) -> Bands | None:
    """As `forward_bands`, for the backward pass."""
    return _fewest_bands(height, width, sizes, itemsize, vmem, _bytes_of_backward)


def _fewest_bands(height, width, sizes, itemsize, vmem, bytes_of) -> Bands | None:
    for count in range(1, height + 1):
        bands = Bands(height, width, tuple(sizes), math.ceil(height / count))
        # With thin bands, most of the work would be done twice.
        if bands.rows < bands.whole_halo:
            return None
        if bytes_of(bands, itemsize) <= USABLE_VMEM * vmem:
            return bands
    return None


def _bytes_of_forward(bands: Bands, itemsize: int) -> int:
    levels, halo = len(bands.sizes), bands.whole_halo
    # Context, gates and result; and the saved maps.
    streamed = bands.rows + 2 * halo + (2 + levels) * bands.rows
    return _bytes_of(bands, itemsize, streamed=streamed, buffers=2, maps=bands.rows)


def _bytes_of_backward(bands: Bands, itemsize: int) -> int:
    # Context and all saved maps but the last; that one, gates and cotangent; and the
    # cotangents of context and gates.
    halos = [bands.inputs_halo(level) for level in range(len(bands.sizes))]
    halos += [bands.whole_halo] * 3 + [0] * 2
    streamed = sum(map(bands.rows_with, halos))
    # Slopes, and sums for the gates.
    maps = bands.rows + 2 * bands.slopes_halo + bands.rows
    return _bytes_of(bands, itemsize, streamed=streamed, buffers=3, maps=maps)


def _bytes_of(bands: Bands, itemsize: int, *, streamed: int, buffers: int, maps: int):
    """Of rows that come and go, and of those that stay.

    The former are there twice, because of double buffering. A row of gates takes as much
    as one of a map, for its lanes are filled up, and so does an entry of a kernel.
    """
    cell = IMAGES * CHANNELS
    taps = sum(map(math.prod, bands.sizes))
    stay = buffers * math.prod(bands.buffer_shape) + maps * bands.width + 4 * taps
    return cell * (2 * itemsize * streamed * bands.width + 4 * stay)
