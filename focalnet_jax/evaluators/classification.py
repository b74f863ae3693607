"""Top-1 and top-5 accuracy, and the loss, over a whole split."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

Batch = dict[str, jax.Array]


class Classification:
    """Counts every example exactly once: rows with a False `mask` don't count.

    Args:
      predict_fn: from parameters and images to logits `[b, classes]`.
      make_batches: starts anew over the split; batches hold `image`, `label` and
        `mask`, and are global arrays.
      name: before each metric's name, as in `test/top1`.
    """

    def __init__(
        self,
        predict_fn: Callable[[Any, jax.Array], jax.Array],
        make_batches: Callable[[], Iterable[Batch]],
        *,
        name: str = "test",
    ):
        self._make_batches = make_batches
        self._name = name

        @jax.jit
        def count(params, batch):
            logits = predict_fn(params, batch["image"])
            return _sums(logits, batch["label"], batch["mask"])

        self._count = count

    def run(self, params: Any) -> Iterator[tuple[str, float]]:
        """Yields names and values: accuracies as fractions, the mean loss, the count."""
        sums = []
        for batch in self._make_batches():
            sums.append(self._count(params, batch))
            jax.block_until_ready(sums[-2:][0])  # one batch in advance, not the split
        totals = jax.tree.map(lambda *parts: sum(p.item() for p in parts), *sums)
        for metric in ("top1", "top5", "loss"):
            yield f"{self._name}/{metric}", totals[metric] / totals["examples"]
        yield f"{self._name}/examples", totals["examples"]


def _sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    hits = (best == labels[:, None]) & mask[:, None]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return {
        "top1": hits[:, :1].sum(),
        "top5": hits.sum(),
        "loss": jnp.where(mask, losses, 0).sum(),
        "examples": mask.sum(),
    }
