"""Images of a split share few canvases, with little padding."""

import numpy as np
import pytest

from focalnet_jax.data import resized_size
from focalnet_jax.tasks.segmentation_groups import group_by_size, padding_of

SCALE = (2048, 512)


def draw_sizes(count=300, seed=0):
    """Photographs of many sizes, upright and oblong ones."""
    rng = np.random.default_rng(seed)
    short = rng.integers(200, 900, count)
    long = (short * rng.choice([1, 4 / 3, 3 / 2, 16 / 9], count)).astype(int)
    upright = rng.random(count) < 0.3
    return np.where(upright[:, None], np.c_[long, short], np.c_[short, long])


@pytest.mark.parametrize("most", [1, 3, 6])
def test_every_image_has_one_place_that_is_large_enough(most):
    sizes = draw_sizes()
    scales = (SCALE, (1024, 256))
    groups = group_by_size(sizes, scales=scales, most=most)
    assert len(groups) == most
    together = sorted(index for group in groups for index in group.indices)
    assert together == [*range(len(sizes))]
    for group in groups:
        assert list(group.indices) == sorted(group.indices)
        needed = [
            *(
                [resized_size(tuple(sizes[i]), scale) for i in group.indices]
                for scale in scales
            )
        ]
        for canvas, each in zip(group.canvases, needed):
            largest = np.max(each, 0)
            assert (largest <= canvas).all()
            assert (canvas - largest < 32).all()
        largest = sizes[list(group.indices)].max(0)
        assert (largest <= group.label_canvas).all()
        assert (group.label_canvas - largest < 8).all()


def test_more_groups_have_less_padding():
    sizes = draw_sizes()
    shares = [
        padding_of(group_by_size(sizes, scales=(SCALE,), most=most), sizes, SCALE)
        for most in (1, 2, 6, 20)
    ]
    assert shares == sorted(shares, reverse=True)
    # With one group a canvas holds upright images and oblong ones.
    assert shares[0] > 0.3
    assert shares[2] < 0.1


def test_what_is_alike_stays_together():
    sizes = np.array([(300, 400), (400, 300), (301, 399), (399, 301), (300, 400)])
    groups = group_by_size(sizes, scales=(SCALE,), most=6)
    assert sorted(group.indices for group in groups) == [(0, 2, 4), (1, 3)]


def test_images_that_cannot_be_read_have_a_place_too():
    sizes = np.array([(0, 0), (300, 400), (0, 0), (600, 300)])
    groups = group_by_size(sizes, scales=(SCALE,), most=2)
    assert sorted(index for group in groups for index in group.indices) == [0, 1, 2, 3]
    [alone] = group_by_size(sizes[:1], scales=(SCALE,), most=2)
    assert alone.indices == (0,)


def test_thousands_of_sizes_are_rounded_first():
    """A pair of all of them is compared in each step."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(100, 4000, (3000, 2))
    groups = group_by_size(sizes, scales=(SCALE,), most=6)
    assert len(groups) == 6
    assert sum(len(group.indices) for group in groups) == 3000
