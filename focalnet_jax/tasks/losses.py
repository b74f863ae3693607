"""Losses of classification and of segmentation."""

import chex
import jax
import jax.numpy as jnp
import optax

from focalnet_jax.errors import check_choice
from focalnet_jax.heads import SegmenterLogits
from focalnet_jax.ops.resize import resize
from focalnet_jax.tasks.base import Loss

# What the sum over pixels is divided by: see `segmentation_loss`.
LOSS_OVER = ("all", "labelled")
# The label of a pixel that has none.
IGNORED = 255


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


def pixel_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Softmax cross entropy of each pixel, `[b, h, w]`, in float32 or wider.

    Args:
      logits: `[b, h, w, classes]`.
      labels: integers `[b, h, w]`; the loss is 0 where they are `IGNORED`.
    """
    chex.assert_rank(labels, 3)
    chex.assert_type(labels, int)
    chex.assert_equal_shape_prefix([logits, labels], 3)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    labels = labels.astype(jnp.int32)[..., None]
    classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 3)
    # A sum with one term, which XLA merges with the others; a gather would be slower.
    chosen = jnp.where(classes == labels, logits, 0).sum(-1)
    losses = jax.nn.logsumexp(logits, axis=-1) - chosen
    return jnp.where(labels[..., 0] == IGNORED, 0, losses)


def segmentation_loss(
    logits: SegmenterLogits,
    labels: jax.Array,
    *,
    valid: jax.Array | None = None,
    auxiliary_weight: float = 0.4,
    loss_over: str = "all",
) -> Loss:
    """The loss of UPerNet: cross entropy of the pixels, at the size of the labels.

    Logits are resized to the labels, bilinearly, as in mmsegmentation and transformers.

    Args:
      logits: what the model returns in training.
      labels: integers `[b, h, w]`, the classes of pixels, and `IGNORED` for those that
        have none. No other number may be there.
      valid: int32 `[b, 2]`, height and width of each image on the canvas of the labels,
        where the model was given them. Labels outside are `IGNORED`.
      auxiliary_weight: what the loss of the auxiliary head is multiplied by.
      loss_over: what the sum is divided by. `"all"` for the number of all pixels, to
        which those without a label add nothing: so it is in mmsegmentation, unless it
        has `avg_non_ignore=True`, and in the paper's recipe. `"labelled"` for the number
        of those that have a label, as in torch and transformers.

    Returns:
      A loss whose parts are `decode_loss` and, where there is an auxiliary head,
      `auxiliary_loss`, each without its weight.

    Raises:
      OptionError: another `loss_over`; it is a ValueError.
    """
    check_choice("loss_over", loss_over, LOSS_OVER)

    def sum_of(values, values_valid):
        wide = values.astype(jnp.promote_types(values.dtype, jnp.float32))
        resized = resize(wide, labels.shape[1:], valid=values_valid, new_valid=valid)
        return pixel_cross_entropy(resized, labels).sum()

    total = sum_of(logits.logits, logits.valid)
    parts = {"decode_loss": total}
    if logits.auxiliary is not None:
        auxiliary = sum_of(logits.auxiliary, logits.auxiliary_valid)
        parts["auxiliary_loss"] = auxiliary
        total += auxiliary_weight * auxiliary
    weight: jax.Array | float = float(labels.size)
    if loss_over == "labelled":
        weight = (labels != IGNORED).sum(dtype=total.dtype)
    return Loss(total, weight, parts)
