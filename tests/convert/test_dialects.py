"""Names and layouts, compared with the implementations that have them."""

import numpy as np
import pytest
from tiny import random_params

from focalnet_jax import create_backbone, create_model
from focalnet_jax.convert.dialects import CLASSIFIER_DIALECTS, DIALECTS
from focalnet_jax.models import abstract_params
from focalnet_jax.trees import named_leaves

EVERYTHING = dict(
    depths=(2, 1, 1),
    embed_dim=8,
    focal_levels=(2, 1, 3),
    focal_windows=(3, 5, 3),
    num_classes=5,
)


def test_names_are_one_to_one(variant):
    """Every path of a full-size variant has one name, and the name has only that path."""
    name, shapes = variant
    use_postln = create_model(name).encoder.use_postln
    for dialect in CLASSIFIER_DIALECTS.values():
        keys = {path: dialect.key_of(path, use_postln=use_postln) for path in shapes}
        assert {dialect.path_of(key): key for key in keys.values()} == keys
        for path, key in keys.items():
            assert sum(bool(row[0].fullmatch(path)) for row in dialect._rows) == 1
            assert sum(bool(row[1].fullmatch(key)) for row in dialect._rows) == 1


def test_only_microsoft_names_the_norms_of_a_backbone():
    model = create_backbone("focalnet_tiny_srf")
    paths = [
        path for path in named_leaves(abstract_params(model)) if path.startswith("norm")
    ]
    assert sorted(paths)[0] == "norm0/bias"
    for path in paths:
        key = DIALECTS["microsoft"].key_of(path, use_postln=False)
        assert DIALECTS["microsoft"].path_of(key) == path
        assert DIALECTS["timm"].key_of(path, use_postln=False) is None
        assert DIALECTS["transformers"].key_of(path, use_postln=False) is None


@pytest.mark.parametrize("dialect", CLASSIFIER_DIALECTS.values(), ids=lambda d: d.name)
def test_layouts_are_inverse(dialect):
    params = random_params(create_model("focalnet_huge_fl3", **EVERYTHING))
    for path, array in named_leaves(params).items():
        back = dialect.from_torch(path, dialect.to_torch(path, array))
        np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("kind", ["timm", "transformers"])
@pytest.mark.parametrize("name", ["focalnet_tiny_srf", "focalnet_huge_fl3"])
def test_names_and_shapes_are_the_peers(name, kind, peers):
    model = create_model(name, **EVERYTHING)
    expected = {k: tuple(v.shape) for k, v in state_dict(peers, kind, model).items()}
    given = {}
    for path, leaf in named_leaves(abstract_params(model)).items():
        key = DIALECTS[kind].key_of(path, use_postln=model.encoder.use_postln)
        given[key] = DIALECTS[kind].to_torch(path, np.zeros(leaf.shape)).shape
    assert given == expected


def state_dict(peers, kind, model):
    return peers.build_peer(kind, model).state_dict()


def test_h_is_dense_here_and_a_convolution_there():
    """These are examples of the layouts, written out."""
    microsoft, timm = DIALECTS["microsoft"], DIALECTS["timm"]
    block = "layers_0/blocks_0"
    f, h = np.zeros((2, 5)), np.zeros((2, 3))
    assert microsoft.to_torch(f"{block}/modulation/f/kernel", f).shape == (5, 2)
    assert microsoft.to_torch(f"{block}/modulation/h/kernel", h).shape == (3, 2, 1, 1)
    assert timm.to_torch(f"{block}/modulation/f/kernel", f).shape == (5, 2, 1, 1)
    depthwise = np.zeros((3, 5, 1, 7))
    assert microsoft.to_torch("patch_embed/proj/kernel", np.zeros((1, 1, 3, 8))).ndim == 4
    path = f"{block}/modulation/focal_layers_0/kernel"
    assert microsoft.to_torch(path, depthwise).shape == (7, 1, 3, 5)
