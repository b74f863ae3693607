"""Depthwise kernels of another size than a model has.

The official recipes for dense prediction start from weights for ImageNet, and have larger
windows there. They put zeros around the kernels.
"""

import re
from collections.abc import Sequence

import numpy as np


def is_focal_kernel(path: str) -> bool:
    """Whether the parameter at a path is the depthwise kernel of a focal level."""
    return re.search(r"/focal_layers_\d+/kernel$", path) is not None


def resized_kernel(
    kernel: np.ndarray, size: Sequence[int], *, causal: bool
) -> np.ndarray:
    """Zero-pads or crops the spatial axes of a kernel around its centre.

    The centre is where the operator has it: of an even size, the first of both in the
    middle, and on the first axis of a causal net the last.

    Args:
      kernel: `[*old_size, 1, channels]`.
      size: the new one of each spatial axis.
      causal: whether it is of a causal net.
    """
    for axis, wanted in enumerate(size):
        have = kernel.shape[axis]
        before = (wanted - 1) // 2 - (have - 1) // 2
        if causal and axis == 0:
            before = wanted - have
        margins = [(0, 0)] * kernel.ndim
        margins[axis] = (max(before, 0), max(wanted - have - before, 0))
        start = max(-before, 0)
        kernel = np.take(np.pad(kernel, margins), range(start, start + wanted), axis)
    return kernel
