"""Each plausible mistake is found by a comparison with transformers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, tiny_model

from focalnet_jax.models import encoder, modulation
from focalnet_jax.ops import focal_modulation, positionwise
from focalnet_jax.ops.layer_norm import layer_norm
from focalnet_jax.parity.layers import compare_layers


def replace_layer(monkeypatch, name, function):
    """In all functions of single positions."""
    layers_of = positionwise._layers_of
    monkeypatch.setattr(
        positionwise,
        "_layers_of",
        lambda dtype: layers_of(dtype)._replace(**{name: function}),
    )


def tanh_gelu(monkeypatch):
    # This one approximates by default.
    replace_layer(monkeypatch, "gelu", jax.nn.gelu)
    monkeypatch.setattr(focal_modulation, "gelu", jax.nn.gelu)


def smaller_epsilon(monkeypatch):
    norm = functools.partial(layer_norm, epsilon=1e-6)
    replace_layer(monkeypatch, "layer_norm", norm)


def global_gate_first(monkeypatch):
    aggregate = modulation.aggregate_context

    def mutated(context, gates, kernels, **options):
        return aggregate(context, jnp.roll(gates, 1, axis=-1), kernels, **options)

    monkeypatch.setattr(modulation, "aggregate_context", mutated)


def query_and_context_swapped(monkeypatch):
    split = jnp.split

    def mutated(array, *args, **options):
        query, context, gates = split(array, *args, **options)
        return context, query, gates

    monkeypatch.setattr(modulation.jnp, "split", mutated)


def stem_padded_by_3(monkeypatch):
    embed = encoder.PatchEmbed

    def mutated(features, *, padding, **options):
        padding = tuple(3 if size == 2 else size for size in padding)
        return embed(features, padding=padding, **options)

    monkeypatch.setattr(encoder, "PatchEmbed", mutated)


def mean_before_the_last_level(monkeypatch):
    aggregate = modulation.aggregate_context

    def mutated(context, gates, kernels, **options):
        *before, _ = kernels
        zero = jnp.zeros_like(gates[..., :1])
        # All levels but the last have the global gate, and the last one has none.
        without_last = jnp.concatenate([gates[..., :-2], gates[..., -1:]], axis=-1)
        levels = len(kernels)
        first = aggregate(context, without_last, before, **options) * levels
        only_last = jnp.concatenate(
            [jnp.zeros_like(gates[..., :-2]), gates[..., -2:-1], zero], axis=-1
        )
        return (
            first + aggregate(context, only_last, kernels, **options) * (levels + 1)
        ) / (levels + 1)

    monkeypatch.setattr(modulation, "aggregate_context", mutated)


def division_left_out(monkeypatch):
    aggregate = modulation.aggregate_context

    def mutated(*args, normalize, **options):
        return aggregate(*args, normalize=False, **options)

    monkeypatch.setattr(modulation, "aggregate_context", mutated)


MUTATIONS = [
    tanh_gelu,
    smaller_epsilon,
    global_gate_first,
    query_and_context_swapped,
    stem_padded_by_3,
    mean_before_the_last_level,
    division_left_out,
]


@pytest.mark.parametrize(
    "mutate", [None, *MUTATIONS], ids=lambda m: m.__name__ if m else "nothing"
)
def test_mutations_are_found(mutate, monkeypatch, peers):
    """The precision and the tolerance are those that the parity tool has by default."""
    model = tiny_model(
        "focalnet_large_fl4", depths=(1,), focal_levels=(4,), focal_windows=(3,)
    )
    params = random_params(model, "float32")
    images = np.float32(np.random.default_rng(1).normal(size=(2, 32, 40, 3)))
    # With small values, a wrong epsilon makes a difference.
    params["patch_embed"]["proj"] = jax.tree.map(
        lambda leaf: leaf / 50, params["patch_embed"]["proj"]
    )
    if mutate:
        mutate(monkeypatch)
    verdict = compare_layers(model, params, "transformers", images, tolerance=2e-5)
    assert verdict.passes is (mutate is None), verdict
