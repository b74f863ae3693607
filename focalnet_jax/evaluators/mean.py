"""Means of numbers that a task predicts for each example, such as losses."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from focalnet_jax.evaluators.totals import Batch, means


class Mean:
    """Averages over every example exactly once: rows whose `mask` is False don't count.

    Args:
      predict: from variables and a batch to numbers `[b]` by metric.
      make_batches: starts anew over the split; batches hold `mask`.
    """

    def __init__(
        self,
        predict: Callable[[Any, Batch], dict[str, jax.Array]],
        make_batches: Callable[[], Iterable[Batch]],
    ):
        self._make_batches = make_batches

        @jax.jit
        def count(variables, batch):
            mask = batch["mask"]
            sums = {
                metric: jnp.where(mask, values, 0).sum()
                for metric, values in predict(variables, batch).items()
            }
            return sums | {"examples": mask.sum()}

        self._count = count

    def run(
        self,
        variables: Any,
        *,
        name: str = "test",
        before_batch: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[str, float]]:
        """Yields names and means, and the number of examples; see `means`."""
        yield from means(
            self._count,
            self._make_batches(),
            variables,
            name=name,
            before_batch=before_batch,
        )
