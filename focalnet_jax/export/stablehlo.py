"""StableHLO: the program of a model, which needs JAX and no other library to run.

The program is that of `jax.export`. It takes any batch and any image that is large
enough, and holds the code for CPUs, TPUs and NVIDIA GPUs. The parameters are its first
argument and no part of it, because a program that holds them holds them once more for its
gradient.
"""

from typing import Any

import jax
import jax.numpy as jnp

from focalnet_jax.errors import SetupError
from focalnet_jax.export.description import check_is_exported
from focalnet_jax.models.size import Model
from focalnet_jax.trees import named_leaves, nested

PLATFORMS = ("cpu", "tpu", "cuda")

# Names of sizes that a program leaves open, by the number of spatial axes.
_SIZES = {1: ("t",), 2: ("h", "w"), 3: ("t", "h", "w")}


def export_program(model: Model, params: dict[str, Any], *, vjp: bool = False) -> bytes:
    """Makes the program of a model.

        exported = jax.export.deserialize(export_program(model, params))
        logits = exported.call(named_leaves(params), images)

    Args:
      model: a classifier or a backbone.
      params: its parameters. Their shapes and dtypes count, and not their values.
      vjp: adds the program of the gradient, for `exported.vjp()`. Sizes of images are
        multiples of `model.encoder.total_stride` then.

    Returns:
      What `jax.export.deserialize` reads. The program takes the parameters by name, such
      as `patch_embed/proj/kernel`, and `float32 [batch, *spatial, channels]`. A
      classifier returns logits, `[batch, classes]`, and a backbone a list of maps.

    Raises:
      SetupError: the library `flatbuffers` is not installed, or the model is one for
        masked images.
    """
    try:
        import flatbuffers  # noqa: F401 (what JAX writes programs with)
    except ImportError as error:
        raise SetupError(
            "JAX writes and reads programs with flatbuffers, which is not installed: "
            "pip install 'focalnet_jax[export]'"
        ) from error

    check_is_exported(model)

    def compute(named_params, images):
        return model.apply({"params": nested(named_params)}, images)[0]

    encoder = model.encoder
    sizes = _SIZES[encoder.spatial_rank]
    if vjp:  # The gradient of a convolution has no size for a rest that is left out.
        strides = encoder.total_stride
        sizes = [f"{stride}*{size}" for stride, size in zip(strides, sizes)]
    least = zip(sizes, encoder.smallest_input())
    sizes = jax.export.symbolic_shape(
        ", ".join(["b", *sizes]),
        constraints=[f"{size} >= {pixels}" for size, pixels in least],
    )
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), named_leaves(params)
    )
    images = jax.ShapeDtypeStruct((*sizes, encoder.in_channels), jnp.float32)
    exported = jax.export.export(jax.jit(compute), platforms=PLATFORMS)(shapes, images)
    return bytes(exported.serialize(vjp_order=int(vjp)))
