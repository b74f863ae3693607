"""The model of masked image modelling, against transformers and by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, random_params

from focalnet_jax import create_masked_model, create_model
from focalnet_jax.convert import from_torch, infer_model, to_torch
from focalnet_jax.models import abstract_params, count_multiply_adds
from focalnet_jax.tasks.masked_image_modeling import hidden_errors
from focalnet_jax.trees import named_leaves

SIZE = 32
EVERYTHING = dict(
    use_conv_embed=True,
    use_layerscale=True,
    use_postln_in_modulation=True,
    normalize_modulator=True,
)


def masked_model(**options):
    return create_masked_model("focalnet_tiny_srf", **TINY | options)


def some_mask(model, batch=2, size=SIZE, seed=0):
    patches = size // model.encoder.patch_size
    return np.random.default_rng(seed).random((batch, patches, patches)) < 0.6


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["usual", "everything"])
def test_loss_and_gradients_are_those_of_transformers(torch, options):
    transformers = pytest.importorskip("transformers", reason="it is the reference")
    model = masked_model(dtype="float64", param_dtype="float64", **options)
    params, encoder = random_params(model), model.encoder
    config = transformers.FocalNetConfig(
        image_size=SIZE,
        embed_dim=encoder.embed_dim,
        depths=list(encoder.depths),
        focal_levels=list(encoder.focal_levels),
        focal_windows=list(encoder.focal_windows),
        encoder_stride=encoder.total_stride[0],
        use_conv_embed=encoder.use_conv_embed,
        use_layerscale=encoder.use_layerscale,
        use_post_layernorm_in_modulation=encoder.use_postln_in_modulation,
        normalize_modulator=encoder.normalize_modulator,
        drop_path_rate=0.0,
    )
    peer = transformers.FocalNetForMaskedImageModeling(config).double()
    state_dict = {
        name: torch.from_numpy(array)
        for name, array in to_torch(params, model, dialect="transformers").items()
    }
    peer.load_state_dict(state_dict, strict=True)
    images = np.random.default_rng(1).normal(size=(2, SIZE, SIZE, 3))
    mask = some_mask(model)
    # As many hidden patches in each image: then ours and theirs are the same mean.
    mask[1] = np.roll(mask[0], 3, axis=1)
    result = peer(
        torch.from_numpy(images.transpose(0, 3, 1, 2)),
        bool_masked_pos=torch.from_numpy(mask.reshape(2, -1)),
    )
    result.loss.backward()

    def loss_of(params):
        painted, _ = model.apply({"params": params}, images, mask)
        return hidden_errors(images, painted, mask).mean(), painted

    (loss, painted), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
    theirs = result.reconstruction.detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(painted, theirs, rtol=0, atol=1e-10 * abs(theirs).max())
    # They add 1e-5 to the number of hidden pixels in float32, where it changes nothing.
    assert float(loss) == pytest.approx(result.loss.item(), rel=1e-10)
    for name, array in to_torch(gradients, model, dialect="transformers").items():
        expected = peer.get_parameter(name).grad.numpy()
        atol = 1e-10 * max(abs(expected).max(), 1e-3)
        np.testing.assert_allclose(array, expected, rtol=0, atol=atol)


def test_hidden_patches_are_not_seen():
    model = masked_model()
    params = random_params(model, "float32")
    mask = some_mask(model, batch=1)
    rng = np.random.default_rng(2)
    images = rng.normal(size=(1, SIZE, SIZE, 3)).astype(np.float32)
    pixels = mask.repeat(4, axis=1).repeat(4, axis=2)[..., None]
    others = np.where(pixels, rng.normal(size=images.shape), images).astype(np.float32)
    seen = np.where(pixels, images, images + 1).astype(np.float32)
    first, second, third = (
        model.apply({"params": params}, x, jnp.array(mask))[0]
        for x in (images, others, seen)
    )
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - third).max() > 1e-3


def test_without_a_mask_it_sees_all():
    model = masked_model()
    variables = {"params": random_params(model, "float32")}
    images = np.random.default_rng(0).normal(size=(1, SIZE, SIZE, 3)).astype(np.float32)
    nothing = jnp.zeros((1, 8, 8), bool)
    expected, outputs = model.apply(variables, images, nothing)
    given, _ = model.apply(variables, images)
    np.testing.assert_array_equal(given, expected)
    assert outputs["stage1"].shape == (1, 4, 4, 16)


@pytest.mark.parametrize("patch_size", [(4,), (2, 4, 4)], ids=["rows", "volumes"])
def test_it_paints_inputs_of_another_rank(patch_size):
    """One position after the other: each holds its channels, then its pixels."""
    model = masked_model(patch_size=patch_size, focal_windows=(3, 3))
    rank, strides = len(patch_size), model.encoder.total_stride
    params = random_params(model, "float32")
    spatial = [2 * stride for stride in strides]
    images = np.zeros((1, *spatial, 3), np.float32)
    painted, outputs = model.apply({"params": params}, images)
    assert painted.shape == images.shape
    norm, decoder = params["norm"], params["decoder"]
    x = np.asarray(outputs["stage1"])
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    patches = (x * norm["scale"] + norm["bias"]) @ decoder["kernel"] + decoder["bias"]
    last = patches[(0, *[1] * rank)].reshape(3, *strides)
    expected = np.moveaxis(last, 0, -1)
    given = painted[(0, *[slice(stride, None) for stride in strides])]
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-5 * abs(expected).max())


def test_sides_must_be_multiples():
    model = masked_model()
    variables = {"params": random_params(model, "float32")}
    with pytest.raises(ValueError, match="36 x 32 pixels are no multiples of 8 x 8"):
        model.apply(variables, jnp.zeros((1, 36, 32, 3)))


def test_a_mask_is_of_patches():
    model = masked_model()
    variables = {"params": random_params(model, "float32")}
    images = jnp.zeros((1, SIZE, SIZE, 3))
    with pytest.raises(TypeError, match="the mask is float32, expected bool"):
        model.apply(variables, images, jnp.zeros((1, 8, 8)))
    with pytest.raises(ValueError, match=r"shape \(1, 64\), expected \(1, 8, 8\)"):
        model.apply(variables, images, jnp.zeros((1, 64), bool))


def test_the_tree_is_that_of_a_classifier_but_for_its_head():
    masked = named_leaves(abstract_params(masked_model()))
    classifier = named_leaves(
        abstract_params(create_model("focalnet_tiny_srf", num_classes=5, **TINY))
    )
    assert masked.keys() - classifier.keys() == {
        *("decoder/bias", "decoder/kernel", "mask_token")
    }
    assert classifier.keys() - masked.keys() == {"head/bias", "head/kernel"}
    assert masked["decoder/kernel"].shape == (16, 3 * 8 * 8)
    assert masked["mask_token"].shape == (8,)


def test_the_decoder_counts():
    here, plain = (
        count_multiply_adds(model, SIZE)
        for model in (
            masked_model(),
            create_model("focalnet_tiny_srf", num_classes=0, **TINY),
        )
    )
    assert here - plain == 4 * 4 * 16 * 3 * 8 * 8


@pytest.mark.usefixtures("float64")
def test_weights_of_transformers_come_back():
    model = masked_model(param_dtype="float64")
    params = random_params(model)
    tensors = to_torch(params, model, dialect="transformers")
    assert tensors["focalnet.embeddings.mask_token"].shape == (1, 1, 8)
    assert tensors["decoder.0.weight"].shape == (192, 16, 1, 1)
    name, overrides = infer_model(tensors)
    assert overrides.pop("reconstruct") is True
    again = create_masked_model(name, **overrides, param_dtype="float64")
    assert again.encoder.depths == model.encoder.depths
    jax.tree.map(np.testing.assert_array_equal, from_torch(tensors, model), params)


def test_it_has_no_options_of_other_kinds():
    with pytest.raises(TypeError, match="has no head, and so no num_classes: leave it"):
        masked_model(num_classes=3)
    with pytest.raises(TypeError, match="reconstruct"):
        masked_model().clone(reconstruct=False)
