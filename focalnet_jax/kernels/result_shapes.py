"""How the results of kernels are described to Pallas."""

from collections.abc import Sequence
from typing import Any

import jax


def result_shape(
    shape: Sequence[int], dtype: Any, *, like: jax.Array
) -> jax.ShapeDtypeStruct:
    """Describes a result; inside `jax.shard_map`, one that differs as `like` does."""
    kind = jax.typeof(like).manual_axis_type
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=kind)
