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
    return dict(
        context=draw(*space, case.channels),
        gates=draw(*space, len(case.sizes) + 1),
        kernels=[
            draw(*size, 1, case.channels, scale=np.prod(size) ** -0.5)
            for size in case.sizes
        ],
        cotangent=draw(*space, case.channels),
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
            mean,
            given["cotangent"],
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

    inputs = jax.tree.map(lambda a: jnp.asarray(a, case.dtype), inputs)
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
        mean = context.mean((1, 2), keepdims=True)
        return total + gelu(mean) * gates[..., -1:], (mean, saved)

    maps = inputs["context"], inputs["gates"], inputs["kernels"]
    total, pull, (mean, saved) = jax.vjp(levels, *maps, has_aux=True)
    of_context, of_gates, of_kernels = pull(inputs["cotangent"])
    return jax.tree.map(
        np.asarray,
        dict(
            total=total,
            mean=mean,
            saved=saved,
            of_context=of_context,
            of_gates=of_gates,
            of_kernels=of_kernels,
        ),
    )


def differences(given: dict, expected: dict) -> dict[str, float]:
    """By name, the largest difference over the largest value."""
    return {
        jax.tree_util.keystr(path): np.abs(a - b).max() / np.abs(b).max()
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(given),
            jax.tree.leaves(expected),
            strict=True,
        )
    }
