"""The fused operator: derivatives of all kinds, meshes, and what it does not reach."""

import functools
import itertools
import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from traced import mesh_of, program_of

from focalnet_jax.kernels import triton_aggregation
from focalnet_jax.ops import aggregate_context, fused_aggregation, kernel_operation
from focalnet_jax.placement import map_axes_over, run_on_shards

# Sums of some hundred terms of order 1 in float32, taken in another order.
CLOSE = dict(rtol=1e-5, atol=1e-5)


def make_inputs(spatial=(6, 5), batch=2, channels=3, sizes=(3, 5), dtype=jnp.float32):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    kernels = [0.3 * draw(*(size,) * len(spatial), 1, channels) for size in sizes]
    context = draw(batch, *spatial, channels)
    return context, draw(batch, *spatial, len(sizes) + 1), kernels


def aggregate(implementation):
    return functools.partial(
        aggregate_context, normalize=True, implementation=implementation
    )


def squares_of(implementation):
    return lambda *inputs: jnp.sum(jnp.square(aggregate(implementation)(*inputs)))


def directional(f):
    """The derivative along the inputs themselves."""
    return lambda *inputs: jax.jvp(f, inputs, inputs)


TRANSFORMS = {
    "value": aggregate,
    "reverse": lambda name: jax.grad(squares_of(name), (0, 1, 2)),
    "kernels alone": lambda name: jax.grad(squares_of(name), 2),
    "forward": lambda name: directional(aggregate(name)),
    "forward over reverse": lambda name: directional(
        jax.grad(squares_of(name), (0, 1, 2))
    ),
    "reverse over reverse": lambda name: jax.grad(
        lambda *inputs: sum(
            jnp.sum(jnp.square(leaf))
            for leaf in jax.tree.leaves(jax.grad(squares_of(name), (0, 1, 2))(*inputs))
        )
    ),
    "checkpoint": lambda name: jax.grad(jax.checkpoint(squares_of(name))),
    "vmap": lambda name: (
        lambda context, gates, kernels: jax.vmap(
            jax.grad(squares_of(name)), (0, 0, None)
        )(context[:, None], gates[:, None], kernels)
    ),
}


@pytest.fixture
def few_rows(monkeypatch):
    """Programs of kernels for GPUs have few rows, so that less has to be compiled."""
    monkeypatch.setattr(triton_aggregation, "ROWS", 2)


# Those for GPUs have the same rules, and the kernels are called for values and gradients.
OF_GPUS = {("reverse over reverse", (6, 5)), ("reverse", (7,))}


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize(
    ("transform", "spatial", "implementation"),
    [
        pytest.param(
            *case,
            name,
            marks=[]
            if name == "interpreted" or case in OF_GPUS
            else pytest.mark.extended,
        )
        for name in ("interpreted", "triton_interpreted")
        for case in itertools.product(TRANSFORMS, [(6, 5), (7,)])
    ],
    ids=str,
)
def test_all_derivatives_are_those_of_convolutions(transform, spatial, implementation):
    inputs = make_inputs(spatial)
    given, expected = (
        jax.jit(TRANSFORMS[transform](name))(*inputs) for name in (implementation, "lax")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), given, expected)


def test_jit_can_be_disabled():
    inputs = make_inputs()
    with jax.disable_jit():
        given = aggregate("interpreted")(*inputs)
    np.testing.assert_allclose(given, aggregate("lax")(*inputs), **CLOSE)


