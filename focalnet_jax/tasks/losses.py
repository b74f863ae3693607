"""Losses of classification."""

import chex
import jax
import jax.numpy as jnp
import optax


def cross_entropy(
    logits: jax.Array, targets: jax.Array, *, label_smoothing: float = 0.0
) -> jax.Array:
    """Softmax cross entropy of each row, `[b]`, in float32 or wider.

    Args:
      logits: `[b, classes]`.
      targets: labels, integers `[b]`, or distributions over classes, `[b, classes]`.
      label_smoothing: the share of the target spread evenly over all classes, the
        right one included: Szegedy et al., arXiv 1512.00567, as in timm and torch.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if jnp.issubdtype(targets.dtype, jnp.integer):
        chex.assert_rank(targets, 1)
        targets = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
    chex.assert_rank(logits, 2)
    chex.assert_equal_shape([logits, targets])
    targets = optax.smooth_labels(targets.astype(logits.dtype), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets)
