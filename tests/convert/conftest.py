"""Parameters of a small model, and the shapes of full-size variants, traced once."""

import functools

import pytest
from converting import small
from tiny import random_params

from focalnet_jax import create_model, list_models
from focalnet_jax.models import abstract_params
from focalnet_jax.trees import named_leaves

# Together these have each option on and off. The extended run has all variants.
DEFAULT = (
    "focalnet_tiny_srf",
    "focalnet_base_lrf",
    "focalnet_base_iso",
    "focalnet_large_fl4",
    "focalnet_huge_fl3",
)


@functools.cache
def shapes_of(name):
    model = create_model(name)
    leaves = named_leaves(abstract_params(model))
    return {path: leaf.shape for path, leaf in leaves.items()}


@pytest.fixture(
    params=[
        pytest.param(name, marks=() if name in DEFAULT else pytest.mark.extended)
        for name in list_models()
    ]
)
def variant(request):
    """The name of a variant and the shapes of its parameters by path."""
    return request.param, shapes_of(request.param)


@pytest.fixture
def params():
    """Of `small`."""
    return random_params(small(), "float32")
