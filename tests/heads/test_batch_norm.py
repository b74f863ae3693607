"""BatchNorm has torch's conventions, on maps, on canvases and on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from focalnet_jax.heads.layers import BatchNorm, ConvModule
from focalnet_jax.placement import map_axes_over

WIDE = BatchNorm(dtype=jnp.float64, param_dtype=jnp.float64)
VALID = np.array([[3, 5], [4, 2], [1, 1]], np.int32)


def draw(*shape):
    return np.random.default_rng(0).normal(2.0, 3.0, shape)


def start(channels, dtype="float64"):
    """Variables of some size."""
    rng = np.random.default_rng(1)
    scale, bias, mean = (rng.normal(size=channels).astype(dtype) for _ in range(3))
    averages = {"mean": mean, "var": np.exp(mean), "count": np.int32(7)}
    return {"params": {"scale": scale, "bias": bias}, "batch_stats": averages}


def in_torch(torch, variables, layer):
    norm = layer(len(variables["params"]["scale"])).double()
    own = variables["params"] | variables["batch_stats"]
    names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = ("scale", "bias", "mean", "var", "count")
    norm.load_state_dict({n: torch.tensor(own[key]) for n, key in zip(names, keys)})
    return norm


def assert_averages(given, norm):
    # A few sums of some dozen terms round by 2e-16 each.
    np.testing.assert_allclose(given["mean"], norm.running_mean, rtol=1e-13)
    np.testing.assert_allclose(given["var"], norm.running_var, rtol=1e-13)
    assert int(given["count"]) == int(norm.num_batches_tracked)


@pytest.mark.usefixtures("float64")
def test_trains_and_evaluates_as_torchs(torch):
    """Three batches, of which the averages take in unbiased variances."""
    variables = start(5)
    norm = in_torch(torch, variables, torch.nn.BatchNorm2d)
    run = jax.jit(lambda v, x: WIDE.apply(v, x, train=True, mutable=["batch_stats"]))
    for x in draw(3, 2, 3, 1, 5):
        given, new = run(variables, x)
        variables = variables | new
        expected = norm(torch.tensor(np.moveaxis(x, -1, 1))).detach()
        np.testing.assert_allclose(np.moveaxis(given, -1, 1), expected, atol=1e-12)
    assert_averages(variables["batch_stats"], norm)
    given = WIDE.apply(variables, x, train=False)
    expected = norm.eval()(torch.tensor(np.moveaxis(x, -1, 1))).detach()
    np.testing.assert_allclose(np.moveaxis(given, -1, 1), expected, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_counts_what_belongs_to_images(torch):
    """As torch does that is given those positions alone; nothing else has a gradient."""
    x, variables, weights = draw(3, 4, 5, 2), start(2), draw(3, 4, 5, 2)
    inside = np.zeros((3, 4, 5), bool)
    for own, (height, width) in zip(inside, VALID):
        own[:height, :width] = True

    def total(x):
        y, new = WIDE.apply(
            variables, x, train=True, valid=jnp.array(VALID), mutable=["batch_stats"]
        )
        return jnp.where(inside[..., None], y * weights, 0).sum(), (y, new)

    gradient, (given, new) = jax.jit(jax.grad(total, has_aux=True))(x)
    norm = in_torch(torch, variables, torch.nn.BatchNorm1d)
    positions = torch.tensor(x[inside], requires_grad=True)
    expected = norm(positions)
    (expected * torch.tensor(weights[inside])).sum().backward()
    np.testing.assert_allclose(given[inside], expected.detach(), atol=1e-12)
    np.testing.assert_allclose(gradient[inside], positions.grad, atol=1e-12)
    assert not np.any(gradient[~inside])
    assert_averages(new["batch_stats"], norm)


def test_means_are_exact_where_variances_are_small():
    """And in float32 where maps are bfloat16."""
    x = 1000 + np.random.default_rng(0).choice([0.0, 4.0], (8, 4, 4, 2))
    norm = BatchNorm(dtype=jnp.bfloat16)
    variables = norm.init(jax.random.key(0), jnp.asarray(x, jnp.bfloat16), train=False)
    assert variables["batch_stats"]["count"] == 0
    given, new = norm.apply(
        variables, jnp.asarray(x, jnp.bfloat16), train=True, mutable=["batch_stats"]
    )
    assert given.dtype == jnp.bfloat16
    assert new["batch_stats"]["var"].dtype == jnp.float32
    expected = 0.9 + 0.1 * x.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(new["batch_stats"]["var"], expected, rtol=1e-5)
    assert new["batch_stats"]["count"] == 1


def test_one_position_has_no_variance():
    x = jnp.ones((1, 1, 1, 4))
    variables = BatchNorm().init(jax.random.key(0), x, train=False)
    with pytest.raises(ValueError, match="train with 2 images or more"):
        BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
def test_a_batch_on_eight_devices_is_one_batch(shape):
    """Statistics, results and gradients; split by images and by rows, and unequally."""
    module = ConvModule(3, 3, dtype=jnp.float64, param_dtype=jnp.float64)
    x = jnp.array(draw(8, 6, 5, 4))  # 6 rows don't divide over 4 devices.
    valid = jnp.array(np.random.default_rng(2).integers(1, 6, (8, 2)), jnp.int32)
    variables = module.init(jax.random.key(0), x, train=False)

    def step(variables, x, valid):
        def total(params):
            y, new = module.apply(
                variables | {"params": params},
                x,
                train=True,
                valid=valid,
                mutable=["batch_stats"],
            )
            return (y**2).mean(), (y, new)

        return jax.grad(total, has_aux=True)(variables["params"])

    expected = jax.jit(step)(variables, x, valid)
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(shape), ("data", "spatial"))
    place = NamedSharding(mesh, PartitionSpec("data"))
    with map_axes_over(mesh, {"batch": "data", "height": "spatial"}):
        given = jax.jit(step)(variables, *jax.device_put((x, valid), place))
    # float64, sums in another order.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), given, expected
    )