# --- On several devices ------------------------------------------------------


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize(
    ("implementation", "shape", "reaches"),
    [
        ("interpreted", (8,), True),
        ("interpreted", (4, 2), False),
        ("interpreted", (1, 8), False),
        ("triton_interpreted", (8,), True),
        ("triton_interpreted", (4, 2), False),
    ],
    ids=str,
)
def test_each_device_computes_its_part_of_the_batch(
    implementation, shape, reaches, caplog
):
    kernel_operation.warn_once.cache_clear()
    mesh = mesh_of(*shape)
    axes = {"batch": "data", "height": "spatial"} if len(shape) > 1 else {"batch": "data"}
    inputs = make_inputs((8, 3), batch=8)
    split = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())

    @functools.partial(jax.jit, in_shardings=(split, split, [whole, whole]))
    def gradients(*inputs):
        with map_axes_over(mesh, axes):
            return jax.value_and_grad(squares_of(implementation), (0, 1, 2))(*inputs)

    expected = jax.value_and_grad(squares_of("lax"), (0, 1, 2))(*inputs)
    chex.assert_trees_all_close(gradients(*inputs), expected, **CLOSE)
    assert ("devices share the maps of an image" in caplog.text) == (not reaches)


def test_a_batch_that_devices_cannot_share_is_aggregated_level_by_level(caplog):
    kernel_operation.warn_once.cache_clear()
    inputs = make_inputs(batch=3)
    with map_axes_over(mesh_of(2), {"batch": "data"}):
        given = jax.jit(aggregate("interpreted"))(*inputs)
    np.testing.assert_allclose(given, aggregate("lax")(*inputs), **CLOSE)
    assert "3 images on 2 devices" in caplog.text


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize("implementation", ["interpreted", "triton_interpreted"])
def test_inside_shard_map_gradients_of_kernels_are_summed(implementation):
    inputs = make_inputs(batch=4)
    part, whole = PartitionSpec("data"), PartitionSpec()

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=mesh_of(4),
        in_specs=(part, part, [whole, whole]),
        out_specs=(part, part, [whole, whole]),
    )
    def gradients(*inputs):
        return jax.grad(squares_of(implementation), (0, 1, 2))(*inputs)

    expected = jax.grad(squares_of("lax"), (0, 1, 2))(*inputs)
    chex.assert_trees_all_close(gradients(*inputs), expected, **CLOSE)


# --- Which program holds the kernels -----------------------------------------


def text_for(platform, implementation="auto", chip=None, **kwargs):
    """The program of a gradient."""
    gradient = jax.grad(squares_of(implementation), (0, 1, 2))
    inputs = make_inputs(dtype=jnp.bfloat16, **kwargs)
    return program_of(gradient, *inputs, platform=platform, chip=chip)


def test_auto_takes_the_kernels_in_programs_for_tpus():
    assert text_for("tpu", chip="TPU v5 lite").count("tpu_custom_call") == 2
    assert "tpu_custom_call" not in text_for("tpu", "lax", chip="TPU v5 lite")
    assert "tpu_custom_call" not in text_for("cpu", chip="TPU v5 lite")
    assert "tpu_custom_call" not in text_for("cpu")


H100 = "NVIDIA H100 80GB HBM3"
TRITON = "__gpu$xla.gpu.triton"


def test_programs_for_gpus_hold_kernels_if_they_are_asked_for():
    assert text_for("cuda", "triton", H100).count(TRITON) == 6  # 3 for each level
    assert TRITON not in text_for("cuda", "auto", H100)
    assert TRITON not in text_for("cpu", "triton", H100)
    assert "custom_call" not in text_for("tpu", "triton", H100)


@pytest.mark.extended
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("windows", [(3, 5, 7), (9, 11, 13)])
@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("channels", [96, 128, 192, 352])
def test_triton_knows_what_the_kernels_are_made_of(stage, windows, dtype, channels):
    """At the stages of FocalNet-T, B, L and H."""
    gradient = jax.value_and_grad(squares_of("triton"), (0, 1, 2))
    inputs = jax.eval_shape(
        functools.partial(
            make_inputs,
            (56 >> stage,) * 2,
            channels=channels << stage,
            sizes=windows,
            dtype=dtype,
        )
    )
    text = program_of(gradient, *inputs, platform="cuda", chip=H100)
    assert text.count(TRITON) == 9


def test_where_there_is_no_triton_is_said(monkeypatch, caplog):
    kernel_operation.warn_once.cache_clear()
    assert "custom_call" not in text_for("cpu", "triton")
    assert "the program is not for an NVIDIA GPU" in caplog.text
    monkeypatch.setattr(triton_aggregation, "IS_THERE", False)
    assert TRITON not in text_for("cuda", "triton", H100)
    assert "this version of jax has no Pallas for Triton" in caplog.text


