"""Meshes of eight devices compute what one device computes, and really share."""

import collections
import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from focalnet_jax.errors import SetupError
from focalnet_jax.train import check_config, default_config, sharding
from focalnet_jax.train.program import make_program
from focalnet_jax.train.sharding import abstract_with_shardings, shardings_of
from focalnet_jax.trees import named_leaves


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    id: int
    coords: tuple[int, int, int]
    process_index: int
    slice_index: int
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"


EVERYTHING = dict(
    focal_levels=(2, 1),
    use_conv_embed=True,
    use_layerscale=True,
    layerscale_value=0.5,
    use_postln=True,
    use_postln_in_modulation=True,
    normalize_modulator=True,
    drop_rate=0.1,
    drop_path_rate=0.3,
)
# What changes the program; the rest of the options are numbers in it.
OPTIONS = {
    "plain": {},
    "conv_embed": dict(use_conv_embed=True),
    "layerscale": dict(use_layerscale=True, layerscale_value=0.5),
    "postln": dict(use_postln=True),
    "postln_in_modulation": dict(use_postln_in_modulation=True),
    "normalize_modulator": dict(normalize_modulator=True),
    "dropout": dict(drop_rate=0.1),
    "drop_path": dict(drop_path_rate=0.3),
    "levels_and_windows": dict(focal_levels=(3, 1), focal_windows=(3, 5)),
    "focal_factor": dict(focal_levels=(2, 2), focal_factor=4),
    "mlp_ratio": dict(mlp_ratio=2.5),
    "isotropic": dict(depths=(2,), focal_levels=(2,), focal_windows=(3,), patch_size=8),
    "pad_to_patch": dict(pad_to_patch=True),
    "remat": dict(remat="full"),
    "scan": dict(depths=(2, 1), scan=True, remat="dots"),
    "everything": EVERYTHING,
}
MESHES = [(8, 1, 1), (1, 8, 1), (2, 4, 1), (1, 1, 8), (2, 1, 4), (2, 2, 2)]


# Where little depends on the model, it has one block.
ONE_BLOCK = dict(depths=(1,), focal_levels=(1,), focal_windows=(3,))


def mesh_of(data=1, fsdp=1, spatial=1):
    devices = jax.devices()[: data * fsdp * spatial]
    return sharding.make_mesh(data=data, fsdp=fsdp, spatial=spatial, devices=devices)


def config_of(*, image_size=16, batch_size=8, **options):
    """A run in float64, its first step at the full learning rate."""
    config = default_config()
    config.batch_size = batch_size
    config.num_steps = 4
    config.learning_rate = 1e-2
    config.learning_rate_batch_size = 0
    config.warmup_epochs = 0.0
    config.data.image_size = image_size
    config.model.update(
        dict(
            name="focalnet_tiny_srf",
            num_classes=8,
            depths=(1, 1),
            embed_dim=16,
            focal_levels=(2, 1),
            focal_windows=(3, 3),
            dtype="float64",
            param_dtype="float64",
        )
        | options
    )
    return check_config(config)


def one_step(config, task, mesh, state):
    """From a state on any devices to the next one, and metrics."""
    program = make_program(config, task, mesh, num_examples=100)
    shardings = shardings_of(program.abstract_state)
    rng = np.random.default_rng(0)
    shape = (config.batch_size, *task.batch["image"].shape)
    batch = {
        "image": rng.integers(256, size=shape, dtype="u1"),
        "label": rng.integers(8, size=config.batch_size, dtype=np.int32),
    }
    state = jax.device_put(state, shardings)
    return program.train_step(
        state,
        sharding.to_device(batch, task.batch, mesh, batch_size=len(batch["label"])),
    )


def assert_as_on_one_device(config, task, meshes):
    init = make_program(config, task, mesh_of(), num_examples=100).init
    start = jax.device_get(init())
    state, metrics = one_step(config, task, mesh_of(), start)
    for mesh in meshes:
        other, other_metrics = one_step(config, task, mesh_of(*mesh), start)
        # float64, sums in another order.
        chex.assert_trees_all_close(other_metrics, metrics, rtol=1e-12)
        # After one step Adam's first moment is a tenth of the clipped gradient.
        chex.assert_trees_all_close(
            first_moment(other), first_moment(state), rtol=1e-9, atol=1e-14
        )
        # Adam divides rounding by the gradient's size where that is tiny.
        chex.assert_trees_all_close(other.params, state.params, rtol=0, atol=1e-8)


