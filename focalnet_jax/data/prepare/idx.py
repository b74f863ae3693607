"""IDX files, the format in which MNIST, Fashion-MNIST, KMNIST and others are published.

A file is two zero bytes, the number 8 for uint8, the number of axes, their sizes as
big-endian 32-bit integers, and the values: http://yann.lecun.com/exdb/mnist
"""

import gzip
import math
import pathlib
import struct

import numpy as np

from focalnet_jax.errors import SetupError

# For each split, how the names of its two files begin.
SPLITS = {"train": "train", "test": "t10k"}


def read_idx(path: pathlib.Path) -> np.ndarray:
    """The uint8 array in a file, which may be compressed by gzip.

    Raises:
      SetupError: the file is damaged, or is not an IDX file of bytes.
    """
    content = path.read_bytes()
    try:
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        zeros, kind, rank = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{rank}I", content, 4)
    except (OSError, EOFError, struct.error) as error:
        raise SetupError(f"{path} is no whole IDX file: {error}") from error
    if zeros or kind != 8:
        raise SetupError(f"{path} is no IDX file of bytes")
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if len(values) != math.prod(shape):
        raise SetupError(
            f"{path} is cut short or damaged: it promises {math.prod(shape):,} values "
            f"and has {len(values):,}"
        )
    return values.reshape(shape)


def read_split(root: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The images `[n, h, w]` and the labels `[n]` of a split, both uint8.

    Raises:
      SetupError: a file is missing or damaged, or the two files don't belong together.
    """
    arrays = []
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        name = f"{SPLITS[split]}-{kind}"
        found = [path for end in (".gz", "") if (path := root / f"{name}{end}").exists()]
        if not found:
            raise SetupError(f"there is no {name}.gz in {root}")
        arrays.append(read_idx(found[0]))
    images, labels = arrays
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise SetupError(
            f"{root}: images {images.shape} and labels {labels.shape} of {split} don't "
            "belong together"
        )
    return images, labels
