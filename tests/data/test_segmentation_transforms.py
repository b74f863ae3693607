"""Transforms of images with labels: those of mmsegmentation, to the last bit."""

import sys

import numpy as np
import PIL.Image
import pytest
from mask_files import ade, encode, image_of, mask_of, write

from focalnet_jax.data import (
    BadRecordError,
    EvalSegmentationTransform,
    MaskClasses,
    MaskLabels,
    TrainSegmentationTransform,
    open_segmentation,
    resized_size,
)
from focalnet_jax.data.images import segmentation
from focalnet_jax.data.images.segmentation import Distortion
from focalnet_jax.errors import SetupError
from focalnet_jax.tasks.segmentation_examples import EvalSegmentation, TrainSegmentation

# Smaller ones would fit into a crop; these are cut, padded, or both.
SIZES = [(120, 160), (61, 200), (200, 61), (40, 48)]


class SameDraws:
    """NumPy's global generator, of which mmsegmentation draws, as a `Generator`."""

    random = staticmethod(np.random.random_sample)
    integers = staticmethod(np.random.randint)
    uniform = staticmethod(np.random.uniform)


@pytest.fixture(scope="module")
def reference(mmseg):
    """A function that applies mmsegmentation's transforms to an image and its labels."""
    from mmcv.transforms import RandomResize, Resize
    from mmseg.datasets.transforms import PhotoMetricDistortion, RandomCrop, RandomFlip

    def apply(image, label, *, crop_size, scale, test=False):
        steps = [
            RandomResize(scale, ratio_range=(0.5, 2.0), keep_ratio=True),
            RandomCrop(crop_size, cat_max_ratio=0.75),
            RandomFlip(prob=0.5),
            PhotoMetricDistortion(),
        ]
        results = dict(img=image[..., ::-1].copy())
        if test:
            steps = [Resize(scale, keep_ratio=True)]
        else:
            results |= dict(gt_seg_map=label.copy(), seg_fields=["gt_seg_map"])
        for step in steps:
            results = step(results)
        return results["img"][..., ::-1], results.get("gt_seg_map")

    return apply


@pytest.mark.parametrize("size", SIZES)
def test_training_makes_the_pixels_of_mmsegmentation(reference, size):
    """With one seed, all draws are the same, redrawn crops included."""
    crop_size, scale = (64, 80), (400, 100)
    transform = TrainSegmentationTransform(crop_size, scale=scale)
    shapes = set()
    for seed in range(16):
        image, label = image_of(seed, size), mask_of(seed, size)
        np.random.seed(seed)  # noqa: NPY002
        expected = reference(image, label, crop_size=crop_size, scale=scale)
        np.random.seed(seed)  # noqa: NPY002
        crop = transform(encode(image), label, SameDraws())
        height, width = expected[1].shape
        assert crop.valid.tolist() == [height, width]
        np.testing.assert_array_equal(crop.image[:height, :width], expected[0])
        np.testing.assert_array_equal(crop.label[:height, :width], expected[1])
        assert crop.image.shape == (*crop_size, 3)
        assert crop.label.shape == crop_size
        for rest in (np.s_[height:], np.s_[:, width:]):
            assert not crop.image[rest].any()
            assert (crop.label[rest] == 255).all()
        shapes.add((height, width))
    assert len(shapes) > 1 or size == SIZES[0]


def test_files_become_the_crops_of_mmsegmentation(mmseg, tmp_path):
    """From JPEGs and PNGs on, with its data set for ADE20K."""
    from mmengine.registry import DefaultScope
    from mmseg.datasets import ADE20KDataset

    root = ade(tmp_path, [("training", 6)])
    names = [f"training/ADE_{i:03}" for i in range(3)]
    jpegs = [{"quality": 70}, {"quality": 95, "subsampling": 0}, {"progressive": True}]
    for number, (name, options) in enumerate(zip(names, jpegs)):
        encoded = encode(image_of(name, (20 + number, 30)), "JPEG", **options)
        write(root, {f"images/{name}.jpg": encoded})
    palette = PIL.Image.fromarray(mask_of("palette", (23, 30), indices=(0, 1, 150)), "P")
    palette.putpalette([*range(256)] * 3)
    write(root, {"annotations/training/ADE_003.png": encode(palette)})
    with DefaultScope.overwrite_default_scope("mmseg"):  # where its transforms are found
        reference = ADE20KDataset(
            data_root=str(root),
            data_prefix=dict(
                img_path="images/training", seg_map_path="annotations/training"
            ),
            pipeline=[
                dict(type="LoadImageFromFile"),
                dict(type="LoadAnnotations"),
                dict(type="RandomResize", scale=(96, 32), ratio_range=(0.5, 2.0))
                | dict(keep_ratio=True),
                dict(type="RandomCrop", crop_size=(24, 24), cat_max_ratio=0.75),
                dict(type="RandomFlip", prob=0.5),
                dict(type="PhotoMetricDistortion"),
                dict(type="PackSegInputs"),
            ],
        )
    source = open_segmentation(f"folder:{root}", split="train", classes="ade20k")
    transform = TrainSegmentationTransform(24, scale=(96, 32))
    example = TrainSegmentation(transform, source.mask_labels(150))
    assert len(reference) == len(source) == 6
    for index in range(6):
        np.random.seed(index)  # noqa: NPY002
        expected = reference[index]
        np.random.seed(index)  # noqa: NPY002
        row = example(source.read(index), SameDraws())
        image = expected["inputs"].numpy()[::-1].transpose(1, 2, 0)
        height, width, _ = image.shape
        np.testing.assert_array_equal(row["image"][:height, :width], image)
        label = expected["data_samples"].gt_sem_seg.data[0].numpy()
        np.testing.assert_array_equal(row["label"][:height, :width], label)


