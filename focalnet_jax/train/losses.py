"""Losses of classification."""

import chex
import jax
import jax.numpy as jnp
import optax


def cross_entropy(
    logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0
) -> jax.Array:
    """Softmax cross entropy, the mean over the batch, in float32 or wider.

    Args:
      logits: `[b, classes]`.
      labels: integers `[b]`.
      label_smoothing: the share of the target spread evenly over all classes, the
        right one included: Szegedy et al., arXiv 1512.00567, as in timm and torch.
    """
    chex.assert_rank([logits, labels], [2, 1])
    chex.assert_equal_shape_prefix([logits, labels], 1)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    targets = optax.smooth_labels(targets, label_smoothing)
    return optax.softmax_cross_entropy(logits, targets).mean()