def first_moment(state):
    [moments] = [part.mu for part in state.opt_state[1] if hasattr(part, "mu")]
    return moments


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "implementation", [pytest.param("lax", marks=pytest.mark.extended), "shifted"]
)
def test_meshes_agree_with_one_device(implementation):
    """A part of the matrix: every option on at once, two of the meshes.

    The one has all axes, the other the most chips along the height.

    Images of 18 rows make maps of 4 and 2 rows, which don't divide over 8.
    """
    run = config_of(implementation=implementation, image_size=(18, 26), **EVERYTHING)
    assert_as_on_one_device(*run, [(1, 1, 8), (2, 2, 2)])


@pytest.mark.extended
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("implementation", ["lax", "shifted"])
@pytest.mark.parametrize("option", OPTIONS)
def test_all_meshes_agree_with_one_device(option, implementation):
    """Maps of 9 and 4 rows (or 5), which divide over some of the meshes only."""
    options = OPTIONS[option]
    run = config_of(implementation=implementation, image_size=36, **options)
    assert_as_on_one_device(*run, MESHES)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("mixup_alpha", "tolerance"),
    # Images are mixed in float32, which other programs round otherwise.
    [(0.0, 1e-12), pytest.param(1.0, 1e-8, marks=pytest.mark.extended)],
)
def test_a_batch_in_parts_is_the_whole_batch(mixup_alpha, tolerance):
    """Mixed before it is split; on one device and on eight."""
    config = ConfigDict(config_of(batch_size=32, **ONE_BLOCK)[0])
    config.mixup_alpha = config.cutmix_alpha = mixup_alpha
    _, task = check_config(config)
    init = make_program(config, task, mesh_of(), num_examples=100).init
    start = jax.device_get(init())
    state, metrics = one_step(config, task, mesh_of(), start)
    config.accumulate_steps = 4
    for mesh in [(1, 1, 1), (2, 2, 2)]:
        other, other_metrics = one_step(config, task, mesh_of(*mesh), start)
        chex.assert_trees_all_close(other_metrics, metrics, rtol=tolerance)
        chex.assert_trees_all_close(
            first_moment(other), first_moment(state), rtol=1e-9, atol=tolerance
        )


def compiled(mesh, **options):
    """The training step for a mesh, of which nothing is run."""
    program = make_program(*config_of(**options), mesh_of(*mesh), num_examples=100)
    step = program.train_step.lower(program.abstract_state, program.abstract_batch)
    return program, step.compile()