@pytest.mark.parametrize("distorted", range(5))
def test_each_distortion_is_that_of_mmsegmentation(mmseg, monkeypatch, distorted):
    """Each alone over its whole range, and all levels of all channels."""
    from mmseg.datasets.transforms import transforms

    levels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    theirs = transforms.PhotoMetricDistortion()
    step, made, amounts = [
        ("brightness", lambda x: Distortion(brightness=x), (-32, -7.3, 0.4, 31.9)),
        ("contrast", lambda x: Distortion(contrast=x), (0.5, 0.77, 1.0, 1.5)),
        ("contrast", lambda x: Distortion(None, x, True), (0.5, 0.77, 1.0, 1.5)),
        ("saturation", lambda x: Distortion(saturation=x), (0.5, 0.77, 1.0, 1.5)),
        ("hue", lambda x: Distortion(hue=x), (-18, -1, 0, 17)),
    ][distorted]
    draws = []
    for name in ("randint", "uniform"):
        monkeypatch.setattr(transforms.random, name, lambda *_: draws.pop(0))
    for amount in amounts:
        draws += [1, amount]
        expected = getattr(theirs, step)(levels[..., ::-1].copy())[..., ::-1]
        np.testing.assert_array_equal(made(amount).apply(levels), expected)


def test_evaluation_resizes_as_mmsegmentation_does(reference):
    for size in [*SIZES, (30, 31), (1, 300)]:
        image = image_of(size, size)
        expected, _ = reference(image, None, crop_size=1, scale=(256, 64), test=True)
        assert resized_size(size, (64, 256)) == expected.shape[:2]
        canvas, valid = EvalSegmentationTransform((256, 64), (256, 256))(image)
        height, width = valid
        np.testing.assert_array_equal(canvas[:height, :width], expected)
        assert not canvas[height:].any()
        assert not canvas[:, width:].any()
    with pytest.raises(ValueError, match="64 x 85 pixels do not fit on a canvas"):
        EvalSegmentationTransform((256, 64), (64, 84))(image_of(0, SIZES[0]))


def test_labels_are_never_interpolated():
    """Classes 0 and 200 touch everywhere, and nothing between them appears."""
    transform = TrainSegmentationTransform(32, scale=(64, 32))
    rng = np.random.default_rng(0)
    for _ in range(50):
        size = tuple(rng.integers(5, 80, 2))
        label = rng.choice(np.array([0, 200], np.uint8), size)
        crop = transform(encode(image_of(0, size)), label, rng)
        height, width = crop.valid
        assert {*np.unique(crop.label[:height, :width])} <= {0, 200}


def test_labels_stay_on_their_pixels():
    """An image whose levels are its labels still fits them after all transforms."""
    labels = np.repeat(np.repeat(mask_of("x", (4, 5), (0, 100, 200)), 20, 0), 20, 1)
    image = np.repeat(labels[..., None], 3, -1)
    transform = TrainSegmentationTransform(64, scale=(100, 80), photometric=False)
    rng = np.random.default_rng(0)
    agree, mirrored = [], 0
    for _ in range(20):
        crop = transform(encode(image), labels, rng)
        height, width = crop.valid
        image_part = crop.image[:height, :width, 0]
        agree.append((image_part == crop.label[:height, :width]).mean())
        mirrored += (image_part != crop.label[:height, :width][:, ::-1]).mean() > 0.2
    # Edges are blurred over a pixel or two of each patch of 10 to 40.
    assert np.mean(agree) > 0.85
    assert mirrored  # So a label that were mirrored alone would be noticed.


