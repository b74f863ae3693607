"""Accuracy over a whole split: top-1, top-5 and the loss; or by sets of labels."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from focalnet_jax.evaluators.totals import Batch, means


class Accuracy:
    """Counts every example exactly once: rows whose `mask` is False don't count.

    Batches may have `labels`, sets of right answers, in place of `label`. Then top-1 is
    the share of examples whose answer is in their set, top-5 of those that have one of
    five answers there, and there is no loss. Examples with an empty set don't count, as
    in ImageNet-ReaL (Beyer et al., arXiv 2006.07159).

    Args:
      predict: from variables and a batch to logits `[b, classes]`.
      make_batches: starts anew over the split; batches hold `mask`, and `label` or
        `labels`, bool `[b, k]` for the first k classes; all are global arrays.
      subset: the labels among which the answer is sought; None for all.
    """

    def __init__(
        self,
        predict: Callable[[Any, Batch], jax.Array],
        make_batches: Callable[[], Iterable[Batch]],
        *,
        subset: Sequence[int] | None = None,
    ):
        self._make_batches = make_batches

        @jax.jit
        def count(variables, batch):
            logits = predict(variables, batch)
            logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
            if subset is not None:
                is_in = np.isin(np.arange(logits.shape[-1]), subset)
                logits = jnp.where(is_in, logits, -jnp.inf)
            if "labels" in batch:
                return _sums_of_sets(logits, batch["labels"], batch["mask"])
            return _sums(logits, batch["label"], batch["mask"])

        self._count = count

    def run(
        self,
        variables: Any,
        *,
        name: str = "test",
        before_batch: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[str, float]]:
        """Yields names and values: accuracies as fractions, the mean loss, the count.

        Where nothing counts, there is only the count.

        Args:
          variables: those of the model to be evaluated.
          name: that metrics' names begin with.
          before_batch: called before each batch; may raise to end the evaluation.
        """
        yield from means(
            self._count,
            self._make_batches(),
            variables,
            name=name,
            before_batch=before_batch,
        )


def _sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    hits = (best == labels[:, None]) & mask[:, None]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return {
        "top1": hits[:, :1].sum(),
        "top5": hits.sum(),
        "loss": jnp.where(mask, losses, 0).sum(),
        "examples": mask.sum(),
    }


def _sums_of_sets(
    logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    # The model may have more classes than the sets know: an answer there is wrong.
    beyond = logits.shape[-1] - labels.shape[-1]
    labels = jnp.pad(labels, ((0, 0), (0, beyond))) & mask[:, None]
    _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    is_right = jnp.take_along_axis(labels, best, axis=-1)
    return {
        "top1": is_right[:, 0].sum(),
        "top5": is_right.any(-1).sum(),
        "examples": labels.any(-1).sum(),
    }
