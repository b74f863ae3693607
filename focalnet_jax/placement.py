"""Where maps lie on the devices of a mesh.

Models name the axes of their maps, and whoever runs them says which axis of a mesh each
is split over. Without that, nothing is said and nothing happens.
"""

import contextlib
from collections.abc import Iterator, Mapping

import jax
from flax import linen as nn

MAP_AXES = ("batch", "height", "width", "channels")


@contextlib.contextmanager
def map_axes_over(
    mesh: jax.sharding.Mesh | None, axes: Mapping[str, str | tuple[str, ...]]
) -> Iterator[None]:
    """Models that are traced inside have their maps split over a mesh.

    Args:
      mesh: None for no effect.
      axes: by names of `MAP_AXES`, the mesh's axes; those left out are not split. Sizes
        needn't divide.
    """
    if mesh is None:
        yield
        return
    with (
        jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
        nn.logical_axis_rules(tuple(axes.items())),
    ):
        yield


def place_map(x: jax.Array, *, whole_height: bool = False) -> jax.Array:
    """Pins `[b, h, w, c]` to where `map_axes_over` says, its height split or whole.

    Left to itself, XLA gathers a map for some convolutions and goes on with it whole:
    more memory, and gradients of depthwise kernels that are too large by the number of
    devices that hold the same (its partitioner as of jax 0.10).
    """
    names = (MAP_AXES[0], None, *MAP_AXES[2:]) if whole_height else MAP_AXES
    return nn.with_logical_constraint(x, names)


def height_divides(*sizes: int) -> bool:
    """Whether heights split into equal parts; true where they aren't split."""
    axis = dict(nn.get_logical_axis_rules()).get("height")
    parts = jax.sharding.get_abstract_mesh().shape[axis] if axis else 1
    return not any(size % parts for size in sizes)