def test_a_crop_of_one_class_is_drawn_anew_ten_times():
    label = np.zeros((64, 64), np.uint8)
    label[:, 60:] = 1
    drawn = []

    class Counting(SameDraws):
        @staticmethod
        def integers(low, high):
            drawn.append((low, high))
            return low

    transform = TrainSegmentationTransform(32, scale=(64, 64), ratio_range=(1, 1))
    transform._draw_corner(label, Counting())
    assert len(drawn) == 2 * 11
    drawn.clear()
    always = TrainSegmentationTransform(32, category_share=1.0)
    always._draw_corner(label, Counting())
    assert len(drawn) == 2
    drawn.clear()
    label[:, :20] = 2  # Shares of 20 / 32 and 12 / 32: below 0.75.
    transform._draw_corner(label, Counting())
    assert len(drawn) == 2
    drawn.clear()
    label[:] = 255  # Nothing counts: there is no share, and no error.
    transform._draw_corner(label, Counting())
    assert len(drawn) == 2 * 11


def test_draws_have_the_stated_shares():
    rng = np.random.default_rng(0)
    draws = [Distortion.draw(rng) for _ in range(4000)]
    for name in ("brightness", "contrast", "saturation", "hue"):
        share = np.mean([getattr(draw, name) is not None for draw in draws])
        assert abs(share - 0.5) < 0.04  # five standard deviations
    assert abs(np.mean([draw.contrast_first for draw in draws]) - 0.5) < 0.04
    hues = {draw.hue for draw in draws} - {None}
    assert (min(hues), max(hues)) == (-18, 17)


@pytest.mark.parametrize("turned", [False, True])
def test_a_mask_of_another_size_is_refused(turned):
    image = image_of("x", (20, 30))
    options = {}
    if turned:
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        options = dict(exif=exif)
    record = {
        "image": encode(image, "JPEG", **options),
        "mask": encode(mask_of("x", (30, 20), indices=(0, 1))),
    }
    labels = MaskLabels(MaskClasses(), 2)
    train = TrainSegmentation(TrainSegmentationTransform(8), labels)
    evaluate = EvalSegmentation(labels, (64, 64), (64, 64), (32, 32))
    for make in (
        lambda: train(record, np.random.default_rng(0)),
        lambda: evaluate(record),
    ):
        with pytest.raises(BadRecordError) as error:
            make()
        message = str(error.value)
        assert message.startswith("its mask has 20 x 30 pixels, but the image 30 x 20")
        assert ("EXIF" in message) == turned
        assert len(message.encode()) < 232


def test_evaluation_keeps_labels_at_their_size():
    record = {"image": encode(image_of("x")), "mask": encode(mask_of("x"))}
    example = EvalSegmentation(MaskLabels(MaskClasses(), 3), (60, 40), (48, 64), (24, 32))
    row = example(record)
    shapes = {name: (array.shape, array.dtype) for name, array in row.items()}
    assert shapes == {
        "image": ((48, 64, 3), np.uint8),
        "valid": ((2,), np.int32),
        "label": ((24, 32), np.uint8),
        "size": ((2,), np.int32),
    }
    assert row["valid"].tolist() == [40, 60]
    assert row["size"].tolist() == [20, 30]
    np.testing.assert_array_equal(row["label"][:20, :30], mask_of("x"))
    assert (row["label"][20:] == 255).all()
    assert (row["label"][:, 30:] == 255).all()
    blank = example(None)
    assert {name: (a.shape, a.dtype) for name, a in blank.items()} == shapes
    assert (blank["label"] == 255).all()
    assert (blank["valid"] > 0).all()  # so that no mean is over nothing


def test_crops_of_which_nothing_counts_are_made():
    record = {
        "image": encode(image_of("x")),
        "mask": encode(np.full((20, 30), 255, "u1")),
    }
    labels = MaskLabels(MaskClasses(), 3)
    train = TrainSegmentation(TrainSegmentationTransform(16, scale=(64, 64)), labels)
    row = train(record, np.random.default_rng(0))
    assert (row["label"] == 255).all()


def test_without_opencv_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "focalnet_jax.data.images.opencv", None)
    segmentation.segmentation_operations.cache_clear()
    try:
        with pytest.raises(
            SetupError, match=r"(?s)OpenCV.*pip install .focalnet_jax\[fa"
        ):
            segmentation.segmentation_operations()
    finally:
        segmentation.segmentation_operations.cache_clear()
