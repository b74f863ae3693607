"""The operator of a block, and the place to put another one.

An operator is a Flax module that maps `x`, `[b, *spatial, c]`, to the same shape:

    y, outputs = operator(x, train=train)

`outputs` is a dict of arrays, which the model returns under the block's name; it may be
empty. An operator whose call has the parameters `norm` and `as_branch`, as that of the
paper, is given `x` before the LayerNorm in front of it, and that LayerNorm, or None. It
then returns `(x, y), outputs`, and the block adds the two. So one kernel can compute norm
and projection, and its gradient the sum of all that comes back to `x`.

Where images of several sizes lie on canvases, an operator is also given the keyword
`valid`, int `[b, rank]`, the size of each image on `x` (`ops/canvas.py`). What is outside
of an image may then change nothing inside of it. An operator whose call lacks the
parameter can't compute with canvases, and an error says so.

There are two ways to write an operator. One is to change a step of the paper's:

    class MaxModulation(FocalModulation):
        def aggregate(self, context, gates, kernels):
            ...

The other is a module of its own. It has a field for each option that it needs:

    class Shift(nn.Module):
        focal_window: int
        dtype: Any = jnp.float32
        param_dtype: Any = jnp.float32

        @nn.compact
        def __call__(self, x, *, train):
            y = jnp.roll(x, self.focal_window // 2, axis=1)
            types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
            return nn.Dense(x.shape[-1], **types)(y), {}

Pass the class, or a `functools.partial` of it, as `create_model(..., modulation=Shift)`.
Or enter it in `MODULATIONS`: then `modulation="shift"` is a choice of `create_model`, and
`--config.model.modulation=shift` one of `main.py`.

The encoder offers these options to an operator, with their values for its stage:
`focal_level`, `focal_window`, `focal_factor`, `use_depthwise_bias`, `causal`,
`causal_window`, `global_axes`, `normalize_modulator`, `use_postln_in_modulation`,
`drop_rate` and `implementation`. `FocalModulation` says what they mean. The block adds
`dtype`, `param_dtype` and `name`. An operator is given only those options that it has
fields for, and none that its `functools.partial` already sets; every Flax module takes
`name`.
"""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from focalnet_jax.errors import OptionError, did_you_mean
from focalnet_jax.models import initializers
from focalnet_jax.models.layers import Dense, LayerNorm, Weights
from focalnet_jax.ops import aggregate_context
from focalnet_jax.ops.positionwise import Layers, positionwise

Outputs = dict[str, jax.Array]


