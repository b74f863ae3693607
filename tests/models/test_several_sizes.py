"""Images of several sizes on canvases: each gets what it would get alone."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tiny import random_images, random_params, tiny_backbone, tiny_model

from focalnet_jax.errors import OptionError
from focalnet_jax.models import FocalModulation, abstract_params
from focalnet_jax.ops import IMPLEMENTATIONS, Implementation, canvas
from focalnet_jax.placement import map_axes_over

FLOAT64 = dict(dtype="float64", param_dtype="float64")
EVERY_OPTION = dict(
    use_conv_embed=True,
    use_layerscale=True,
    layerscale_value=0.5,
    use_postln=True,
    use_postln_in_modulation=True,
    normalize_modulator=True,
    use_depthwise_bias=True,
)
SEQUENCE = dict(patch_size=(4,))
VIDEO = dict(patch_size=(2, 4, 4), downsample_stride=(1, 2, 2))
# The last image of each batch is none, as in a batch that is filled up.
IMAGES = [(40, 22), (33, 47), (0, 0)]
LINES = [(40,), (29,), (0,)]
VIDEOS = [(5, 16, 30), (6, 24, 19), (0, 0, 0)]

AT_ONCE = EVERY_OPTION | dict(
    depths=(1, 2), pad_to_patch=True, stem_padding=3, scan=True, remat="full"
)
NETS = {
    "all at once": (AT_ONCE, IMAGES),
    "plain": ({}, IMAGES),
    "every option": (EVERY_OPTION, IMAGES),
    "stem padding": (EVERY_OPTION | dict(stem_padding=3), IMAGES),
    "padded to patches": (dict(pad_to_patch=True), IMAGES),
    "padded, overlapping": (EVERY_OPTION | dict(pad_to_patch=True), IMAGES),
    "lax": (dict(implementation="lax"), IMAGES),
    "shifted": (dict(implementation="shifted"), IMAGES),
    "interpreted": (dict(implementation="interpreted"), IMAGES),
    "scan": (dict(depths=(1, 2), scan=True), IMAGES),
    "scan and dots": (dict(depths=(1, 2), scan=True, remat="dots"), IMAGES),
    "full": (dict(remat="full"), IMAGES),
    "dots": (dict(remat="dots"), IMAGES),
    "means of rows": (dict(global_axes=(1,)), IMAGES),
    "kernels of even size": (dict(focal_windows=(4, 2)), IMAGES),
    "sequences": (SEQUENCE, LINES),
    "causal": (
        SEQUENCE | dict(causal=True, causal_window=6, use_depthwise_bias=True),
        LINES,
    ),
    "videos": (VIDEO, VIDEOS),
    "videos by frames": (VIDEO | dict(global_axes=(1, 2)), VIDEOS),
    "causal videos": (
        VIDEO | dict(causal=True, causal_window=2, use_depthwise_bias=True),
        VIDEOS,
    ),
}
BY_DEFAULT = {"all at once", "causal videos"}


def results_and_gradients(model, params, images, weights, valid=None):
    """Outputs of a classifier, and gradients of a sum of what the arrays weigh.

    Args:
      weights: for logits and maps of stages, on positions of the canvas.
    """

    def loss(params, images):
        logits, outputs = model.apply({"params": params}, images, valid=valid)
        results = {"logits": logits} | outputs
        total = 0
        for name, weight in weights.items():
            result = results[name]
            total += (result * weight[tuple(map(slice, result.shape))]).sum()
        return total, results

    gradient = jax.grad(loss, (0, 1), has_aux=True)
    (of_params, of_images), results = jax.jit(gradient)(params, images)
    return results, of_params, of_images


def weigh(images):
    """Random weights for whatever a tiny net returns, at least as large."""
    rng = np.random.default_rng(3)
    shapes = dict(logits=(5,), stage0=(*images.shape[1:-1], 8))
    shapes["stage1"] = (*images.shape[1:-1], 16)
    weights = {
        name: jnp.asarray(rng.normal(size=(len(images), *shape)))
        for name, shape in shapes.items()
    }
    # The head has logits even for an image that is none.
    weights["logits"] = weights["logits"].at[-1].set(0)
    return weights


def weights_of(image, weights):
    return {name: weight[image : image + 1] for name, weight in weights.items()}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "net",
    [
        name if name in BY_DEFAULT else pytest.param(name, marks=pytest.mark.extended)
        for name in NETS
    ],
)
def test_each_image_gets_what_it_gets_alone(net):
    """All outputs, and the gradients of parameters and pixels, of a classifier.

    The padding isn't 0, and sizes don't divide.
    """
    options, sizes = NETS[net]
    model = tiny_model(**dict(depths=(1, 1)) | FLOAT64 | options)
    params = random_params(model)
    shape = tuple(max(lengths) for lengths in zip(*sizes))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(len(sizes), *shape, 3)))
    weights = weigh(images)
    given, of_params, of_images = results_and_gradients(
        model, params, images, weights, jnp.array(sizes)
    )
    chex.assert_tree_all_finite((given, of_params, of_images))

    expected_of_params = jax.tree.map(np.zeros_like, params)
    expected_of_images = np.zeros_like(images)
    for index, size in enumerate(sizes[:-1]):
        cut = (slice(index, index + 1), *map(slice, size))
        alone, of_params_alone, of_image = results_and_gradients(
            model, params, images[cut], weights_of(index, weights)
        )
        for name, expected in alone.items():
            inside = (slice(index, index + 1), *map(slice, expected.shape[1:]))
            # Some layers, whose results are of order 1, round in float64.
            np.testing.assert_allclose(
                given[name][inside], expected, rtol=0, atol=1e-10, err_msg=name
            )
            if name in ("stage0", "stage1"):
                rest = given[name].at[inside].set(0)[index]
                np.testing.assert_array_equal(rest, 0)
        expected_of_params = jax.tree.map(np.add, expected_of_params, of_params_alone)
        expected_of_images[cut] = of_image
    # Gradients are sums over all positions.
    for tree, expected_tree in (
        (of_params, expected_of_params),
        (of_images, expected_of_images),
    ):
        scale = max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(expected_tree))
        chex.assert_trees_all_close(tree, expected_tree, rtol=0, atol=1e-11 * scale)


@pytest.mark.usefixtures("float64")
def test_maps_of_a_backbone():
    backbone = tiny_backbone(use_conv_embed=True, stem_padding=3, **FLOAT64)
    params = {"params": random_params(backbone)}
    images, valid = random_images(40, 47, jnp.float64), jnp.array(IMAGES[:2])
    given = jax.jit(backbone.apply)(params, images, valid=valid)
    sizes = backbone.encoder.valid_after_stages(valid)
    for index, (height, width) in enumerate(IMAGES[:2]):
        image = images[index : index + 1, :height, :width]
        alone = jax.jit(backbone.apply)(params, image)
        for x, expected, size in zip(given, alone, sizes):
            assert expected.shape[1:-1] == tuple(size[index])
            placed = np.zeros(x.shape[1:])
            placed[tuple(map(slice, size[index]))] = expected[0]
            # As above; what is outside of the image is 0 after the norms, too.
            np.testing.assert_allclose(x[index], placed, rtol=0, atol=1e-10)


def test_images_see_their_padding_if_no_sizes_are_given():
    """That is how the official nets treat a batch, and it changes their features."""
    model = tiny_model()
    params = {"params": random_params(model, "float32")}
    images = random_images(32, 32).at[:, :, 24:].set(0)
    apply = jax.jit(model.apply)
    seen, _ = apply(params, images)
    alone, _ = apply(params, images[:, :, :24])
    masked, _ = apply(params, images, valid=jnp.array([[32, 24]] * 2))
    np.testing.assert_allclose(masked, alone, rtol=0, atol=1e-5)  # float32
    assert np.abs(seen - alone).max() > 1e-3


def test_without_sizes_a_program_holds_no_masks(monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("a mask is made")

    monkeypatch.setattr(canvas, "inside", fail)
    for make in (tiny_model, tiny_backbone):
        model = make(use_conv_embed=True)
        inputs = {"params": abstract_params(model)}, random_images()
        jax.eval_shape(model.apply, *inputs)
        apply = functools.partial(model.apply, valid=jnp.ones((2, 2), int))
        with pytest.raises(ZeroDivisionError):
            jax.eval_shape(apply, *inputs)


@pytest.mark.extended
def test_on_a_mesh():
    """The height of canvases is split, and gradients are the same."""
    model = tiny_model(use_conv_embed=True)
    params = random_params(model, "float32")
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 64, 48, 3)), "float32")
    valid = jnp.array([(64, 30), (33, 48), (50, 45), (17, 40)])
    mesh = jax.make_mesh((2, 4), ("data", "spatial"), axis_types=(AxisType.Auto,) * 2)

    def loss(params, images, valid, mesh):
        with map_axes_over(mesh, {"batch": "data", "height": "spatial"}):
            logits, outputs = model.apply({"params": params}, images, valid=valid)
        return (logits**2).mean() + (outputs["stage1"] ** 2).mean()

    run = jax.jit(jax.grad(loss), static_argnums=3)
    placed = [
        jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))
        for array, axes in ((images, ("data", "spatial")), (valid, ("data",)))
    ]
    given, expected = run(params, *placed, mesh), run(params, images, valid, None)
    scale = max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    # Sums in float32 are taken in another order.
    chex.assert_trees_all_close(given, expected, rtol=0, atol=1e-4 * scale)


class Pool(nn.Module):
    """An operator that knows nothing of canvases."""

    @nn.compact
    def __call__(self, x, *, train):
        return x.mean((1, 2), keepdims=True) + x, {}


class FirstLevel(FocalModulation):
    """Focal modulation with an `aggregate` that knows nothing of them."""

    def aggregate(self, context, gates, kernels):
        return context * gates[..., :1]


def run_on_canvases(**options):
    model = tiny_model(**options)
    params = {"params": random_params(model, "float32")}
    return model.apply(params, random_images(), valid=jnp.array([[32, 40]] * 2))


@pytest.mark.parametrize(
    ("modulation", "function"), [(Pool, "call"), (FirstLevel, "method `aggregate`")]
)
def test_an_operator_without_sizes_is_refused(modulation, function):
    message = f"modulation has a {function} without the parameter `valid`"
    with pytest.raises(OptionError, match=message):
        run_on_canvases(modulation=modulation)


def test_an_implementation_without_sizes_is_refused(monkeypatch):
    def plain(context, gates, kernels, *, normalize):
        return context * gates[..., :1]

    monkeypatch.setitem(IMPLEMENTATIONS, "plain", Implementation(plain, "Does little."))
    with pytest.raises(OptionError, match="'plain' can't compute with valid; .*'auto'"):
        run_on_canvases(implementation="plain")


@pytest.mark.parametrize(
    ("valid", "error", "message"),
    [
        (np.ones((2, 2)), TypeError, "valid is float64, expected integers"),
        (np.ones((2, 3), int), ValueError, r"shape \(2, 3\), expected \(2, 2\)"),
        (
            np.array([[32, 40], [40, 32]]),
            ValueError,
            "image 1 is 40 x 32 pixels by",
        ),
        (np.array([[-1, 40], [32, 40]]), ValueError, "image 0 is -1 x 40 pixels"),
    ],
)
def test_sizes_that_are_none(valid, error, message):
    model = tiny_model()
    params = {"params": random_params(model, "float32")}
    with pytest.raises(error, match=message):
        model.apply(params, random_images(), valid=valid)
