"""Sums over a whole split, batch by batch, and their means."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

Batch = dict[str, jax.Array]


def totals(
    count: Callable[[Any, Batch], dict[str, jax.Array]],
    batches: Iterable[Batch],
    variables: Any,
    *,
    before_batch: Callable[[], None],
) -> dict[str, Any]:
    """Adds up what is counted in each batch.

    Args:
      count: a compiled function from variables and a batch to sums by name.
      batches: of the split.
      variables: those of the model to be evaluated.
      before_batch: called before each batch; may raise to end the evaluation.

    Returns:
      The totals by name: Python numbers for scalars, else int64 or float64 arrays.
    """
    sums = []
    for batch in batches:
        before_batch()
        sums.append(count(variables, batch))
        # One batch is sent in advance, not the whole split.
        jax.block_until_ready(sums[-2:][0])
    return jax.tree.map(lambda *parts: sum(map(_wide, parts)), *sums)


def _wide(part: jax.Array) -> Any:
    """The same numbers in a type whose sums are exact, or nearly so."""
    if not part.ndim:
        return part.item()
    is_whole = np.issubdtype(part.dtype, np.integer)
    return on_host(part).astype(np.int64 if is_whole else np.float64)


def on_host(array: jax.Array) -> np.ndarray:
    """A global array, whole on every process; all of them take part."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def means(
    count: Callable[[Any, Batch], dict[str, jax.Array]],
    batches: Iterable[Batch],
    variables: Any,
    *,
    name: str,
    before_batch: Callable[[], None],
) -> Iterator[tuple[str, float]]:
    """Yields names and means, and the number of examples.

    Where nothing counts, there is only the number.

    Args:
      count: as for `totals`; it also counts `examples`, the number that the others are
        sums of.
      batches, variables, before_batch: as for `totals`.
      name: that metrics' names begin with.
    """
    sums = totals(count, batches, variables, before_batch=before_batch)
    examples = sums.pop("examples")
    if examples:
        for metric, total in sums.items():
            yield f"{name}/{metric}", total / examples
    yield f"{name}/examples", examples