class FocalModulation(nn.Module):
    """Focal modulation: the context around each position scales its query.

    Paper, equation 6: `y = q(x) * h(sum_l gate_l * context_l)`. Maps may have any number
    of spatial axes; the kernels then have as many. With `use_depthwise_bias` it is the
    `FocalModulation` of FocalCodec, arXiv 2502.04465, and with `causal`, too, that of
    FocalCodec-Stream.

    Attributes:
      focal_level: the number of levels with a depthwise convolution; the global level
        comes on top.
      focal_window: kernel size of the first level: a number, or one for each spatial
        axis.
      focal_factor: by how much the kernel grows from level to level, as `focal_window`.
      use_depthwise_bias: whether the convolution of each level adds a bias.
      causal: lets each position see nothing that comes later on the first spatial axis.
      causal_window: with `causal`, the number of positions up to its own that the global
        level of a position gathers by a convolution, in place of the mean.
      global_axes: the spatial axes, counted from 0, that the global level takes the mean
        over; () for all of them.
      normalize_modulator: divides the aggregated context by `focal_level + 1`.
      use_postln_in_modulation: puts a LayerNorm before the last projection.
      drop_rate: dropout after the last projection.
      implementation: a name in `focalnet_jax.ops.IMPLEMENTATIONS`.
      dtype, param_dtype: of the computation and of the parameters.
    """

    focal_level: int
    focal_window: int | Sequence[int]
    focal_factor: int | Sequence[int] = 2
    use_depthwise_bias: bool = False
    causal: bool = False
    causal_window: int = 512
    global_axes: Sequence[int] = ()
    normalize_modulator: bool = False
    use_postln_in_modulation: bool = False
    drop_rate: float = 0.0
    implementation: str = "auto"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        norm: LayerNorm | None = None,
        as_branch: bool = False,
        valid: jax.Array | None = None,
    ) -> tuple[jax.Array | tuple[jax.Array, jax.Array], Outputs]:
        """Maps `[b, *spatial, c]` to the same shape.

        Args:
          x: the map.
          train: whether there is dropout.
          norm: what `x` goes through first; None for nothing.
          as_branch: returns `x`, too, for the sum with the result.
          valid: int `[b, rank]`, the size of each image on the canvas `x`; None for the
            size of the canvas.

        Returns:
          The result, or with `as_branch` a pair of `x` and the result; and `gates`,
          `[b, *spatial, focal_level + 1]`, and `modulator`, `[b, *spatial, c]`.
        """
        channels = x.shape[-1]
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        on_positions = functools.partial(
            positionwise, dtype=self.dtype, implementation=self.implementation
        )

        f = Dense(2 * channels + self.focal_level + 1, name="f", **types)
        kernel, bias = f.weights(channels)
        x, query, context, gates = on_positions(
            projection, x, (_weights_of(norm, channels), (kernel.T, bias))
        )

        layers = [
            Depthwise(
                (*size, 1, channels),
                use_bias=self.use_depthwise_bias,
                param_dtype=self.param_dtype,
                name=f"focal_layers_{level}",
            )()
            for level, size in enumerate(self.kernel_sizes(x.ndim - 2))
        ]
        if type(self).aggregate is not FocalModulation.aggregate:
            # Another one may compute with them as they are.
            layers = jax.tree.map(lambda leaf: leaf.astype(self.dtype), layers)
        kernels = [layer.kernel for layer in layers]
        # An `aggregate` of a subclass need not take what it isn't given.
        options = valid_for(self.aggregate, valid, "method `aggregate`")
        if self.use_depthwise_bias:
            options["biases"] = [layer.bias for layer in layers]
        aggregated = self.aggregate(context, gates, kernels, **options)
        # A 1x1 convolution in the official code, so initialised as one.
        h = Dense(
            channels,
            kernel_init=initializers.conv_kernel,
            bias_init=initializers.conv_bias(channels),
            name="h",
            **types,
        )
        ln = LayerNorm(name="ln", **types) if self.use_postln_in_modulation else None
        proj = Dense(channels, name="proj", **types)
        [y] = on_positions(
            modulated,
            (query, aggregated),
            [_weights_of(layer, channels) for layer in (h, ln, proj)],
        )
        y = nn.Dropout(self.drop_rate)(y, deterministic=not train)
        chex.assert_equal_shape([x, y])
        # No kernel returns the modulator. If nobody reads it, a compiled program does not
        # compute it.
        outputs = {"gates": gates, "modulator": h(aggregated)}
        return ((x, y) if as_branch else y), outputs

    @nn.nowrap
    def kernel_sizes(self, spatial_rank: int) -> list[tuple[int, ...]]:
        """The size of each depthwise kernel for maps of so many spatial axes."""
        window = per_axis(self.focal_window, spatial_rank)
        factor = per_axis(self.focal_factor, spatial_rank)
        sizes = [
            tuple(w + level * f for w, f in zip(window, factor))
            for level in range(self.focal_level)
        ]
        if self.causal:
            sizes.append((self.causal_window,) + (1,) * (spatial_rank - 1))
        return sizes

    def aggregate(
        self,
        context: jax.Array,
        gates: jax.Array,
        kernels: list[jax.Array],
        biases: list[jax.Array] | None = None,
        valid: jax.Array | None = None,
    ) -> jax.Array:
        """Gathers the context of each position; a subclass may do it in another way.

        Args:
          context: `[b, *spatial, c]`.
          gates: `[b, *spatial, focal_level + 1]`.
          kernels: `[*kernel_size, 1, c]` for each level, and for the global one, too, if
            it is `causal`.
          biases: `[c]` for each kernel; given only with `use_depthwise_bias`.
          valid: int `[b, rank]`, the size of each image; given only with canvases.

        Returns:
          The aggregated context, `[b, *spatial, c]`.
        """
        return aggregate_context(
            context,
            gates,
            kernels,
            biases=biases,
            normalize=self.normalize_modulator,
            causal=self.causal,
            global_axes=self.global_axes,
            valid=valid,
            implementation=self.implementation,
        )


