"""The ways to compute focal contextualisation and gated aggregation, by name.

Each way is a whole function from context, gates and kernels to the aggregated context. So
a fused kernel can replace all of it, and not only the convolutions. To add one, write the
function and enter it in `IMPLEMENTATIONS`:

    IMPLEMENTATIONS["fused"] = Implementation(fused_aggregation, "One kernel for ...")

`create_model(..., implementation="fused")` and the tests in `tests/ops` then know it.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax

from focalnet_jax.errors import OptionError, check_choice
from focalnet_jax.ops.focal_modulation import aggregate_level_by_level
from focalnet_jax.ops.fused_aggregation import (
    aggregate_where_it_suits,
    fused_aggregation,
)


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute `aggregate_context`.

    Attributes:
      function: takes `context`, `gates` and `kernels`, and `normalize` as a keyword, and
        returns the aggregated context, all as `aggregate_context` describes them. It must
        support reverse-mode differentiation with respect to all three. If it has them as
        keywords, it is also given those of `biases`, `causal`, `global_axes` and `valid`
        that a net uses; a net that uses one that it lacks is an error.
      description: how the function computes, in a sentence.
    """

    function: Callable[..., jax.Array]
    description: str


IMPLEMENTATIONS: dict[str, Implementation] = {
    "auto": Implementation(
        aggregate_where_it_suits,
        "`fused` in programs that are traced for TPUs. In others it computes level by "
        "level, with the convolution that suits the platform that the program is lowered "
        "for: `shifted` on CPUs and `lax` elsewhere.",
    ),
    "fused": Implementation(
        fused_aggregation,
        "One kernel for TPUs computes all levels, and another one their gradient.",
    ),
    "interpreted": Implementation(
        functools.partial(fused_aggregation, interpret=True),
        "The kernels of `fused`, interpreted: slow, for tests of them on any platform.",
    ),
    "lax": Implementation(
        functools.partial(aggregate_level_by_level, convolution="lax"),
        "Computes level by level, with XLA's convolution.",
    ),
    "shifted": Implementation(
        functools.partial(aggregate_level_by_level, convolution="shifted"),
        "Computes level by level, with sums of shifted maps as convolutions.",
    ),
    "triton": Implementation(
        functools.partial(fused_aggregation, platform="cuda"),
        "Kernels for NVIDIA GPUs compute each convolution with its GELU, and their "
        "gradients; Triton compiles them. They have not run on a GPU yet.",
    ),
    "triton_interpreted": Implementation(
        functools.partial(fused_aggregation, platform="cuda", interpret=True),
        "The kernels of `triton`, interpreted: slow, for tests of them on any platform.",
    ),
}
"""The ways to compute `aggregate_context` by name."""


def aggregate_context(
    context: jax.Array,
    gates: jax.Array,
    kernels: Sequence[jax.Array],
    *,
    biases: Sequence[jax.Array] | None = None,
    normalize: bool = False,
    causal: bool = False,
    global_axes: Sequence[int] = (),
    valid: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Gathers context in levels, each wider than the last, and adds them up gated.

    `context_l = GELU(depthwise_conv(context_{l-1}, kernel_l))` for each level. A global
    level follows: the GELU of the mean of the last level over space. The result is the
    sum of all levels, each of which is multiplied at every position by its gate.

    With `causal`, no position is told of later ones. The first spatial axis is time, the
    convolutions have causal padding, and the mean over time becomes one more convolution,
    as in FocalCodec-Stream. Its kernel is as long as the past that it gathers.

    Args:
      context: `[batch, *spatial, channels]`, with one or more spatial axes.
      gates: `[batch, *spatial, levels + 1]`, which no activation changes; the last gate
        is that of the global level.
      kernels: `[*kernel_size, 1, channels]` for each level, and with `causal` one more,
        `[length, 1, ..., 1, channels]`.
      biases: `[channels]` for each kernel, which its convolution adds.
      normalize: divides the sum by `levels + 1` (`normalize_modulator` in the official
        code).
      causal: lets each position see the past alone.
      global_axes: the spatial axes, counted from 0, that the mean is taken over; () for
        all of them. `(1, 2)` of a video takes one for each frame.
      valid: int `[batch, rank]`, the size of each image on its canvas, see
        `ops/canvas.py`. What the context holds outside of it is seen by no level, so
        that an image gets what it gets alone. None for the size of the canvas.
      implementation: a name in `IMPLEMENTATIONS`.

    Returns:
      The aggregated context, `[batch, *spatial, channels]`, in the dtype of `context`.
      Outside of `valid` it means nothing.

    Raises:
      OptionError: an implementation that does not exist, or that can't compute this.
      AssertionError: gates whose shape or dtype does not fit.
    """
    check_choice("implementation", implementation, IMPLEMENTATIONS)
    chex.assert_shape(gates, (*context.shape[:-1], len(kernels) + (not causal)))
    chex.assert_type(gates, context.dtype)
    compute = IMPLEMENTATIONS[implementation].function
    options = dict(biases=biases, causal=causal, global_axes=global_axes)
    used: dict[str, Any] = {name: value for name, value in options.items() if value}
    if valid is not None:
        chex.assert_shape(valid, (context.shape[0], context.ndim - 2))
        used["valid"] = valid
    if lacking := sorted(name for name in used if not _takes(compute, name)):
        raise OptionError(
            "implementation",
            f"={implementation!r} can't compute with {' and '.join(lacking)}; "
            "implementation='auto' can",
        )
    aggregated = compute(context, gates, kernels, normalize=normalize, **used)
    chex.assert_equal_shape([aggregated, context])
    return aggregated


def _takes(function: Callable[..., jax.Array], option: str) -> bool:
    parameters = inspect.signature(function).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return takes_all or option in parameters
