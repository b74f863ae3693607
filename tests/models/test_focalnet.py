"""What the modules compute and return: shapes, options, gradients, padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType, PartitionSpec
from tiny import random_images, random_params, tiny_backbone, tiny_model

from focalnet_jax.models import FocalNet, abstract_params

EVERY_OPTION = dict(
    use_conv_embed=True,
    use_layerscale=True,
    layerscale_value=0.5,
    use_postln=True,
    use_postln_in_modulation=True,
    normalize_modulator=True,
)


def assert_trees_close(given, expected, tolerance):
    """The greatest difference in each array, relative to its greatest value."""
    given, expected = flatten_dict(given, sep="/"), flatten_dict(expected, sep="/")
    assert given.keys() == expected.keys()
    for name, value in given.items():
        scale = jnp.abs(expected[name]).max()
        assert jnp.abs(value - expected[name]).max() <= tolerance * scale, name


@pytest.mark.parametrize("options", [{}, EVERY_OPTION])
def test_outputs_are_named_maps(options):
    model = tiny_model(**options)
    images = random_images(32, 40)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    assert variables.keys() == {"params"}
    logits, outputs = jax.jit(model.apply)(variables, images)
    assert logits.shape == (2, 5)
    assert {name: value.shape for name, value in outputs.items()} == {
        "stem": (2, 8, 10, 8),
        "stage0": (2, 8, 10, 8),
        "stage0/block0": (2, 8, 10, 8),
        "stage0/block0/gates": (2, 8, 10, 3),
        "stage0/block0/modulator": (2, 8, 10, 8),
        "stage0/downsample": (2, 4, 5, 16),
        "stage1": (2, 4, 5, 16),
        "stage1/block0": (2, 4, 5, 16),
        "stage1/block0/gates": (2, 4, 5, 2),
        "stage1/block0/modulator": (2, 4, 5, 16),
        "stage1/block1": (2, 4, 5, 16),
        "stage1/block1/gates": (2, 4, 5, 2),
        "stage1/block1/modulator": (2, 4, 5, 16),
        "pre_logits": (2, 16),
    }


def test_no_classes_give_the_pooled_features():
    images = random_images()
    model = tiny_model(num_classes=0)
    params = random_params(model, "float32")
    assert "head" not in params
    pooled, _ = model.apply({"params": params}, images)
    with_head = params | {"head": {"kernel": np.eye(16, 5), "bias": np.zeros(5)}}
    logits, _ = tiny_model().apply({"params": with_head}, images)
    np.testing.assert_allclose(logits, pooled[:, :5], rtol=0, atol=1e-6)  # float32


def test_what_is_not_read_is_not_computed():
    """A program for the stem alone has none of the matrix products of the blocks."""
    images = random_images()
    model = tiny_model()
    params = random_params(model, "float32")

    def flops(name):
        function = jax.jit(lambda p, x: model.apply({"params": p}, x)[1][name])
        return function.lower(params, images).compile().cost_analysis()["flops"]

    assert flops("stem") < 0.2 * flops("pre_logits")


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "options", [pytest.param({}, marks=pytest.mark.extended), EVERY_OPTION]
)
def test_variants_of_the_same_computation_agree(options):
    """Implementations and `remat` change neither outputs nor gradients.

    Dropout and drop path are on.
    """
    types = dict(dtype="float64", param_dtype="float64")
    images = random_images(dtype=jnp.float64)
    reference = tiny_model(
        implementation="lax", drop_path_rate=0.4, drop_rate=0.1, **types, **options
    )
    params = random_params(reference)

    def loss_and_gradients(model):
        def loss(params):
            rngs = {"drop_path": jax.random.key(2), "dropout": jax.random.key(3)}
            logits, outputs = model.apply(
                {"params": params}, images, train=True, rngs=rngs
            )
            return (logits**2).sum(), outputs

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    gradients, outputs = loss_and_gradients(reference)
    for implementation, remat in [
        ("shifted", "none"),
        ("auto", "full"),
        ("auto", "dots"),
    ]:
        encoder = reference.encoder.clone(implementation=implementation, remat=remat)
        model = reference.clone(encoder=encoder)
        shapes = abstract_params(model)
        assert jax.tree.structure(shapes) == jax.tree.structure(params)
        other_gradients, other_outputs = loss_and_gradients(model)
        # A few layers round in float64.
        assert_trees_close(other_outputs, outputs, 1e-12)
        assert_trees_close(other_gradients, gradients, 1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("remat", "depths", "train"),
    # In training, the last of two blocks is always dropped and the first never is.
    [("none", (3, 2), False), ("full", (3, 2), False), ("dots", (2,), True)],
)
def test_scanned_blocks_compute_the_same(remat, depths, train):
    options = EVERY_OPTION | dict(dtype="float64", param_dtype="float64")
    plain = tiny_model(**options, drop_path_rate=1 - 1e-9)
    plain = plain.clone(encoder=plain.encoder.clone(depths=depths))
    scanned = plain.clone(encoder=plain.encoder.clone(scan=True, remat=remat))
    images = random_images(dtype=jnp.float64)
    params = random_params(plain)
    shapes = abstract_params(scanned)
    assert jax.tree.structure(shapes) == jax.tree.structure(params)

    def loss_and_gradients(model):
        def loss(params):
            rngs = {"drop_path": jax.random.key(2)}
            variables = {"params": params}
            logits, outputs = model.apply(variables, images, train=train, rngs=rngs)
            return (logits**2).sum(), outputs

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    gradients, outputs = loss_and_gradients(plain)
    other_gradients, other_outputs = loss_and_gradients(scanned)
    # A few layers round in float64.
    assert_trees_close(other_outputs, outputs, 1e-12)
    assert_trees_close(other_gradients, gradients, 1e-10)


def test_scanned_blocks_are_compiled_once():
    """More blocks make the program longer by the names of their parameters only."""

    def lines(depth, scan):
        model = tiny_model(
            depths=(depth,), focal_levels=(2,), focal_windows=(3,), scan=scan
        )
        images = random_images()
        params = jax.eval_shape(model.init, jax.random.key(0), images)
        return jax.jit(model.apply).lower(params, images).as_text().count("\n")

    assert lines(12, scan=False) > 2.5 * lines(4, scan=False)
    # Each of 8 more blocks has 12 arrays, and two lines stack each array.
    assert lines(12, scan=True) < 1.6 * lines(4, scan=True)


def test_scanned_blocks_drop_at_their_own_rates():
    """Three blocks have rates 0, 1/4 and 1/2, and draw independently."""
    model = tiny_model(
        depths=(3,), focal_levels=(1,), focal_windows=(3,), scan=True, drop_path_rate=0.5
    )
    images = jnp.tile(random_images()[:1], (512, 1, 1, 1))
    params = random_params(model, "float32")
    _, outputs = jax.jit(
        lambda params: model.apply(
            {"params": params}, images, train=True, rngs={"drop_path": jax.random.key(0)}
        )
    )(params)
    assert (outputs["stage0/block0"] == outputs["stage0/block0"][0]).all()
    unchanged = [
        (outputs[f"stage0/block{i}"] == outputs[f"stage0/block{i - 1}"]).all((1, 2, 3))
        for i in (1, 2)
    ]
    shares = [share.mean() for share in unchanged]
    # Both branches of a block are dropped with the square of the rate. The tolerance is
    # 5 standard deviations of 512 draws.
    assert shares[0] == pytest.approx(1 / 16, abs=0.054)
    assert shares[1] == pytest.approx(1 / 4, abs=0.096)
    # This share is 1/64 with independent draws and 1/16 with the same draws in both.
    assert (unchanged[0] & unchanged[1]).mean() < 0.045


def test_sizes_that_do_not_divide_are_floored_or_padded():
    images = random_images(37, 43)
    model = tiny_model()
    params = random_params(model, "float32")
    _, outputs = model.apply({"params": params}, images)
    assert outputs["stage0"].shape == (2, 9, 10, 8)
    assert outputs["stage1"].shape == (2, 4, 5, 16)
    # What the convolutions do not reach has no effect.
    _, cut = model.apply({"params": params}, images[:, :36, :40])
    np.testing.assert_array_equal(outputs["pre_logits"], cut["pre_logits"])

    padding = tiny_model(pad_to_patch=True)
    _, outputs = padding.apply({"params": params}, images)
    assert outputs["stage0"].shape == (2, 10, 11, 8)
    assert outputs["stage1"].shape == (2, 5, 6, 16)
    # Padding before the stem is the same as images with zeros at the bottom and right.
    by_hand = jnp.pad(images, [(0, 0), (0, 3), (0, 1), (0, 0)])
    _, expected = padding.apply({"params": params}, by_hand)
    np.testing.assert_array_equal(outputs["stem"], expected["stem"])


@pytest.mark.parametrize("padding", [2, 3])
def test_stem_is_the_written_out_convolution(padding):
    images = random_images(12, 12)
    model = tiny_model(use_conv_embed=True, stem_padding=padding)
    params = random_params(model, "float32")
    _, outputs = model.apply({"params": params}, images)
    margins = (padding, padding)
    padded = np.pad(images, [(0, 0), margins, margins, (0, 0)])
    embed = params["patch_embed"]
    patch = padded[:, 4:11, 8:15]  # below the kernel for row 1 and column 2
    assert outputs["stem"].shape == (2, 3, 3, 8)
    y = np.einsum("bhwi,hwio->bo", patch, embed["proj"]["kernel"])
    y = y + embed["proj"]["bias"]
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    y = y * embed["norm"]["scale"] + embed["norm"]["bias"]
    # These are float32 sums of 147 products.
    np.testing.assert_allclose(outputs["stem"][:, 1, 2], y, rtol=0, atol=1e-5)


def test_images_that_do_not_fit_are_errors():
    model = tiny_model()
    init = functools.partial(model.init, jax.random.key(0))
    with pytest.raises(ValueError, match=r"7 x 32 pixels are too small.*8 x 8"):
        init(jnp.zeros((1, 7, 32, 3)))
    with pytest.raises(TypeError, match="uint8, expected floating point"):
        init(jnp.zeros((1, 32, 32, 3), jnp.uint8))
    with pytest.raises(ValueError, match=r"expected \[batch, height, width, 3\]"):
        init(jnp.zeros((1, 3, 32, 32)))
    with pytest.raises(ValueError, match=r"need a patch_size such as \(4,\)"):
        init(jnp.zeros((32, 32, 3)))
    assert tiny_model(pad_to_patch=True).encoder.smallest_input() == (1, 1)


def test_drop_path_grows_over_depth_and_drops_whole_examples():
    model = tiny_model(drop_path_rate=0.5)
    images = jnp.tile(random_images()[:1], (64, 1, 1, 1))
    params = random_params(model, "float32")
    rngs = {"drop_path": jax.random.key(0)}
    _, outputs = model.apply({"params": params}, images, train=True, rngs=rngs)
    # The rates are 0, 1/4 and 1/2: the first block drops nothing, and each of the others
    # has two branches to drop.
    distinct = [
        len(np.unique(np.asarray(outputs[name]).round(3).reshape(64, -1), axis=0))
        for name in ("stage0", "stage1")
    ]
    assert distinct[0] == 1
    assert 4 < distinct[1] <= 16
    again, _ = model.apply({"params": params}, images)
    assert len(np.unique(np.asarray(again).round(3), axis=0)) == 1


def test_drop_path_keeps_the_mean():
    model = tiny_model(drop_path_rate=0.3, depths=(2, 1))
    images = random_images()
    params = jax.tree.map(lambda leaf: leaf / 10, random_params(model, "float32"))

    def stage0(key):
        rngs = {"drop_path": key}
        return model.apply({"params": params}, images, train=True, rngs=rngs)[1]["stage0"]

    mean = jax.vmap(stage0)(jax.random.split(jax.random.key(0), 4000)).mean(0)
    expected = model.apply({"params": params}, images)[1]["stage0"]
    # The second branch sees the result of the first, so the means differ a little.
    assert jnp.abs(mean - expected).mean() < 0.02 * jnp.abs(expected).mean()


def test_bfloat16_computes_on_float32_parameters():
    images = random_images()
    model, reference = tiny_model(dtype="bfloat16"), tiny_model()
    params = random_params(model, "float32")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    logits, outputs = model.apply({"params": params}, images)
    assert {v.dtype for v in [logits, *outputs.values()]} == {jnp.dtype("bfloat16")}
    expected, _ = reference.apply({"params": params}, images)
    # bfloat16 keeps 8 bits, and some twenty operations round to them.
    assert jnp.abs(logits - expected).max() < 0.1 * jnp.abs(expected).max()


def test_backbone_normalizes_each_stage():
    images = random_images()
    backbone = tiny_backbone()
    params = random_params(backbone, "float32")
    assert "norm" not in params
    assert "head" not in params
    maps = backbone.apply({"params": params}, images)
    plain = tiny_backbone(out_stages=(1,), out_norm=False)
    (raw,) = plain.apply({"params": params}, images)
    _, outputs = tiny_model().encoder.apply({"params": params}, images)
    np.testing.assert_array_equal(raw, outputs["stage1"])
    for stage, given in enumerate(maps):
        x = outputs[f"stage{stage}"]
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        norm = params[f"norm{stage}"]
        expected = x * norm["scale"] + norm["bias"]
        np.testing.assert_allclose(given, expected, rtol=0, atol=1e-5)  # float32


def test_other_numbers_of_input_channels():
    model = tiny_model(in_channels=1)
    images = random_images()[..., :1]
    assert model.apply(model.init(jax.random.key(0), images), images)[0].shape == (2, 5)


def test_a_map_can_be_changed_between_stem_and_stages():
    """Zeros in the place of the stem's map are as a stem that computes zeros."""
    model, images = tiny_model(), random_images()
    params = random_params(model, "float32")
    encoder = model.encoder.bind({"params": params})
    x, outputs = encoder.stages(jnp.zeros_like(encoder.embed(images)), train=False)
    norm = jax.tree.map(np.zeros_like, params["patch_embed"]["norm"])
    params["patch_embed"] = params["patch_embed"] | {"norm": norm}
    expected, expected_outputs = model.encoder.apply({"params": params}, images)
    np.testing.assert_array_equal(x, expected)
    assert outputs.keys() == expected_outputs.keys() - {"stem"}


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("patch_embed/proj/kernel", 0),
        ("layers_0/blocks_0/mlp/fc1/kernel", 1),
        ("layers_0/blocks_1/gamma_1", 2),
        ("layers_0/downsample/proj/kernel", 2),
        ("layers_1/blocks_0/norm1/scale", 3),
        ("layers_1/blocks_10/norm1/scale", 13),
        ("norm/scale", 14),
        ("norm0/scale", 14),
        ("head/kernel", 14),
        ("decoder/layers_0/blocks_0/kernel", 14),
        ("layers_0/blocks_2/norm1/scale", 14),
    ],
)
def test_parameters_have_the_depth_of_their_block(name, depth):
    encoder = tiny_model(depths=(2, 11)).encoder
    assert encoder.max_depth == 14
    assert encoder.depth_of(name) == depth


