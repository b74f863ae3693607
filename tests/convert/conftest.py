"""The shapes of full-size variants, traced once."""

import functools

import pytest

from focalnet_jax import create_model, list_models
from focalnet_jax.convert.fit import abstract_params

# Together they have each option on and off; the extended run has all.
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
    return {path: leaf.shape for path, leaf in abstract_params(model).items()}


@pytest.fixture(
    params=[
        pytest.param(name, marks=() if name in DEFAULT else pytest.mark.extended)
        for name in list_models()
    ]
)
def variant(request):
    """A variant's name and the shapes of its parameters, by path."""
    return request.param, shapes_of(request.param)