def test_fsdp_splits_parameters_and_optimizer_state():
    options = ONE_BLOCK | dict(embed_dim=64, dtype="float32", param_dtype="float32")
    _, one = compiled((1, 1, 1), **options)
    program, eight = compiled((1, 8, 1), **options)
    kernel = program.abstract_state.params["layers_0"]["blocks_0"]["mlp"]["fc1"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (64, 256 // 8)
    # Arguments are the state, of which small arrays aren't split, and a small batch.
    before, after = (p.memory_analysis().argument_size_in_bytes for p in (one, eight))
    assert after < 1.2 * before / 8
    # And as the compiler was told, so they lie.
    state = program.init()
    for leaf, abstract in zip(
        jax.tree.leaves(state), jax.tree.leaves(program.abstract_state), strict=True
    ):
        expected = abstract.sharding.shard_shape(abstract.shape)
        assert {shard.data.shape for shard in leaf.addressable_shards} == {expected}


def test_spatial_splits_maps_and_exchanges_their_edges():
    """An image of 1,024 pixels: a chip's memory falls with their number."""
    options = dict(image_size=1024, batch_size=1, implementation="lax", dtype="float32")
    options |= dict(param_dtype="float32")
    _, one = compiled((1, 1, 1), **options)
    _, eight = compiled((1, 1, 8), **options)
    assert "collective-permute" not in one.as_text()
    program = eight.as_text()
    assert "collective-permute" in program
    # The stem's map, [1, 256, 256, 16], as a chip sees it; nowhere is it whole.
    assert "f32[1,32,256,16]" in program
    assert "f32[1,256,256,16]" not in program
    before, after = (p.memory_analysis().temp_size_in_bytes for p in (one, eight))
    # The halo and the parameters' gradients are what doesn't shrink.
    assert after < 1.2 * before / 8


@pytest.mark.parametrize(
    "variant", [pytest.param("base_lrf", marks=pytest.mark.extended), "huge_fl4"]
)
def test_every_large_array_is_split_and_every_small_one_whole(variant):
    """Of parameters, their average and the moments of a published variant."""
    config = default_config()
    config.model.name = f"focalnet_{variant}"
    config.ema_decay = 0.9
    program = make_program(*check_config(config), mesh_of(2, 4, 1), num_examples=100)
    leaves = named_leaves(program.abstract_state)
    for name, leaf in leaves.items():
        shard = leaf.sharding.shard_shape(leaf.shape)
        is_small = leaf.ndim < 2
        assert np.prod(shard) == np.prod(leaf.shape) // (1 if is_small else 4), name
    assert sum(leaf.ndim >= 2 for leaf in leaves.values()) > 4 * 100


def test_rules_split_the_longest_axis_that_divides():
    mesh = mesh_of(2, 4)
    state = {
        "kernel": jnp.zeros((3, 3, 1, 8)),
        "odd": {"kernel": jnp.zeros((3, 5))},
        "bias": jnp.zeros(64),
        "square": {"kernel": jnp.zeros((8, 8))},
    }
    placed = shardings_of(abstract_with_shardings(state, mesh))
    specs = jax.tree.map(lambda s: s.spec, placed)
    assert specs == {
        "kernel": PartitionSpec(None, None, None, "fsdp"),
        "odd": {"kernel": PartitionSpec()},
        "bias": PartitionSpec(),
        "square": {"kernel": PartitionSpec(None, "fsdp")},
    }


def test_meshes_take_all_devices_or_say_what_would():
    mesh = sharding.make_mesh(data=-1, fsdp=2, spatial=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "spatial": 2}
    for data, fsdp in [(3, 1), (-1, 3), (4, 1)]:
        with pytest.raises(
            SetupError, match="8 x 1 x 1, 4 x 2 x 1, 2 x 4 x 1, 1 x 8 x 1"
        ):
            sharding.make_mesh(data=data, fsdp=fsdp)
    with pytest.raises(SetupError, match="can be 4 x 1 x 2, 2 x 2 x 2, 1 x 4 x 2"):
        sharding.make_mesh(data=3, fsdp=1, spatial=2)
    with pytest.raises(SetupError, match="spatial can be 1, 2, 4, 8"):
        sharding.make_mesh(spatial=3)


def torus(*, slices=1):
    """Slices of 8 x 8 chips, 2 x 2 of which are a host's, in no order."""
    devices = []
    for s, x, y in np.ndindex(slices, 8, 8):
        host = 16 * s + 4 * (x // 2) + y // 2
        devices.append(FakeDevice(64 * s + 8 * x + y, (x, y, 0), host, s))
    return [devices[i] for i in np.random.default_rng(0).permutation(len(devices))]


def test_axes_of_the_mesh_lie_along_those_of_the_torus():
    devices = sharding.make_mesh(fsdp=8, devices=torus()).devices
    held = [{d.coords[axis] for d in devices[0].flat} for axis in (0, 1)]
    assert sorted(map(len, held)) == [1, 8]


@pytest.mark.parametrize(("fsdp", "spatial"), [(1, 1), (4, 1), (16, 2), (2, 4)])
@pytest.mark.parametrize("slices", [1, 2])
def test_hosts_hold_the_same_rows_or_others(slices, fsdp, spatial):
    """None a part of another's: each row is decoded as often as `spatial` needs it."""
    mesh = sharding.make_mesh(fsdp=fsdp, spatial=spatial, devices=torus(slices=slices))
    assert mesh.devices.shape == (64 * slices // fsdp // spatial, fsdp, spatial)
    rows = collections.defaultdict(set)
    for (i, j, _), device in np.ndenumerate(mesh.devices):
        rows[device.process_index].add(i * fsdp + j)
    rows = [*rows.values()]
    assert all(a == b or not a & b for a, b in itertools.combinations(rows, 2))


def test_slices_lie_along_data():
    devices = sharding.make_mesh(fsdp=4, devices=torus(slices=4)).devices
    assert [[*{d.slice_index for d in row.flat}] for row in devices] == [
        [i // 16] for i in range(64)
    ]


def test_axes_stay_within_slices():
    with pytest.raises(SetupError, match="a slice holds 64 devices.*128 doesn't divide"):
        sharding.make_mesh(fsdp=128, devices=torus(slices=2))
    with pytest.raises(SetupError, match="4 x 32 x 1, 2 x 64 x 1$"):  # not 1 x 128
        sharding.make_mesh(data=3, devices=torus(slices=2))


def test_batches_that_do_not_divide_are_errors():
    mesh = mesh_of(4, 1, 2)
    sharding.check_batch_size(4, mesh)
    mesh = mesh_of(4, 2)
    sharding.check_batch_size(16, mesh)
    with pytest.raises(SetupError, match="nearest that do are 8 or 16"):
        sharding.check_batch_size(12, mesh)
    with pytest.raises(SetupError, match="nearest that do are 8$"):
        sharding.check_batch_size(5, mesh)
    message = "over 8 devices in accumulate_steps=4; the nearest that do are 32 or 64"
    with pytest.raises(SetupError, match=message):
        sharding.check_batch_size(40, mesh, parts=4)


def test_one_process_holds_the_whole_batch():
    for mesh in MESHES:
        assert sharding.process_rows(mesh_of(*mesh), 16) == [*range(16)]
