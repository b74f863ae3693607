"""Decoding, cropping and resizing of images."""

import io

import numpy as np
import PIL.Image
import pytest

from focalnet_jax.data import EvalTransform, Preprocessing, TrainTransform


def encode(pixels):
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def random_pixels(height, width, channels=3):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(50, 80), (80, 50), (50, 50)])
def test_evaluation_resizes_the_shorter_side_and_cuts_the_middle(height, width):
    pixels = random_pixels(height, width)
    # int(32 / 0.875) = 36 for the shorter side, int(36 * 80 / 50) = 57 for the longer.
    scaled = [36 if side == 50 else 57 for side in (width, height)]
    image = PIL.Image.fromarray(pixels).resize(scaled, PIL.Image.Resampling.BICUBIC)
    left, upper = (2 if side == 36 else 12 for side in scaled)  # 12.5 rounds to even
    expected = np.asarray(image)[upper : upper + 32, left : left + 32]
    np.testing.assert_array_equal(EvalTransform(32)(encode(pixels)), expected)


def test_recipe_evaluates_on_256_for_224():
    pixels = random_pixels(300, 256)
    result = EvalTransform(224)(encode(pixels))
    # The shorter side is 256 already: nothing is resized.
    np.testing.assert_array_equal(result, pixels[38:262, 16:240])


def test_whole_image_at_its_own_size_is_untouched():
    pixels = random_pixels(16, 16)
    np.testing.assert_array_equal(EvalTransform(16, crop=1.0)(encode(pixels)), pixels)
    whole = TrainTransform(16, crop_area=(1, 1), crop_aspect=(1, 1), flip=False)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(whole(encode(pixels), rng), pixels)


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_transparent_images_become_rgb(channels):
    pixels = random_pixels(16, 16, channels)
    result = EvalTransform(16, crop=1.0)(encode(pixels.squeeze()))
    expected = np.repeat(pixels, 3, axis=-1) if channels == 1 else pixels[..., :3]
    np.testing.assert_array_equal(result, expected)


def test_crops_cover_the_stated_areas_and_aspects():
    """20,000 boxes: within bounds, and uniform where the recipe says so."""
    transform = TrainTransform(8, crop_area=(0.2, 0.5), crop_aspect=(0.5, 2.0))
    rng = np.random.default_rng(0)
    boxes = np.array([transform._crop_box(400, 400, rng) for _ in range(20_000)])
    left, upper, right, lower = boxes.T
    assert (left >= 0).all()
    assert (upper >= 0).all()
    assert (right <= 400).all()
    assert (lower <= 400).all()
    width, height = right - left, lower - upper
    share = width * height / 400**2
    aspect = np.log2(width / height)
    # Sides are whole numbers, so the limits are met to a few parts in a thousand.
    assert share.min() > 0.195
    assert share.max() < 0.505
    assert abs(aspect).max() < 1.02
    # Uniform between the limits; five standard errors of a mean of 20,000.
    assert share.mean() == pytest.approx(0.35, abs=5 * 0.3 / np.sqrt(12 * 20_000))
    assert aspect.mean() == pytest.approx(0, abs=5 * 2 / np.sqrt(12 * 20_000))
    # The place is uniform over what is left of each side.
    slack = left / np.maximum(400 - width, 1)
    assert slack.mean() == pytest.approx(0.5, abs=5 / np.sqrt(12 * 20_000) + 0.005)


def test_images_too_oblong_for_any_crop_give_their_middle():
    transform = TrainTransform(8, crop_area=(1, 1), crop_aspect=(0.75, 4 / 3))
    rng = np.random.default_rng(0)
    assert transform._crop_box(1000, 30, rng) == (480, 0, 520, 30)
    assert transform._crop_box(30, 1000, rng) == (0, 480, 30, 520)


def test_half_of_the_images_are_mirrored():
    pixels = random_pixels(8, 8)
    encoded = encode(pixels)
    transform = TrainTransform(8, crop_area=(1, 1), crop_aspect=(1, 1))
    rng = np.random.default_rng(0)
    mirrored = 0
    for _ in range(1000):
        result = transform(encoded, rng)
        if (result == pixels[:, ::-1]).all():
            mirrored += 1
        else:
            np.testing.assert_array_equal(result, pixels)
    assert abs(mirrored - 500) < 5 * np.sqrt(250)


def photographs():
    """The two photographs that come with scikit-learn, and crops of odd sizes."""
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    return [china, flower, china[:251, :400], flower[:, :199], china[:90, :70]]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [224, 384])
def test_evaluation_equals_torchvisions_to_the_last_bit(size, interpolation, torch):
    """As the official code evaluates: 256 / 224 of the crop, PIL, the middle."""
    from torchvision import transforms

    reference = transforms.Compose(
        [
            transforms.Resize(
                int(256 / 224 * size), transforms.InterpolationMode(interpolation)
            ),
            transforms.CenterCrop(size),
        ]
    )
    ours = EvalTransform(size, crop=224 / 256, interpolation=interpolation)
    for pixels in photographs():
        image = PIL.Image.fromarray(pixels)
        np.testing.assert_array_equal(ours(encode(pixels)), np.asarray(reference(image)))


def test_normalisation_equals_torchvisions(torch):
    from torchvision import transforms

    preprocessing = Preprocessing()
    reference = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )
    for pixels in photographs():
        expected = reference(PIL.Image.fromarray(pixels)).movedim(0, -1).numpy()
        # The same operations on float32; one rounding may fall otherwise.
        np.testing.assert_allclose(
            preprocessing.normalize(pixels), expected, rtol=0, atol=2**-21
        )