def _weights_of(layer: Dense | LayerNorm | None, channels: int) -> Weights | None:
    return None if layer is None else layer.weights(channels)


# The functions of positions of focal modulation, see `ops/positionwise.py`.


def projection(layers: Layers, x, images, weights) -> list[jax.Array]:
    """The map itself, and query, context and gates."""
    norm, (kernel, bias) = weights
    normalized = x if norm is None else layers.layer_norm(x, *norm)
    features, channels = kernel.shape
    parts = channels, channels, features - 2 * channels
    return [x, *layers.split_dense(normalized, kernel, bias, parts=parts)]


def modulated(layers: Layers, maps, images, weights) -> list[jax.Array]:
    """The query times the modulator, projected."""
    (query, aggregated), (h, ln, proj) = maps, weights
    y = query * layers.keep(layers.dense(aggregated, *h))
    if ln is not None:
        y = layers.layer_norm(y, *ln)
    return [layers.dense(y, *proj)]


class DepthwiseParams(NamedTuple):
    """Of one focal level: `kernel` `[*kernel_size, 1, c]`, and `bias` `[c]` or None."""

    kernel: jax.Array
    bias: jax.Array | None


class Depthwise(nn.Module):
    """Holds the parameters of one focal level; `aggregate_context` convolves with them.

    Attributes:
      shape: of the kernel, `[*kernel_size, 1, c]`.
      use_bias: whether there is a bias.
      param_dtype: of the parameters.
    """

    shape: tuple[int, ...]
    use_bias: bool = False
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> DepthwiseParams:
        kernel = self.param(
            "kernel", initializers.conv_kernel, self.shape, self.param_dtype
        )
        bias = None
        if self.use_bias:
            init = initializers.conv_bias(math.prod(self.shape[:-1]))
            bias = self.param("bias", init, self.shape[-1:], self.param_dtype)
        return DepthwiseParams(kernel, bias)


def per_axis(value: int | Sequence[int], spatial_rank: int) -> tuple[int, ...]:
    """A number for each spatial axis: the same for all, or those that are given."""
    return tuple(value) if isinstance(value, Sequence) else (value,) * spatial_rank


Modulation = Callable[..., nn.Module]

MODULATIONS: dict[str, Modulation] = {"focal": FocalModulation}
"""The operators by name; `docs/architecture.md` says how to add one."""


def find_modulation(modulation: str | Modulation) -> Modulation:
    """The operator of that name in `MODULATIONS`; a callable is returned as it is.

    Raises:
      OptionError: a name that is not in the table.
    """
    if not isinstance(modulation, str):
        return modulation
    if modulation not in MODULATIONS:
        raise OptionError(
            "modulation",
            f"={modulation!r} is unknown{did_you_mean(modulation, MODULATIONS)}. An "
            "operator of your own is known when the module that enters it in MODULATIONS "
            "has been imported",
        )
    return MODULATIONS[modulation]


def takes_norm(operator: nn.Module) -> bool:
    """Whether it takes the LayerNorm before it, and returns its input, too."""
    return {"norm", "as_branch"} <= inspect.signature(operator).parameters.keys()


def valid_for(
    function: Callable[..., Any], valid: jax.Array | None, name: str
) -> dict[str, Any]:
    """The keyword `valid` for an operator or its `aggregate`; none if it is None.

    Raises:
      OptionError: the function, which is called `name`, has no such parameter.
    """
    if valid is None:
        return {}
    options = {"valid": valid}
    if not accepted(function, options):
        raise OptionError(
            "modulation",
            f" has a {name} without the parameter `valid`, so it can't tell images from "
            "the padding of their canvases. Add the parameter; or pass no `valid`, and "
            "images see their padding",
        )
    return options


def accepted(make: Modulation, options: dict[str, Any]) -> dict[str, Any]:
    """Those of `options` that a module class or another callable has parameters for.

    Options that a `functools.partial` sets are left out.
    """
    parameters = inspect.signature(make).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    is_set = make.keywords if isinstance(make, functools.partial) else ()
    return {
        option: value
        for option, value in options.items()
        if (takes_all or option in parameters) and option not in is_set
    }
