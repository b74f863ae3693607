"""Inputs of the kernels, their results, and what these should be in float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from focalnet_jax.kernels import bands, focal_aggregation
from focalnet_jax.ops.depthwise_conv import depthwise_conv
from focalnet_jax.ops.gelu import gelu, gelu_and_derivative


@dataclasses.dataclass(frozen=True)
class Case:
    """Attributes: sizes of a map, of its depthwise kernels, and of a band."""

    height: int
    width: int
    images: int
    channels: int
    sizes: tuple[tuple[int, int], ...]
    rows: int
    dtype: str = "float32"


# It has bands of unequal height, and the last blocks of images and channels are not full.
EVERYTHING = Case(
    height=7, width=5, images=9, channels=130, sizes=((3, 3), (5, 3)), rows=4
)


def draw_inputs(case: Case, seed: int = 0) -> dict:
    """Arrays with images first, whose values the dtype of the case can hold."""
    rng = np.random.default_rng(seed)

    def draw(*shape, scale=1):
        values = jnp.asarray(scale * rng.normal(size=shape), case.dtype)
        return np.asarray(values, np.float64)

    space = (case.images, case.height, case.width)
    per_image = (case.images, 1, 1, case.channels)
    return dict(
        context=draw(*space, case.channels),
        gates=draw(*space, len(case.sizes) + 1),
        kernels=[
            draw(*size, 1, case.channels, scale=np.prod(size) ** -0.5)
            for size in case.sizes
        ],
        global_context=draw(*per_image),
        cotangent=draw(*space, case.channels),
        mean_cotangent=draw(*per_image),
    )


def by_kernels(case: Case, inputs: dict, kernels=focal_aggregation, bands=bands) -> dict:
    """What the kernels of a module compute, interpreted, with images first."""
    cut = bands.Bands(case.height, case.width, case.sizes, case.rows)
    activate = functools.partial(gelu_and_derivative, exact=case.dtype == "float32")
    options = dict(activate=activate, bands=cut, vmem=1 << 24, interpret=True)

    def third(x):
        return x.transpose(1, 2, 0, 3)

    def first(x):
        return x.transpose(2, 0, 1, 3)

    @jax.jit
    def compute(inputs):
        given = {name: jax.tree.map(third, value) for name, value in inputs.items()}
        given["kernels"] = inputs["kernels"]
        maps = given["context"], given["gates"], given["kernels"]
        total, mean, saved = kernels.forward(*maps, save=True, **options)
        of_context, of_gates, of_kernels = kernels.backward(
            *maps,
            saved,
            given["global_context"],
            given["cotangent"],
            given["mean_cotangent"],
            **options,
        )
        return dict(
            total=first(total),
            mean=first(mean),
            saved=[*map(first, saved)],
            of_context=first(of_context),
            of_gates=first(of_gates),
            of_kernels=of_kernels,
        )

    wide = {"global_context", "mean_cotangent"}
    inputs = {
        name: jax.tree.map(
            lambda a, name=name: jnp.asarray(
                a, jnp.float32 if name in wide else case.dtype
            ),
            value,
        )
        for name, value in inputs.items()
    }
    return jax.tree.map(lambda a: np.asarray(a, np.float64), compute(inputs))


def in_float64(case: Case, inputs: dict) -> dict:
    """The same by `lax` convolutions; float64 has to be enabled."""
    inputs = jax.tree.map(jnp.array, inputs)

    def levels(context, gates, kernels):
        total, saved = 0, []
        for level, kernel in enumerate(kernels):
            saved.append(depthwise_conv(context, kernel, implementation="lax"))
            context = gelu(saved[-1])
            total += context * gates[..., level, None]
        total += inputs["global_context"] * gates[..., -1:]
        # The cotangent of the mean is given for each position.
        return total, context.sum((1, 2), keepdims=True), saved

    maps = inputs["context"], inputs["gates"], inputs["kernels"]
    (total, level_sum, saved), pull = jax.vjp(levels, *maps)
    zeros = jax.tree.map(jnp.zeros_like, saved)
    of_maps = pull((inputs["cotangent"], inputs["mean_cotangent"], zeros))
    return jax.tree.map(
        np.asarray,
        dict(
            total=total - inputs["global_context"] * inputs["gates"][..., -1:],
            mean=level_sum / (case.height * case.width),
            saved=saved,
            **dict(zip(("of_context", "of_gates", "of_kernels"), of_maps)),
        ),
    )


def differences(given: dict, expected: dict) -> dict[str, float]:
    """By name, the largest difference over the largest value."""
    return {
        jax.tree_util.keystr(path): np.abs(a - b).max() / np.abs(b).max()
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(given), jax.tree.leaves(expected)
        )
    }
