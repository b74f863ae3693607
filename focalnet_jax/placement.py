"""Where maps lie on the devices of a mesh.

Models name the axes of their maps. Whoever runs a model says over which axis of a mesh
each of them is split, by `map_axes_over`. Outside of it nothing here has an effect.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn

PyTree = Any

# The names of the spatial axes of a map, by their number. Only one of them is split: the
# frames of a video are few.
SPATIAL_AXES = {1: ("time",), 2: ("height", "width"), 3: (None, "height", "width")}


@contextlib.contextmanager
def map_axes_over(
    mesh: jax.sharding.Mesh | None, axes: Mapping[str, str | tuple[str, ...]]
) -> Iterator[None]:
    """Models that are traced in this context have their maps split over a mesh.

    `jax.jit` does not trace a function again that was traced here, if it is called
    outside with the same mesh. So functions are called in the context that they are
    traced in.

    Args:
      mesh: the devices; None for no effect.
      axes: the axis or axes of the mesh for `batch`, for `channels`, and for each name in
        `SPATIAL_AXES`. An axis of the map that is not named is not split. The size of an
        axis need not divide evenly.
    """
    if mesh is None:
        yield
        return
    with (
        jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
        nn.logical_axis_rules(tuple(axes.items())),
    ):
        yield


def place_map(x: jax.Array, *, whole: bool = False) -> jax.Array:
    """Keeps a map, `[b, *spatial, c]`, split as `map_axes_over` says.

    Without this, XLA gathers the whole map for some convolutions and does not split it
    again. That takes more memory. And its partitioner, as of jax 0.10, then makes
    gradients of depthwise kernels too large, by the number of devices that hold the same
    map.

    Args:
      x: the map.
      whole: leaves the spatial axes in one piece, whatever `map_axes_over` says.
    """
    spatial = (None,) * (x.ndim - 2) if whole else _spatial_axes(x.ndim - 2)
    return nn.with_logical_constraint(x, ("batch", *spatial, "channels"))


def sizes_divide(*shapes: Sequence[int]) -> bool:
    """Whether maps of these spatial shapes can be split into equal parts.

    It is true where they are not split.
    """
    return not any(
        size % _devices_along(name)
        for shape in shapes
        for name, size in zip(_spatial_axes(len(shape)), shape)
    )


class NotSplitByBatch(Exception):
    """A map is not split into parts of the batch alone; the message says why."""


def run_on_shards(
    function: Callable[..., PyTree], maps: Sequence[PyTree], others: Sequence[PyTree]
) -> PyTree:
    """Has each device compute a function of maps for its part of the batch.

    For what XLA can't split by itself. Without `map_axes_over` the function is called as
    it is.

    Args:
      function: takes the maps and the others one by one, and returns maps.
      maps: trees of arrays whose first axis is the batch. The first one is a map, `[b,
        *spatial, c]`.
      others: trees of arrays that every device has whole.

    Raises:
      NotSplitByBatch: other axes are split, too, or the parts are not equal.
    """
    rules = dict(nn.get_logical_axis_rules())
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or "batch" not in rules:
        return function(*maps, *others)
    shape = jax.tree.leaves(maps)[0].shape
    names = (*_spatial_axes(len(shape) - 2), "channels")
    if any(_devices_along(name) > 1 for name in names):
        raise NotSplitByBatch("devices share the maps of an image")
    if shape[0] % (count := _devices_along("batch")):
        raise NotSplitByBatch(f"{shape[0]} images on {count} devices")
    part = jax.sharding.PartitionSpec(rules["batch"])
    whole = jax.sharding.PartitionSpec()
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(part,) * len(maps) + (whole,) * len(others),
        out_specs=part,
    )(*maps, *others)


def _devices_along(name: str | None) -> int:
    """How many parts an axis of a map is split into."""
    rules: dict[str | None, Any] = dict(nn.get_logical_axis_rules())
    axes = rules.get(name) or ()
    axes = (axes,) if isinstance(axes, str) else axes
    return math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in axes)


def _spatial_axes(count: int) -> tuple[str | None, ...]:
    return SPATIAL_AXES.get(count, (None,) * count)
