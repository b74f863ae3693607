"""How large a model is: parameters and multiply-adds."""

import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr

from focalnet_jax.errors import OptionError, counted, shown
from focalnet_jax.models.focalnet import AroundEncoder, FocalNetBackbone
from focalnet_jax.models.modulation import per_axis

Model = AroundEncoder


def count_params(model: Model) -> int:
    """The number of scalars in the model's parameters; nothing is computed for it."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(model)))


def abstract_params(model: Model) -> dict[str, Any]:
    """The shapes and dtypes of the model's parameters; nothing is computed for it.

    Returns:
      A nested dict of `jax.ShapeDtypeStruct`, shaped as the parameters.
    """
    return abstract_variables(model)["params"]


def abstract_variables(model: Model) -> dict[str, Any]:
    """The same of all variables: `params`, and `batch_stats` of a model with BatchNorm.

    Returns:
      A tree as from `abstract_params` for each of these collections.
    """
    return _abstract_variables(model, model.encoder.total_stride)


def count_multiply_adds(model: Model, image_size: int | Sequence[int]) -> int:
    """The multiply-adds of the forward pass for one image, which the paper calls FLOPs.

    Matrix products and convolutions are read off the traced program, so those of another
    operator are counted too. What is in a `scan` counts once for each iteration. As in
    the official `flops()`, the products with gates and query are added, and one
    multiply-add per element for each LayerNorm of the stem, the blocks and the stages.
    Biases, GELUs, layer scales and residual sums do not count, there or here.

    With `use_conv_embed` (large, xlarge and huge) the result is higher than that of the
    official `flops()`, which takes the overlapping convolutions of stem and downsamplings
    for patches that do not overlap: large_fl3 has 35.7 G at 224 pixels here, and 34.8 G
    there.

    Of a segmenter the auxiliary head doesn't count, which is there for training alone.
    Resizing is a product with matrices here, and counts: for FocalNet-T SRF at 512 x 2048
    pixels it is 27 of 970 G, where the paper has 944 G.

    Args:
      model: from `create_model`, `create_backbone`, `create_masked_model` or
        `create_segmenter`.
      image_size: the side in pixels, or height and width; for nets on inputs of other
        rank their spatial shape.

    Raises:
      OptionError: `image_size` is no such size; it is a ValueError.
    """
    size = _size(image_size, model.encoder.spatial_rank)
    # With "lax", each convolution is one operation of the program.
    encoder = model.encoder.clone(implementation="lax", remat="none", scan=False)
    model = model.clone(encoder=encoder)
    variables = _abstract_variables(model, size)
    images = _abstract_images(model, size)

    def forward(variables, images):
        result = model.apply(variables, images)
        if isinstance(model, FocalNetBackbone):
            return result
        # A segmenter's auxiliary head is there for training alone.
        return getattr(result[0], "logits", result[0])

    def encode(variables, images):
        return model.encoder.apply(variables, images)[1]

    program = jax.make_jaxpr(forward)(variables, images).jaxpr
    # Without what only the named maps need, such as modulators: `jit` doesn't compute it.
    program, _ = dce_jaxpr(program, [True] * len(program.outvars))
    outputs = jax.eval_shape(encode, variables, images)
    return _matrix_multiply_adds(program) + _elementwise_multiply_adds(
        outputs, has_ln=model.encoder.use_postln_in_modulation
    )


def _size(image_size: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """The size of each spatial axis."""
    if hasattr(image_size, "tolist"):
        image_size = image_size.tolist()
    size = per_axis(image_size, rank)
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in size)
    if not whole or len(size) != rank or min(size) < 1:
        raise OptionError(
            "image_size",
            f"={shown(image_size)} is neither a whole number from 1 on nor "
            f"{counted(rank, 'such number')}",
        )
    return size


def _abstract_images(model: Model, size: Sequence[int]) -> jax.ShapeDtypeStruct:
    shape = (1, *size, model.encoder.in_channels)
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _abstract_variables(model: Model, size: Sequence[int]) -> dict[str, Any]:
    images = _abstract_images(model, size)
    return _init.eval_shape(model, jax.random.key(0), images)


# Tracing takes a second for a large model. JAX remembers it by the model's value.
@functools.partial(jax.jit, static_argnums=0)
def _init(model: Model, key: jax.Array, images: jax.Array):
    return model.init(key, images)


def _matrix_multiply_adds(jaxpr: core.Jaxpr) -> int:
    """Of the matrix products and convolutions in a program."""
    total = 0
    for equation in jaxpr.eqns:
        # What describes arrays, which alone have sizes.
        inputs: list[Any] = [variable.aval for variable in equation.invars]
        output: Any = equation.outvars[0].aval
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            sizes = inputs[0].shape
            total += output.size * math.prod(sizes[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = inputs[1]
            out_axis = equation.params["dimension_numbers"].rhs_spec[0]
            total += output.size * kernel.size // kernel.shape[out_axis]
        times = equation.params.get("length", 1)  # the iterations, if it is a scan
        inner = sum(_matrix_multiply_adds(program) for program in _programs_in(equation))
        total += times * inner
    return total


def _elementwise_multiply_adds(outputs: dict[str, jax.Array], *, has_ln: bool) -> int:
    """Of gates, query and LayerNorms.

    Args:
      outputs: of the encoder.
      has_ln: whether there is a LayerNorm inside of focal modulation.
    """
    total = outputs["stem"].size
    for name, output in outputs.items():
        if re.fullmatch(r"stage\d+/block\d+", name):
            total += 2 * output.size
            if f"{name}/gates" in outputs:  # other operators need not have them
                gates = outputs[f"{name}/gates"].shape[-1]
                total += output.size * (gates + 1 + has_ln)
        elif re.fullmatch(r"stage\d+", name):
            total += output.size  # the norm of the downsampling, or the last one
    return total


def _programs_in(equation) -> list[core.Jaxpr]:
    """The programs that an operation runs, such as the body of a loop."""
    # From jax 0.12 on, closed and open programs have the same class.
    values = [
        value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
        for value in equation.params.values()
    ]
    return [value for value in values if isinstance(value, core.Jaxpr)]
