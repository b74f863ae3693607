"""StableHLO programs compute what their model does."""

import sys

import chex
import jax
import numpy as np
import pytest
from exported_models import MODELS, VIDEOS, parameters
from tiny import random_params, tiny_model

from focalnet_jax.errors import SetupError
from focalnet_jax.export import export_program
from focalnet_jax.trees import named_leaves

PROGRAMS = MODELS | {
    "volumes": lambda: tiny_model(**VIDEOS),
    "rows in bfloat16": lambda: tiny_model(patch_size=(4,), dtype="bfloat16"),
}


@pytest.mark.parametrize(
    "name",
    parameters(
        PROGRAMS,
        *("the usual one", "a backbone", "an overlapping stem, padded", "volumes"),
        "rows in bfloat16",
    ),
)
def test_one_program_computes_all_sizes(name):
    model = PROGRAMS[name]()
    params = random_params(model, "float32")
    exported = jax.export.deserialize(bytearray(export_program(model, params)))
    assert exported.platforms == ("cpu", "tpu", "cuda")
    rng = np.random.default_rng(0)
    for batch, *sizes in ((1, 16, 16, 16), (3, 27, 34, 20)):
        shape = (batch, *sizes[: model.encoder.spatial_rank], 3)
        images = rng.normal(size=shape).astype(np.float32)
        expected, _ = jax.jit(model.apply)({"params": params}, images)
        given = exported.call(named_leaves(params), images)
        # The layers are fused in another way: about ten roundings of float32, or one of
        # bfloat16.
        tolerance = 2e-6 if model.encoder.dtype == np.float32 else 2e-2
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
        chex.assert_trees_all_close(given, expected, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize(
    "options", [dict(), dict(use_conv_embed=True, use_layerscale=True)], ids=str
)
def test_a_program_may_have_a_gradient(options):
    """Of parameters and of images."""
    model = tiny_model(**options)
    params = random_params(model, "float32")
    program = bytearray(export_program(model, params, vjp=True))
    exported = jax.export.deserialize(program)
    images = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)

    def total(params, images):
        return model.apply({"params": params}, images)[0].sum()

    given, of_images = jax.grad(lambda p, x: exported.call(p, x).sum(), argnums=(0, 1))(
        named_leaves(params), images
    )
    expected, of_images_expected = jax.grad(total, argnums=(0, 1))(params, images)
    pairs = [(given[name], leaf) for name, leaf in named_leaves(expected).items()]
    for gradient, leaf in [*pairs, (of_images, of_images_expected)]:
        largest = np.abs(leaf).max()
        assert largest > 0
        np.testing.assert_allclose(gradient, leaf, rtol=0, atol=2e-5 * largest)


def test_what_writes_programs_is_told(monkeypatch):
    model = tiny_model()
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(SetupError, match="flatbuffers, .* pip install"):
        export_program(model, random_params(model, "float32"))