@pytest.mark.parametrize(
    ("chip", "side", "levels", "calls"),
    [
        ("TPU v4", 14, 3, 2),
        ("TPU v4", 56, 3, 0),
        ("TPU v5", 56, 3, 2),
        ("TPU v5 lite", 96, 4, 2),
        ("TPU v5 lite", 128, 4, 1),  # the gradient needs more than the rest
    ],
)
def test_maps_that_do_not_fit_are_aggregated_level_by_level(
    chip, side, levels, calls, caplog
):
    kernel_operation.warn_once.cache_clear()
    sizes = (3, 5, 7, 9)[:levels]
    text = text_for("tpu", "fused", chip, spatial=(side, side), sizes=sizes)
    assert text.count("tpu_custom_call") == calls
    assert ("beside a vector unit" in caplog.text) == (calls < 2)


@pytest.mark.parametrize(
    ("implementation", "inputs", "options", "reason"),
    [
        *(
            (name, inputs, options, reason)
            for name in ("interpreted", "triton_interpreted")
            for inputs, options, reason in (
                (
                    dict(spatial=(4, 4, 4)),
                    {},
                    "takes 1 or 2 spatial axes, and maps have 3",
                ),
                (dict(batch=0), {}, "its maps are empty"),
                (dict(dtype=jnp.float16), {}, "not in float16"),
                ({}, dict(global_axes=(1,)), "no axes of the mean"),
                ({}, dict(valid=np.array([[6, 5], [2, 3]])), "the padding of its canvas"),
            )
        ),
        ("interpreted", dict(sizes=(4,)), {}, "kernels of odd sizes"),
        ("triton_interpreted", dict(sizes=(33,)), {}, "kernels of up to 32 rows"),
    ],
)
def test_what_it_does_not_reach_is_said(implementation, inputs, options, reason, caplog):
    kernel_operation.warn_once.cache_clear()
    inputs = make_inputs(**inputs)
    with caplog.at_level(logging.WARNING):
        given = aggregate(implementation)(*inputs, **options)
    assert reason in caplog.text
    np.testing.assert_array_equal(given, aggregate("auto")(*inputs, **options))


def text_for_two_devices(compute):
    """The program of a TPU's mesh whose devices have parts of the batch."""
    mesh = mesh_of(2)
    split = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    context, gates, kernels = make_inputs(dtype=jnp.bfloat16)
    jitted = jax.jit(compute, in_shardings=(split, split, *[whole for _ in kernels]))
    traced = jitted.trace(context, gates, *kernels)
    return traced.lower(lowering_platforms=("tpu",)).as_text()


aggregate_for_tpus = functools.partial(
    fused_aggregation._aggregate_map,
    target=kernel_operation.Target("tpu", vmem=128 << 20),
)


def test_a_program_that_xla_partitions_holds_no_kernel(caplog):
    """Without `map_axes_over`, XLA alone knows which device has which part."""
    kernel_operation.warn_once.cache_clear()
    assert "tpu_custom_call" not in text_for_two_devices(aggregate_for_tpus)
    assert "XLA divides among devices" in caplog.text


def test_a_program_of_parts_of_the_batch_holds_kernels(caplog):
    kernel_operation.warn_once.cache_clear()

    def compute(context, gates, *kernels):
        with map_axes_over(mesh_of(2), {"batch": "data"}):
            return run_on_shards(aggregate_for_tpus, (context, gates), kernels)

    assert "tpu_custom_call" in text_for_two_devices(compute)
    assert not caplog.text


def test_what_is_vmapped_is_said(caplog):
    kernel_operation.warn_once.cache_clear()
    context, gates, kernels = make_inputs()
    jax.vmap(aggregate("interpreted"), (0, 0, None))(context[None], gates[None], kernels)
    assert "jax.vmap" in caplog.text