HEAD = ("head", "norm")


class TwoClones(nn.Module):
    net: nn.Module

    def setup(self):
        self.first, self.second = self.net.clone(), self.net.clone()

    def __call__(self, x):
        return self.first(x)[0], self.second.encoder(x)[0]


class Inside(nn.Module):
    """A module that makes a model, and uses its encoder before the whole."""

    @nn.compact
    def __call__(self, x):
        model = tiny_model()
        return model.encoder(x)[0], model(x)[0]


def test_the_encoder_of_a_bound_model_is_ready_before_the_model_was_called():
    model, backbone, images = tiny_model(), tiny_backbone(), random_images()
    params = random_params(model, "float32")
    expected, _ = model.encoder.apply({"params": params}, images)
    bound = model.bind({"params": params})
    np.testing.assert_array_equal(bound.encoder(images)[0], expected)
    given, _ = model.apply({"params": params}, images, method=lambda m, x: m.encoder(x))
    np.testing.assert_array_equal(given, expected)
    stem = backbone.bind({"params": params}).encoder.embed(images)
    assert stem.shape == (2, 8, 10, 8)
    encoder, variables = bound.encoder.unbind()
    np.testing.assert_array_equal(encoder.apply(variables, images)[0], expected)


def test_trees_do_not_depend_on_what_is_called_first():
    def tree(module):
        shapes = jax.eval_shape(module.init, jax.random.key(0), random_images())
        return jax.tree.structure(shapes["params"])

    model = tiny_model()
    whole = jax.tree.structure(abstract_params(model))
    names = {"first": abstract_params(model)}
    names["second"] = {k: v for k, v in names["first"].items() if k not in HEAD}
    assert tree(TwoClones(model)) == jax.tree.structure(names)
    assert tree(Inside()) == jax.tree.structure({"FocalNet_0": abstract_params(model)})
    assert tree(nn.jit(FocalNet)(model.encoder, num_classes=5)) == whole
    assert tree(nn.remat(FocalNet)(model.encoder, num_classes=5)) == whole


