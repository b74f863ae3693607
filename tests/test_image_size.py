"""Sizes of images, as people spell them."""

import numpy as np
import pytest

from focalnet_jax.image_size import height_and_width, parse_image_size


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (224, 224),
        ("224", 224),
        (np.int64(32), 32),
        ((32, 32), 32),
        ([24, 48], (24, 48)),
        ("(24,48)", (24, 48)),
        ("[24, 48]", (24, 48)),
        ("24,48", (24, 48)),
        ("360x880", (360, 880)),
        (" 360 X 880 ", (360, 880)),
        ("32x32", 32),
        (16_384, 16_384),
    ],
)
def test_sizes_have_one_form(given, size):
    assert parse_image_size(given) == size
    assert parse_image_size(parse_image_size(given)) == size
    assert height_and_width(size) == (size if isinstance(size, tuple) else (size, size))


@pytest.mark.parametrize(
    "given",
    [
        *(0, -1, 1.5, 224.0, float("inf"), float("nan"), True, None, {}, b"24"),
        *((24,), (24, 48, 3), (), (0, 24), (24, -1), (24, 1.5), (24, "48"), (True, 24)),
        *("", "abc", "24x", "x48", "24x48x3", "0x24", "1e3", "(24", "24 48", "('a', 3)"),
        *(((24, 48),), ((24, 48), 3), "()", "[[24,48]]", "٢٤x48", "(" * 1000),
    ],
)
def test_what_is_no_size_is_said(given):
    with pytest.raises(ValueError, match=r"is no size.*224, or \(height, width\)"):
        parse_image_size(given)


@pytest.mark.parametrize("given", [10**20, (24, 16_385), "99999999999x2"])
def test_sizes_have_an_end(given):
    with pytest.raises(ValueError, match="at most 16,384 pixels a side"):
        parse_image_size(given)
