"""What differs from device to device inside `jax.shard_map`."""

import jax


def vary_alike(*arrays: jax.Array) -> list[jax.Array]:
    """Inside `jax.shard_map`, gives arrays one type: what differs from device to device.

    Where one did not differ, as parameters in data parallelism, its gradient is then
    summed over the devices.
    """
    axes = [_varying_axes(array) for array in arrays]
    all_axes = frozenset().union(*axes)
    return [
        jax.lax.pcast(array, tuple(all_axes - own), to="varying")
        for array, own in zip(arrays, axes)
    ]


def _varying_axes(array: jax.Array) -> frozenset:
    kind = jax.typeof(array)
    # The second is the spelling of jax 0.12.
    return kind.vma if hasattr(kind, "vma") else kind.mat.varying