def test_hessian_vector_products():
    """Forward over reverse, of the whole net, agrees with a difference of gradients."""
    model = tiny_model(depths=(1,), focal_levels=(1,), focal_windows=(3,))
    params, images = random_params(model, "float32"), random_images(8, 8)

    def gradient(params):
        return jax.grad(lambda p: (model.apply({"params": p}, images)[0] ** 2).sum())(
            params
        )

    direction = jax.tree.map(jnp.ones_like, params)
    product = jax.jit(lambda p, d: jax.jvp(gradient, (p,), (d,))[1])(params, direction)
    step = 1e-3
    plus, minus = (
        jax.jit(gradient)(jax.tree.map(lambda p, d, s=s: p + s * d, params, direction))
        for s in (step, -step)
    )
    expected = jax.tree.map(lambda a, b: (a - b) / (2 * step), plus, minus)
    # The difference has an error of step**2, and that of float32 over the step.
    assert_trees_close(product, expected, 2e-2)


def test_data_parallelism_by_shard_map():
    """Parameters are the same on all devices, and so are gradients of the mean."""
    model = tiny_model(depths=(1,), focal_levels=(1,), focal_windows=(3,))
    params, images = random_params(model, "float32"), random_images(8, 8)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))

    def loss(params, images):
        return (model.apply({"params": params}, images)[0] ** 2).mean()

    def gradient_of_all(params, images):
        return jax.grad(lambda p: jax.lax.pmean(loss(p, images), "data"))(params)

    specs = PartitionSpec(), PartitionSpec("data")
    run = jax.shard_map(
        gradient_of_all, mesh=mesh, in_specs=specs, out_specs=PartitionSpec()
    )
    expected = jax.jit(jax.grad(loss))(params, images)
    # Sums in float32 are taken in another order.
    assert_trees_close(jax.jit(run)(params, images), expected, 1e-4)
