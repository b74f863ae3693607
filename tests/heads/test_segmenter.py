"""Segmenters: their sizes, names, initial values and options, and images on canvases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, random_like, tiny_segmenter

from focalnet_jax import count_params, create_model, create_segmenter
from focalnet_jax.errors import OptionError
from focalnet_jax.heads import FCNHead, UPerNetHead
from focalnet_jax.models import abstract_params, abstract_variables
from focalnet_jax.tasks.losses import segmentation_loss
from focalnet_jax.trees import named_leaves

# Millions of parameters: README of microsoft/FocalNet has 61, 61, 83, 84, 124 and 126,
# of which the second is cut off.
SIZES = {
    "tiny_srf": 60.82,
    "tiny_lrf": 61.57,
    "small_srf": 83.06,
    "small_lrf": 84.59,
    "base_srf": 123.68,
    "base_lrf": 125.73,
}


@pytest.mark.parametrize(("variant", "millions"), SIZES.items())
def test_published_sizes(variant, millions):
    model = create_segmenter(f"focalnet_{variant}", focal_windows=(9, 9, 9, 9))
    assert count_params(model) / 1e6 == pytest.approx(millions, abs=0.005)


def test_encoder_and_norms_have_the_names_of_others():
    """Those of a classifier, so that a segmenter can start from it."""
    own = named_leaves(abstract_params(tiny_segmenter()))
    classifier = named_leaves(abstract_params(create_model("focalnet_tiny_srf", **TINY)))
    shared = {
        n: leaf for n, leaf in classifier.items() if n.startswith(("patch", "layer"))
    }
    assert {n: own[n] for n in shared} == shared
    others = {name.split("/")[0] for name in own.keys() - shared.keys()}
    assert others == {"norm0", "norm1", "decode_head", "auxiliary_head"}


def test_without_auxiliary_head():
    model = tiny_segmenter(auxiliary_channels=0)
    shape = jax.ShapeDtypeStruct((1, 32, 40, 3), jnp.float32)
    variables = abstract_variables(model)
    assert {*variables} == {"params", "batch_stats"}
    assert {*variables["batch_stats"]} == {"decode_head"}
    logits, outputs = jax.eval_shape(model.apply, variables, shape)
    assert logits.logits.shape == (1, 8, 10, 5)
    assert logits.auxiliary is None
    assert "stage1/block0/gates" in outputs


def test_initial_values_are_those_of_mmsegmentation():
    """Kaiming's by fan-out for convolutions, a narrow distribution for classifiers."""
    head = UPerNetHead(10, channels=64)
    maps = [jnp.zeros((1, 4, 4, 64)), jnp.zeros((1, 2, 2, 64))]
    variables = head.init(jax.random.key(0), maps, train=False, valid=[None, None])
    named = named_leaves(variables["params"])
    # Of some ten thousand draws, so within 2 %; a classifier has 640.
    for name, deviation in {
        "fpn_convs_0/conv/kernel": np.sqrt(2 / (64 * 9)),
        "fpn_bottleneck/conv/kernel": np.sqrt(2 / (64 * 9)),
        "lateral_convs_0/conv/kernel": np.sqrt(2 / 64),
        "conv_seg/kernel": 0.01,
    }.items():
        tolerance = 0.1 if name == "conv_seg/kernel" else 0.03
        assert np.std(named[name]) == pytest.approx(deviation, rel=tolerance), name
    assert not np.any(named["conv_seg/bias"])
    assert np.all(named["bottleneck/bn/scale"] == 1)


def test_dropout_takes_whole_channels():
    head = FCNHead(num_classes=32, channels=32, drop_rate=0.25)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4, 4, 32)), jnp.float32)
    variables = head.init(jax.random.key(0), x, train=False)
    # The logits are the channels that the dropout leaves.
    variables["params"]["conv_seg"]["kernel"] = jnp.eye(32)[None, None]

    def run(head):
        logits, _ = head.apply(
            variables,
            x,
            train=True,
            rngs={"dropout": jax.random.key(1)},
            mutable=["batch_stats"],
        )
        return np.asarray(logits)

    whole, dropped = run(head.clone(drop_rate=0.0)), run(head)
    kept = np.abs(dropped).max((1, 2), keepdims=True) > 0
    np.testing.assert_allclose(dropped, np.where(kept, whole / 0.75, 0), rtol=1e-6)
    assert 0.65 < kept.mean() < 0.85  # of 256 channels


