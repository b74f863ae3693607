"""Changes of the floating-point precision of parameters, and what they lose."""

import collections
from typing import Any

import jax.numpy as jnp
import numpy as np

from focalnet_jax.errors import SetupError, argument


def is_count(dtype: Any) -> bool:
    """Whether numbers are whole, such as a count of batches, and have no precision."""
    return jnp.issubdtype(dtype, jnp.integer)


def cast(name: str, array: np.ndarray, dtype: np.dtype | None) -> np.ndarray:
    """Makes a contiguous copy in another precision, or in the same one for None.

    Args:
      name: the array's name, for messages.
      array: floating-point numbers of any shape; of whole numbers the copy has the same
        type, unless `dtype` is another type of whole numbers.
      dtype: the precision of the copy.

    Raises:
      SetupError: `dtype` is no floating-point type, or a number would not fit into it.
    """
    if is_count(array.dtype):
        result = np.array(array, dtype if dtype and is_count(dtype) else None, order="C")
        if np.any(result != array):
            raise SetupError(f"{name} has values too large for {result.dtype}")
        return result
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise SetupError(
            f"{argument('dtype')}={dtype!r} is not floating point, such as 'float16'"
        )
    with np.errstate(over="ignore"):  # The next lines look for overflow.
        result = np.array(array, dtype, order="C")
    if result.dtype != array.dtype and np.any(np.isinf(result) & ~np.isinf(array)):
        raise SetupError(f"{name} has values too large for {result.dtype}")
    return result


def is_exact(before: np.dtype, after: np.dtype) -> bool:
    """Whether every number of precision `before` is also a number of `after`."""
    before, after = jnp.finfo(before), jnp.finfo(after)
    return before.nmant <= after.nmant and before.nexp <= after.nexp


def dtype_notes(
    before: dict[str, np.dtype], after: dict[str, np.dtype]
) -> tuple[str, ...]:
    """Says which dtypes change, for how many parameters, and whether that is exact.

    Args:
      before: dtypes by name.
      after: dtypes by the same names.
    """
    changes = collections.Counter(
        (before[name], after[name])
        for name in before
        if before[name] != after[name] and not is_count(before[name])
    )
    return tuple(
        f"{count:,} tensors: {old} widened to {new}, exactly"
        if is_exact(old, new)
        else f"{count:,} tensors: {old} rounded to {new}"
        for (old, new), count in changes.items()
    )
