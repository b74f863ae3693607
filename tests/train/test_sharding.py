"""Meshes of eight devices compute what one device computes, and really share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from focalnet_jax import create_model
from focalnet_jax.data import Shard
from focalnet_jax.errors import SetupError
from focalnet_jax.train import sharding
from focalnet_jax.train.checkpoints import abstract_with_shardings
from focalnet_jax.train.state import initial_state
from focalnet_jax.train.step import make_train_step


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    id: int
    process_index: int


def mesh_of(data, fsdp):
    devices = np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp)
    axis_types = (AxisType.Auto,) * 2
    return jax.sharding.Mesh(devices, sharding.BATCH_AXES, axis_types=axis_types)


def two_steps(mesh, *, implementation):
    """States and metrics after two steps in float64, with everything random on."""
    model = create_model(
        "focalnet_tiny_srf",
        num_classes=8,
        depths=(1, 1),
        embed_dim=16,
        focal_levels=(2, 1),
        focal_windows=(3, 3),
        drop_path_rate=0.3,
        drop_rate=0.1,
        dtype="float64",
        param_dtype="float64",
        implementation=implementation,
    )
    optimizer = optax.adamw(1e-2)

    def init():
        return initial_state(model, optimizer, image_size=16, seed=0)

    abstract = abstract_with_shardings(jax.eval_shape(init), mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    state = jax.jit(init, out_shardings=shardings)()
    options = dict(mean=(0.5,) * 3, std=(0.5,) * 3, label_smoothing=0.1, seed=0)
    step = jax.jit(
        make_train_step(model, optimizer, **options),
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
    )
    rng = np.random.default_rng(0)
    for _ in range(2):
        batch = {
            "image": rng.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8),
            "label": rng.integers(0, 8, 16, dtype=np.int32),
        }
        state, metrics = step(state, sharding.to_device(batch, mesh))
    return state, metrics


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("implementation", ["lax", "shifted"])
def test_meshes_agree_with_one_device(implementation):
    state, metrics = two_steps(mesh_of(1, 1), implementation=implementation)
    for data, fsdp in [(8, 1), (2, 4)]:
        other, other_metrics = two_steps(
            mesh_of(data, fsdp), implementation=implementation
        )
        for name, value in metrics.items():
            np.testing.assert_allclose(other_metrics[name], value, rtol=1e-12)
        for given, expected in zip(
            jax.tree.leaves(other.params), jax.tree.leaves(state.params)
        ):
            # float64; Adam divides rounding by the gradient's size where that is tiny.
            np.testing.assert_allclose(given, expected, rtol=0, atol=1e-8)


@pytest.mark.usefixtures("float64")
def test_fsdp_splits_parameters_and_optimizer_state():
    state, _ = two_steps(mesh_of(2, 4), implementation="lax")
    kernel = state.params["layers_0"]["blocks_0"]["mlp"]["fc1"]["kernel"]
    assert kernel.shape == (16, 64)
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(16, 16)}
    moment = state.opt_state[0].mu["layers_0"]["blocks_0"]["mlp"]["fc1"]["kernel"]
    assert {shard.data.shape for shard in moment.addressable_shards} == {(16, 16)}
    norm = state.params["norm"]["scale"]
    assert {shard.data.shape for shard in norm.addressable_shards} == {(32,)}


def test_rules_split_the_longest_axis_that_divides():
    mesh = mesh_of(2, 4)
    state = {
        "kernel": jnp.zeros((3, 3, 1, 8)),
        "odd": {"kernel": jnp.zeros((3, 5))},
        "bias": jnp.zeros(64),
        "square": {"kernel": jnp.zeros((8, 8))},
    }
    specs = jax.tree.map(lambda s: s.spec, sharding.state_shardings(state, mesh))
    assert specs == {
        "kernel": PartitionSpec(None, None, None, "fsdp"),
        "odd": {"kernel": PartitionSpec()},
        "bias": PartitionSpec(),
        "square": {"kernel": PartitionSpec(None, "fsdp")},
    }


def test_meshes_take_all_devices_or_say_what_would():
    assert dict(sharding.make_mesh(data=-1, fsdp=2).shape) == {"data": 4, "fsdp": 2}
    for data, fsdp in [(3, 1), (-1, 3), (4, 1)]:
        with pytest.raises(SetupError, match="8 x 1, 4 x 2, 2 x 4, 1 x 8"):
            sharding.make_mesh(data=data, fsdp=fsdp)


def test_hosts_hold_neighbouring_rows_however_their_devices_are_numbered():
    """Two hosts of four, numbered as in a TPU slice: by place in the torus."""
    listed = [FakeDevice(id=i, process_index=(i // 2) % 2) for i in range(8)]
    devices = sharding.process_major(listed)
    assert [d.process_index for d in devices] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [d.id for d in devices] == [0, 1, 4, 5, 2, 3, 6, 7]


def test_batches_that_do_not_divide_are_errors():
    mesh = mesh_of(4, 2)
    sharding.check_batch_size(16, mesh)
    with pytest.raises(SetupError, match="nearest that do are 8 or 16"):
        sharding.check_batch_size(12, mesh)
    with pytest.raises(SetupError, match="nearest that do are 8$"):
        sharding.check_batch_size(5, mesh)


def test_one_process_holds_the_whole_batch():
    assert sharding.process_shard(mesh_of(4, 2), 16) == Shard(0, 1)
