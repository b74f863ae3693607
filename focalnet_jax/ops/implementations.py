"""The ways to compute focal contextualisation and gated aggregation, by name.

Each way is a whole function from context, gates and kernels to the aggregated context. So
a fused kernel can replace all of it, and not only the convolutions. To add one, write the
function and enter it in `IMPLEMENTATIONS`:

    IMPLEMENTATIONS["fused"] = Implementation(fused_aggregation, "One kernel for ...")

`create_model(..., implementation="fused")` and the tests in `tests/ops` then know it.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import chex
import jax

from focalnet_jax.errors import check_choice
from focalnet_jax.ops.focal_modulation import aggregate_level_by_level


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute `aggregate_context`.

    Attributes:
      function: takes `context`, `gates` and `kernels`, and `normalize` as a keyword, and
        returns the aggregated context, all as `aggregate_context` describes them. It must
        support reverse-mode differentiation with respect to all three.
      description: how the function computes, in a sentence.
    """

    function: Callable[..., jax.Array]
    description: str


IMPLEMENTATIONS: dict[str, Implementation] = {
    "auto": Implementation(
        functools.partial(aggregate_level_by_level, convolution="auto"),
        "Computes level by level, with the convolution that suits the platform that the "
        "program is lowered for: `shifted` on CPUs and `lax` elsewhere.",
    ),
    "lax": Implementation(
        functools.partial(aggregate_level_by_level, convolution="lax"),
        "Computes level by level, with XLA's convolution.",
    ),
    "shifted": Implementation(
        functools.partial(aggregate_level_by_level, convolution="shifted"),
        "Computes level by level, with sums of shifted maps as convolutions.",
    ),
}


def aggregate_context(
    context: jax.Array,
    gates: jax.Array,
    kernels: Sequence[jax.Array],
    *,
    normalize: bool = False,
    implementation: str = "auto",
) -> jax.Array:
    """Gathers context in levels, each wider than the last, and adds them up gated.

    `context_l = GELU(depthwise_conv(context_{l-1}, kernel_l))` for each level. A global
    level follows: the GELU of the mean of the last level over space. The result is the
    sum of all levels, each of which is multiplied at every position by its gate.

    Args:
      context: `[batch, *spatial, channels]`, with one or more spatial axes.
      gates: `[batch, *spatial, levels + 1]`, which no activation changes; the last gate
        is that of the global level.
      kernels: `[*kernel_size, 1, channels]` for each level; all sizes are odd.
      normalize: divides the sum by `levels + 1` (`normalize_modulator` in the official
        code).
      implementation: a name in `IMPLEMENTATIONS`.

    Returns:
      The aggregated context, `[batch, *spatial, channels]`, in the dtype of `context`.

    Raises:
      OptionError: an implementation that does not exist.
      AssertionError: gates whose shape or dtype does not fit.
    """
    check_choice("implementation", implementation, IMPLEMENTATIONS)
    chex.assert_shape(gates, (*context.shape[:-1], len(kernels) + 1))
    chex.assert_type(gates, context.dtype)
    compute = IMPLEMENTATIONS[implementation].function
    aggregated = compute(context, gates, kernels, normalize=normalize)
    chex.assert_equal_shape([aggregated, context])
    return aggregated
