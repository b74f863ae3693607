"""Where maps lie on the devices of a mesh.

Models name the axes of their maps. Whoever runs a model says over which axis of a mesh
each of them is split, by `map_axes_over`. Outside of it nothing here has an effect.
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
    """Models that are traced in this context have their maps split over a mesh.

    Args:
      mesh: the devices; None for no effect.
      axes: the axis or axes of the mesh for each name in `MAP_AXES`. An axis of the map
        that is not named is not split. The size of an axis need not divide evenly.
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
    """Keeps a map, `[b, h, w, c]`, split as `map_axes_over` says.

    The maps of one or three spatial axes are split along the batch alone.

    Without this, XLA gathers the whole map for some convolutions and does not split it
    again. That takes more memory. And its partitioner, as of jax 0.10, then makes
    gradients of depthwise kernels too large, by the number of devices that hold the same
    map.

    Args:
      x: the map.
      whole_height: leaves the height in one piece, whatever `map_axes_over` says.
    """
    names = (MAP_AXES[0], None, *MAP_AXES[2:]) if whole_height else MAP_AXES
    if x.ndim != len(MAP_AXES):  # Only maps of two spatial axes have a height.
        names = (MAP_AXES[0],) + (None,) * (x.ndim - 1)
    return nn.with_logical_constraint(x, names)


def height_divides(*sizes: int) -> bool:
    """Whether heights can be split into equal parts; true where they are not split."""
    axis = dict(nn.get_logical_axis_rules()).get("height")
    parts = jax.sharding.get_abstract_mesh().shape[axis] if axis else 1
    return not any(size % parts for size in sizes)
