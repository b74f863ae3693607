"""Depthwise kernels of another size than a model has.

The official recipes for dense prediction start from weights for ImageNet, and have larger
windows there. They put zeros around the kernels.
"""

import re
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array = TypeVar("Array", np.ndarray, jax.Array)


def is_focal_kernel(path: str) -> bool:
    """Whether the parameter at a path is the depthwise kernel of a focal level."""
    return re.search(r"/focal_layers_\d+/kernel$", path) is not None


def resized_kernel(kernel: Array, size: Sequence[int], *, causal: bool) -> Array:
    """Zero-pads or crops the spatial axes of a kernel around its centre.

    The centre is where the operator has it: of an even size, the first of both in the
    middle, and on the first axis of a causal net the last.

    Args:
      kernel: `[*old_size, 1, channels]`.
      size: the new one of each spatial axis.
      causal: whether it is of a causal net.
    """
    margins = []
    for axis, (have, wanted) in enumerate(zip(kernel.shape, size)):
        before = (wanted - 1) // 2 - (have - 1) // 2
        if causal and axis == 0:
            before = wanted - have
        margins.append((before, wanted - have - before))
    kept = tuple(
        slice(max(-before, 0), have - max(-after, 0))
        for (before, after), have in zip(margins, kernel.shape)
    )
    added = [(max(before, 0), max(after, 0)) for before, after in margins]
    added += [(0, 0)] * (kernel.ndim - len(size))
    pad = np.pad if isinstance(kernel, np.ndarray) else jnp.pad
    return pad(kernel[kept], added)