def segmenter_and_variables(**options):
    types = dict(dtype="float64", param_dtype="float64")
    model = tiny_segmenter(**types | options)
    return model, random_like(abstract_variables(model))


def on_canvas(images, height, width):
    """The images in the corners of canvases whose padding is not zero."""
    canvas = np.full((len(images), height, width, 3), 7.0)
    for place, image in zip(canvas, images):
        place[: image.shape[0], : image.shape[1]] = image
    valid = jnp.array([image.shape[:2] for image in images], jnp.int32)
    return jnp.array(canvas), valid


def assert_as_alone(given, expected, valid):
    # float64, sums in another order.
    for own, (height, width) in zip(given, np.asarray(valid)):
        np.testing.assert_allclose(own[:height, :width], expected, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_images_of_several_sizes_on_one_canvas():
    """Each gets the logits that it gets alone, where averages normalise."""
    model, variables = segmenter_and_variables()
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(*size, 3)) for size in [(48, 27), (30, 41), (17, 64)]]
    apply = jax.jit(lambda images, valid: model.apply(variables, images, valid=valid)[0])
    given = apply(*on_canvas(images, 48, 64))
    for index, image in enumerate(images):
        alone = apply(jnp.array(image[None]), None)
        assert alone.valid is None
        for name in ("logits", "auxiliary"):
            sizes = given.valid if name == "logits" else given.auxiliary_valid
            own, expected = getattr(given, name)[index], getattr(alone, name)[0]
            assert tuple(sizes[index]) == expected.shape[:2]
            assert_as_alone(own[None], expected, sizes[index][None])


@pytest.mark.usefixtures("float64")
def test_training_on_canvases_counts_images_alone():
    """Logits, loss, gradients and averages are those of canvases that images fill."""
    model, variables = segmenter_and_variables(head_dropout=0.0, drop_path_rate=0.0)
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(2, 30, 41, 3)), rng.integers(5, size=(2, 30, 41))
    canvas, valid = on_canvas(images, 48, 64)
    large = np.full((2, 48, 64), 255)
    large[:, :30, :41] = labels

    @jax.jit
    def train(images, labels, valid):
        def loss(params):
            (logits, _), new = model.apply(
                variables | {"params": params},
                images,
                train=True,
                valid=valid,
                mutable=["batch_stats"],
            )
            loss = segmentation_loss(logits, labels, valid=valid, loss_over="labelled")
            return loss.total / loss.weight, (logits, new)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    (loss, (logits, averages)), gradients = train(canvas, large, valid)
    (expected, (alone, new)), of_params = train(jnp.array(images), labels, None)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    for own, whole in zip(logits.logits, alone.logits):
        assert_as_alone(own[None], whole, logits.valid[:1])
    # float64, sums in another order, through two blocks and back.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10),
        (averages, gradients),
        (new, of_params),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(head_channels=0), "head_channels=0 is not a whole number from 1"),
        (dict(num_classes=0), "num_classes=0 is not a whole number from 1"),
        (dict(pool_sizes=()), r"pool_sizes=\(\)"),
        (dict(head_dropout=1), "head_dropout=1"),
        (dict(depths=(2,)), "focal_levels has 2 entries"),
        (dict(patch_size=(4,)), "is for inputs that are no images"),
        (
            dict(depths=(1,), focal_levels=(1,), focal_windows=(3,)),
            "makes a single map, and the heads",
        ),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(OptionError, match=message):
        tiny_segmenter(**options)


def test_unknown_options_have_the_nearest_name():
    with pytest.raises(TypeError, match="did you mean 'head_channels'"):
        create_segmenter("focalnet_tiny_srf", head_chanels=3)
    with pytest.raises(ValueError, match="did you mean 'focalnet_tiny_srf'"):
        create_segmenter("focalnet_tiny_sfr")
