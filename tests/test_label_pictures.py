"""Pictures of labels have the colours of their classes, where they belong."""

import io

import numpy as np
import PIL.Image
import pytest

from focalnet_jax.label_pictures import (
    Labelled,
    Legend,
    coloured,
    side_by_side,
    with_palette,
)

COLORS = np.array([(0, 0, 200), (0, 160, 0), (0, 210, 255)], np.uint8)
LEGEND = Legend(["sea", "land", "lake"], COLORS)
WRONG, UNLABELLED = (220, 30, 30), (128, 128, 128)


def pixels_of(png):
    with PIL.Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def count(pixels, color):
    return int((pixels == color).all(-1).sum())


def test_each_class_has_its_colour():
    labels = np.array([[0, 1, 2], [255, 7, 1]], np.uint8)
    pixels = np.asarray(coloured(labels, LEGEND))
    np.testing.assert_array_equal(pixels[0], COLORS)
    np.testing.assert_array_equal(pixels[1], [UNLABELLED, UNLABELLED, COLORS[1]])


def test_masks_hold_the_labels_themselves():
    labels = np.array([[0, 1], [2, 1]], np.int32)
    image = with_palette(labels, LEGEND)
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), labels)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), COLORS[labels])


def row(truth=True):
    predicted = np.zeros((60, 90), int)
    predicted[:, 45:] = 1
    labels = predicted.copy()
    labels[:6], labels[6:12] = 2, 255
    image = np.full((30, 45, 3), (200, 100, 50), np.uint8)
    return Labelled(image, predicted, labels if truth else None, title="a title")


def test_truth_prediction_and_errors_stand_side_by_side():
    pixels = pixels_of(side_by_side([row()], LEGEND, side=90))
    swatch = 15 * 15
    assert count(pixels, WRONG) == 6 * 90 + swatch
    # In the truth and among the errors.
    assert count(pixels, UNLABELLED) == 2 * 6 * 90 + swatch
    assert count(pixels, COLORS[2]) == 6 * 90 + swatch
    assert count(pixels, COLORS[0]) == (60 + 48) * 45 + swatch
    assert count(pixels, (200, 100, 50)) == 60 * 90


def test_without_truth_there_are_two_pictures():
    pixels = pixels_of(side_by_side([row(truth=False)], LEGEND, side=90))
    assert count(pixels, COLORS[0]) == 60 * 45 + 15 * 15
    assert not count(pixels, COLORS[2])  # Nor is it in the legend.
    assert not count(pixels, WRONG)
    assert pixels.shape[1] < 250


@pytest.mark.parametrize(("side", "shown"), [(60, 2 / 3), (90, 1), (170, 1), (180, 2)])
def test_small_pictures_grow_by_whole_multiples_alone(side, shown):
    pixels = pixels_of(side_by_side([row(truth=False)], LEGEND, side=side))
    assert count(pixels, COLORS[1]) == round(60 * 45 * shown**2) + 15 * 15


def test_many_classes_are_named_by_their_area():
    names = [f"class {number}" for number in range(150)]
    colors = np.stack([np.arange(150), np.full(150, 9), np.full(150, 77)], 1)
    labels = np.repeat(np.arange(60), np.arange(60) + 1)[None]
    legend = Legend(names, colors.astype(np.uint8))
    image = np.zeros((1, labels.size, 3), np.uint8)
    pixels = pixels_of(side_by_side([Labelled(image, labels)], legend, side=1830))
    swatches = [count(pixels, color) >= 15 * 15 for color in colors]
    assert swatches == [20 <= number < 60 for number in range(150)]
