"""Resizing and pooling agree with PyTorch, and on canvases with each image alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focalnet_jax.errors import OptionError
from focalnet_jax.ops.resize import adaptive_average_pool, resize

METHODS = {
    "edges": dict(method="bilinear"),
    "corners": dict(method="bilinear", align_corners=True),
    "nearest": dict(method="nearest"),
}
# Odd sizes, up and down, in one axis and in both, from one position and to one.
SIZES = [
    ((7, 5), (13, 11)),
    ((13, 11), (7, 5)),
    ((9, 4), (5, 17)),
    ((6, 6), (12, 3)),
    ((1, 3), (5, 1)),
    ((5, 3), (5, 3)),
]


def interpolate(torch, x, size, *, method, align_corners=False):
    corners = {} if method == "nearest" else {"align_corners": align_corners}
    return torch.nn.functional.interpolate(x, size, mode=method, **corners)


def pool(torch, x, size):
    return torch.nn.functional.adaptive_avg_pool2d(x, size)


def assert_equals_torch(torch, compute, reference, spatial):
    """Compares values and gradients, in float64.

    Each value is a sum of few products of order 1, so that it is exact to some units of
    2e-16, and a gradient sums up as many as there are new positions beside one.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *spatial, 3))
    variable = torch.tensor(np.moveaxis(x, -1, 1), requires_grad=True)
    expected = reference(variable)
    given, pull = jax.vjp(compute, jnp.asarray(x))
    np.testing.assert_allclose(
        given, np.moveaxis(expected.detach().numpy(), 1, -1), rtol=0, atol=1e-12
    )
    weights = rng.normal(size=given.shape)
    (expected * torch.tensor(np.moveaxis(weights, -1, 1))).sum().backward()
    np.testing.assert_allclose(
        pull(jnp.asarray(weights))[0],
        np.moveaxis(variable.grad.numpy(), 1, -1),
        rtol=0,
        atol=1e-11,
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("spatial", "size"), SIZES)
@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
def test_resizes_as_torch(torch, options, spatial, size):
    assert_equals_torch(
        torch,
        lambda x: resize(x, size, **options),
        lambda x: interpolate(torch, x, size, **options),
        spatial,
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("spatial", [(7, 5), (13, 6), (2, 1), (6, 6)])
@pytest.mark.parametrize("size", [1, 2, 3, 6, (5, 4)])
def test_pools_as_torch(torch, spatial, size):
    assert_equals_torch(
        torch,
        lambda x: adaptive_average_pool(x, size),
        lambda x: pool(torch, x, size),
        spatial,
    )


# Pairs of lengths: all up to 64, and some at which float32 rounds.
LENGTHS = [(old, new) for old in range(1, 65) for new in range(1, 65)]
LONG = [(640, 427), (1333, 800), (2048, 683), (1000, 729)]


def nearest_in_torch(torch, old, new):
    x = torch.arange(old, dtype=torch.float32)[None, None]
    return torch.nn.functional.interpolate(x, new, mode="nearest")[0, 0]


def positions(images, length):
    """Lines whose values are their positions."""
    line = jnp.arange(length, dtype=jnp.float32)[None, :, None]
    return jnp.broadcast_to(line, (images, length, 1))


@pytest.mark.parametrize(("old", "new"), [*LENGTHS[::397], *LONG])
def test_nearest_takes_the_position_that_torch_takes(torch, old, new):
    given = resize(positions(1, old), (new,), method="nearest")
    np.testing.assert_array_equal(given[0, :, 0], nearest_in_torch(torch, old, new))


@pytest.mark.parametrize("pairs", [LENGTHS, LONG], ids=["short", "long"])
def test_nearest_takes_that_position_on_canvases(torch, pairs):
    most = max(map(max, pairs))
    expected = np.zeros((len(pairs), most))
    for row, (old, new) in zip(expected, pairs):
        row[:new] = nearest_in_torch(torch, old, new)
    old, new = (np.array(column)[:, None] for column in zip(*pairs))
    compute = functools.partial(resize, size=(most,), method="nearest")
    canvas = positions(len(pairs), most)
    given = jax.jit(compute)(canvas, valid=old, new_valid=new)
    np.testing.assert_array_equal(given[..., 0], expected)


@pytest.mark.parametrize("new", [41, 49, 55])
@pytest.mark.parametrize("compile", [jax.jit, lambda function: function])
def test_nearest_takes_that_position_if_one_size_is_shared(torch, compile, new):
    old = np.arange(1, 65)[:, None]
    compute = compile(functools.partial(resize, size=(new,), method="nearest"))
    given = compute(positions(64, 64), valid=old)
    expected = [nearest_in_torch(torch, length, new) for [length] in old]
    np.testing.assert_array_equal(given[..., 0], np.stack(expected))


# Of images, and what they become; the last image is none.
OLD = [(7, 5), (3, 8), (9, 9), (1, 2), (0, 0)]
NEW = [(11, 6), (8, 8), (4, 10), (1, 7), (5, 0)]


def on_canvas(height=9, width=10, dtype=None):
    """Random maps, whose padding isn't zero."""
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(len(OLD), height, width, 2)), dtype)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
def test_a_canvas_gives_what_each_image_gives_alone(options):
    canvas, valid, new_valid = on_canvas(), jnp.array(OLD), jnp.array(NEW)

    @jax.jit
    def compute(canvas):
        return resize(canvas, (12, 11), valid=valid, new_valid=new_valid, **options)

    given, pull = jax.vjp(compute, canvas)
    weights = np.random.default_rng(1).normal(size=given.shape)
    [gradient] = pull(jnp.asarray(weights))
    expected, expected_gradient = np.zeros(given.shape), np.zeros(canvas.shape)
    for image in range(4):
        old, new = (tuple(map(slice, sizes[image])) for sizes in (OLD, NEW))
        alone = jax.jit(functools.partial(resize, size=NEW[image], **options))
        result, pull = jax.vjp(alone, canvas[image : image + 1, *old])
        expected[image, *new] = result[0]
        [of_alone] = pull(jnp.asarray(weights[image : image + 1, *new]))
        expected_gradient[image, *old] = of_alone[0]
    # As exact as against torch.
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=1e-11)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("size", [1, 3, (6, 4)])
def test_pools_each_image_of_a_canvas_alone(size):
    canvas = on_canvas()
    compute = jax.jit(functools.partial(adaptive_average_pool, size=size))
    given = compute(canvas, valid=jnp.array(OLD))
    for image, (height, width) in enumerate(OLD[:4]):
        alone = canvas[image : image + 1, :height, :width]
        expected = compute(alone)[0]
        np.testing.assert_allclose(given[image], expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(given[4], 0)


@pytest.mark.usefixtures("float64")
def test_either_size_may_be_that_of_the_canvas():
    canvas, whole = on_canvas(), jnp.array([[9, 10]] * 5)
    given = resize(canvas, (12, 11), valid=jnp.array(OLD))
    expected = resize(
        canvas, (12, 11), valid=jnp.array(OLD), new_valid=jnp.array([[12, 11]] * 5)
    )
    np.testing.assert_array_equal(given, expected)
    given = resize(canvas, (12, 11), new_valid=jnp.array(NEW))
    expected = resize(canvas, (12, 11), valid=whole, new_valid=jnp.array(NEW))
    np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("valid", [None, OLD])
def test_keeps_the_dtype_and_rounds_once(dtype, valid):
    valid = valid and jnp.array(valid)
    canvas = on_canvas(dtype=jnp.dtype(dtype))
    for compute in (
        functools.partial(resize, size=(5, 13), valid=valid),
        functools.partial(adaptive_average_pool, size=3, valid=valid),
    ):
        compute = jax.jit(compute)
        given = compute(canvas)
        assert given.dtype == dtype
        expected = compute(canvas.astype("float32")).astype(dtype)
        np.testing.assert_array_equal(given, expected)


def test_other_numbers_of_axes():
    """A line gives what a plane of height 1 gives, and so does a volume of depth 1."""
    line = on_canvas()[:, 0]
    expected = resize(line[:, None], (1, 13))
    np.testing.assert_array_equal(resize(line, (13,)), expected[:, 0])
    np.testing.assert_array_equal(
        resize(line[:, None, None], (1, 1, 13)), expected[:, None]
    )


def test_says_what_it_does_not_do():
    with pytest.raises(OptionError, match="method='nearst' .*did you mean 'nearest'"):
        resize(on_canvas(), (3, 3), method="nearst")
    with pytest.raises(OptionError, match="align_corners=True has no effect with"):
        resize(on_canvas(), (3, 3), method="nearest", align_corners=True)
    with pytest.raises(AssertionError):
        resize(on_canvas(), (3,))
    with pytest.raises(AssertionError):
        resize(jnp.ones((1, 2, 2, 1), int), (3, 3))
    with pytest.raises(AssertionError):
        resize(on_canvas(), (3, 3), valid=jnp.array(OLD[:2]))
