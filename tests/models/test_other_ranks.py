"""Nets for sequences, `[b, t, c]`, and for videos and volumes, `[b, t, h, w, c]`.

`test_against_torch.py` compares the numbers of some of them with PyTorch's.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType
from tiny import random_params, tiny_backbone, tiny_model

from focalnet_jax import count_multiply_adds, count_params
from focalnet_jax.placement import map_axes_over

SEQUENCE = dict(patch_size=(4,), in_channels=2)
VIDEO = dict(patch_size=(2, 4, 4), downsample_stride=(1, 2, 2))
# Frames that do not know of each other, with two levels and one.
FRAMES = dict(
    patch_size=(1, 4, 4),
    downsample_stride=(1, 2, 2),
    focal_windows=((1, 3, 3), (1, 3, 3)),
    focal_factor=(0, 2, 2),
    global_axes=(1, 2),
)


def random_inputs(*shape):
    return jnp.array(np.random.default_rng(0).normal(size=shape), "float32")


def test_a_net_for_sequences():
    model = tiny_model(**SEQUENCE)
    assert model.encoder.smallest_input() == (8,)
    x = random_inputs(3, 40, 2)
    params = random_params(model, "float32")
    assert params["patch_embed"]["proj"]["kernel"].shape == (4, 2, 8)
    layer = params["layers_0"]["blocks_0"]["modulation"]["focal_layers_1"]
    assert layer["kernel"].shape == (5, 1, 8)
    logits, outputs = jax.jit(model.apply)({"params": params}, x)
    assert logits.shape == (3, 5)
    assert outputs["stage0/block0/gates"].shape == (3, 10, 3)
    assert outputs["stage1"].shape == (3, 5, 16)
    assert count_params(model) == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_a_net_for_videos_and_its_backbone():
    x = random_inputs(2, 4, 16, 24, 3)
    model = tiny_model(**VIDEO, pad_to_patch=True)
    logits, outputs = jax.jit(model.apply)({"params": random_params(model, "float32")}, x)
    assert logits.shape == (2, 5)
    assert outputs["stage1"].shape == (2, 2, 2, 3, 16)
    backbone = tiny_backbone(**VIDEO)
    params = random_params(backbone, "float32")
    maps = jax.jit(backbone.apply)({"params": params}, x)
    assert [y.shape for y in maps] == [(2, 2, 4, 6, 8), (2, 2, 2, 3, 16)]


def test_frames_that_are_apart_are_as_images():
    """As in the spatial stream of Video-FocalNets, one net of images for all frames."""
    images, videos = tiny_model(num_classes=0), tiny_model(num_classes=0, **FRAMES)
    x = random_inputs(2, 3, 16, 24, 3)
    params = random_params(videos, "float32")
    as_image = jax.tree.map(lambda a: a[0] if a.ndim == 5 else a, params)
    pooled, outputs = jax.jit(videos.apply)({"params": params}, x)
    frames = x.reshape(6, 16, 24, 3)
    expected, expected_outputs = jax.jit(images.apply)({"params": as_image}, frames)
    # Sums in float32 are taken in another order.
    tolerance = dict(rtol=0, atol=1e-4)
    np.testing.assert_allclose(pooled, expected.reshape(2, 3, -1).mean(1), **tolerance)
    for name in ("stage0/block0/gates", "stage0/block0/modulator", "stage1"):
        given = outputs[name].reshape(expected_outputs[name].shape)
        np.testing.assert_allclose(given, expected_outputs[name], **tolerance)


@pytest.mark.parametrize("scan", [False, True])
def test_a_causal_net_does_not_see_the_future(scan):
    model = tiny_model(
        **SEQUENCE, causal=True, causal_window=6, use_depthwise_bias=True, scan=scan
    )
    params = random_params(model, "float32")
    layers = params["layers_0"]["blocks_0"]["modulation"]
    assert layers["focal_layers_2"]["kernel"].shape == (6, 1, 8)
    assert layers["focal_layers_2"]["bias"].shape == (8,)
    x = random_inputs(1, 48, 2)
    run = jax.jit(lambda x: model.apply({"params": params}, x)[1])
    before, after = run(x), run(x.at[:, 32:].add(1))
    for name, stride in (("stage0", 4), ("stage1", 8)):
        seen = 32 // stride
        np.testing.assert_array_equal(after[name][:, :seen], before[name][:, :seen])
        assert not np.allclose(after[name][:, seen:], before[name][:, seen:])


def test_even_kernels_keep_the_size_of_a_map():
    one_stage = dict(depths=(1,), focal_levels=(2,), focal_windows=(4,), focal_factor=1)
    model = tiny_model(patch_size=(1,), in_channels=2, **one_stage)
    params = random_params(model, "float32")
    layers = params["layers_0"]["blocks_0"]["modulation"]
    shapes = [layers[f"focal_layers_{level}"]["kernel"].shape for level in (0, 1)]
    assert shapes == [(4, 1, 8), (5, 1, 8)]
    _, outputs = model.apply({"params": params}, random_inputs(1, 9, 2))
    assert outputs["stage0"].shape == (1, 9, 8)


@pytest.mark.parametrize(
    ("options", "size", "kernel"),
    [(SEQUENCE, (32,), 4 * 2), (VIDEO, (4, 16, 16), 2 * 4 * 4 * 3)],
)
def test_multiply_adds_of_the_stem(options, size, kernel):
    """Twice as many channels of the input double them, and change nothing else."""
    model = tiny_model(**options, num_classes=0)
    channels = model.encoder.in_channels
    doubled = model.clone(encoder=model.encoder.clone(in_channels=2 * channels))
    difference = count_multiply_adds(doubled, size) - count_multiply_adds(model, size)
    positions = np.prod(np.array(size) // options["patch_size"])
    assert difference == positions * kernel * model.encoder.embed_dim
    with pytest.raises(ValueError, match="too small for this net"):
        count_multiply_adds(model, (1,) * len(size))


@pytest.mark.parametrize(
    ("options", "shape", "axes"),
    [
        (SEQUENCE, (4, 64, 2), ("data", "spatial")),
        (SEQUENCE, (4, 40, 2), ("data", "spatial")),  # parts that are not equal
        (VIDEO, (4, 4, 32, 16, 3), ("data", None, "spatial")),
    ],
)
def test_maps_are_split_over_a_mesh(options, shape, axes):
    """Time of sequences and height of videos are split, and gradients are the same."""
    model = tiny_model(**options)
    params = random_params(model, "float32")
    x = random_inputs(*shape)
    mesh = jax.make_mesh((2, 4), ("data", "spatial"), axis_types=(AxisType.Auto,) * 2)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))

    def loss(params, x, mesh):
        rules = {"batch": "data", "height": "spatial", "time": "spatial"}
        with map_axes_over(mesh, rules):
            logits, outputs = model.apply({"params": params}, x)
        return (logits**2).mean(), outputs["stem"]

    run = jax.jit(jax.grad(loss, has_aux=True), static_argnums=2)
    gradients, stem = run(params, jax.device_put(x, split), mesh)
    expected, _ = run(params, x, None)
    # Maps that can't be split into equal parts stay in one piece.
    axis = axes.index("spatial")
    parts = 4 if stem.shape[axis] % 4 == 0 else 1
    assert stem.sharding.shard_shape(stem.shape)[axis] == stem.shape[axis] // parts
    given, expected = flatten_dict(gradients), flatten_dict(expected)
    for name, value in expected.items():
        # Sums in float32 are taken in another order.
        scale = np.abs(value).max()
        np.testing.assert_allclose(given[name], value, rtol=0, atol=1e-4 * scale)
