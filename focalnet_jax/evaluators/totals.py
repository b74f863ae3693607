"""Sums over a whole split, batch by batch, and their means."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

Batch = dict[str, jax.Array]


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
      count: a compiled function from variables and a batch to sums by metric, and
        `examples`, the number that they are sums of.
      batches: of the split.
      variables: those of the model to be evaluated.
      name: that metrics' names begin with.
      before_batch: called before each batch; may raise to end the evaluation.
    """
    sums = []
    for batch in batches:
        before_batch()
        sums.append(count(variables, batch))
        # One batch is sent in advance, not the whole split.
        jax.block_until_ready(sums[-2:][0])
    totals = jax.tree.map(lambda *parts: sum(p.item() for p in parts), *sums)
    examples = totals.pop("examples")
    if examples:
        for metric, total in totals.items():
            yield f"{name}/{metric}", total / examples
    yield f"{name}/examples", examples
