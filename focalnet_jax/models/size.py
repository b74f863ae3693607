"""How large a model is: parameters and multiply-adds."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from focalnet_jax.models.focalnet import FocalNet, FocalNetBackbone

Model = FocalNet | FocalNetBackbone


def count_params(model: Model) -> int:
    """The number of scalars in the model's parameters; nothing is computed for it."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(model)))


def abstract_params(model: Model) -> dict[str, Any]:
    """The shapes and dtypes of the model's parameters; nothing is computed for it.

    Returns:
      A nested dict of `jax.ShapeDtypeStruct`, shaped as the parameters.
    """
    side = model.encoder.smallest_image()
    return _abstract_params(model, side, side)


def count_multiply_adds(model: Model, image_size: int | tuple[int, int]) -> int:
    """Multiply-adds for one image, forward: what the paper prints as FLOPs.

    Matrix products and convolutions are read off the traced program, so a fork's are
    counted too, those in a `scan` once an iteration. To them come, as in the official
    `flops()`, the products with the gates and with the query, and one multiply-add an
    element for each LayerNorm. Biases, GELUs, layer scales and residual sums are left
    out here as there.

    Beyond the official `flops()` this counts the overlap of the convolutions of stem
    and downsamplings with `use_conv_embed` (large, xlarge and huge), which are taken for
    patches that don't overlap there: large_fl3 has 35.7 G at 224 pixels, 34.8 G there.

    Args:
      model: from `create_model` or `create_backbone`.
      image_size: side in pixels, or height and width.
    """
    height, width = (
        (image_size, image_size) if isinstance(image_size, int) else image_size
    )
    # The convolutions as one operation each, whatever the model computes them by.
    encoder = model.encoder.clone(implementation="lax", remat="none", scan=False)
    model = model.clone(encoder=encoder)
    params = _abstract_params(model, height, width)
    images = _abstract_images(model, height, width)

    def forward(params, images):
        return model.apply({"params": params}, images)

    def encode(params, images):
        return model.encoder.apply({"params": params}, images)[1]

    program = jax.make_jaxpr(forward)(params, images)
    outputs = jax.eval_shape(encode, params, images)
    return _matrix_multiply_adds(program.jaxpr) + _elementwise_multiply_adds(
        outputs, norms=2 + model.encoder.use_postln_in_modulation
    )


def _abstract_images(model: Model, height: int, width: int) -> jax.ShapeDtypeStruct:
    shape = (1, height, width, model.encoder.in_channels)
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _abstract_params(model: Model, height: int, width: int):
    images = _abstract_images(model, height, width)
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def _matrix_multiply_adds(jaxpr: core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        output = equation.outvars[0].aval
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            sizes = equation.invars[0].aval.shape
            total += output.size * math.prod(sizes[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            out_axis = equation.params["dimension_numbers"].rhs_spec[0]
            total += output.size * kernel.size // kernel.shape[out_axis]
        times = equation.params.get("length", 1)  # of a scan
        inner = sum(_matrix_multiply_adds(program) for program in _programs_in(equation))
        total += times * inner
    return total


def _elementwise_multiply_adds(outputs: dict[str, jax.Array], *, norms: int) -> int:
    """Of gates, query and the `norms` LayerNorms a block, and those after embeddings."""
    total = outputs["stem"].size
    for name, output in outputs.items():
        if name.endswith("/modulator"):
            levels = outputs[name.replace("/modulator", "/gates")].shape[-1]
            total += output.size * (levels + 1 + norms)
        elif re.fullmatch(r"stage\d+", name):
            total += output.size  # The norm after the downsampling, or the last one.
    return total


def _programs_in(equation) -> list[core.Jaxpr]:
    # From jax 0.12 on, closed programs and open ones are of one class.
    values = [
        value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
        for value in equation.params.values()
    ]
    return [value for value in values if isinstance(value, core.Jaxpr)]
