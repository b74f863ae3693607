"""What is known about images that lie on canvases."""

import jax.numpy as jnp
import numpy as np
import pytest

from focalnet_jax.ops.canvas import (
    inside,
    mean_inside,
    size_after,
    valid_after,
    zero_outside,
)


@pytest.mark.parametrize("spatial", [(5,), (5, 4), (3, 5, 4)])
def test_inside_is_before_the_end_of_each_axis(spatial):
    rng = np.random.default_rng(0)
    valid = rng.integers(0, np.array(spatial) + 1, size=(6, len(spatial)))
    given = inside(jnp.array(valid), spatial)
    expected = np.zeros((6, *spatial, 1), bool)
    for image, sizes in zip(expected, valid):
        image[tuple(map(slice, sizes))] = True
    np.testing.assert_array_equal(given, expected)

    x = jnp.array(rng.normal(size=(6, *spatial, 2)), jnp.bfloat16)
    masked = zero_outside(x, jnp.array(valid))
    assert masked.dtype == x.dtype
    np.testing.assert_array_equal(masked, np.where(expected, x, 0))


def test_without_sizes_all_is_inside():
    x = jnp.array(np.random.default_rng(0).normal(size=(2, 3, 4, 5)))
    assert zero_outside(x, None) is x
    np.testing.assert_array_equal(
        mean_inside(x, None, (1, 2)), x.mean((1, 2), keepdims=True)
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("axes", [(1, 2, 3), (1,), (2, 3)])
def test_the_mean_is_that_of_each_image(axes):
    valid = np.array([[2, 3, 4], [1, 5, 2], [0, 0, 0]])
    x = jnp.array(np.random.default_rng(0).normal(size=(3, 2, 5, 4, 2)))
    given = mean_inside(x, jnp.array(valid), axes)
    for image, sizes in enumerate(valid[:2]):
        alone = x[image, *map(slice, sizes)]
        expected = alone.mean([axis - 1 for axis in axes], keepdims=True)
        # Means of at most 24 numbers of order 1.
        within = given[image, *map(slice, expected.shape[:-1])]
        np.testing.assert_allclose(within, expected, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(given[2], 0)


# Kernel, stride, padding, and the multiple that an axis is padded to.
CONVOLUTIONS = [(4, 4, 0, 1), (4, 4, 0, 4), (7, 4, 2, 1), (7, 4, 3, 1), (3, 2, 1, 2)]


@pytest.mark.parametrize(("kernel", "stride", "padding", "pad_to"), CONVOLUTIONS)
def test_sizes_after_a_convolution(torch, kernel, stride, padding, pad_to):
    options = dict(kernel_size=kernel, stride=stride, padding=padding, pad_to=pad_to)
    lengths = range(kernel, 40)
    for length in lengths:
        x = torch.zeros(1, 1, length + -length % pad_to)
        y = torch.nn.functional.conv1d(
            x, torch.zeros(1, 1, kernel), None, stride, padding
        )
        assert size_after(length, **options) == y.shape[-1]
    valid = jnp.array([(length, 0) for length in lengths])
    given = valid_after(valid, **{name: (value,) * 2 for name, value in options.items()})
    expected = [(size_after(length, **options), 0) for length in lengths]
    np.testing.assert_array_equal(given, expected)
    assert given.dtype == jnp.int32
