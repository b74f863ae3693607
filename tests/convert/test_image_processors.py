"""The preprocessing that timm and transformers write, against their own processors."""

import numpy as np
import PIL.Image
import pytest

from focalnet_jax.convert.image_processors import read_timm, read_transformers
from focalnet_jax.errors import SetupError

RNG = np.random.default_rng(0)
IMAGES = [
    PIL.Image.fromarray(RNG.integers(0, 256, (*size, 3), dtype=np.uint8))
    # Of these, some give a crop whose place is between two pixels.
    for size in ((50, 61), (83, 50), (64, 64), (51, 47))
]
SQUASHED = {"size": [64, 96], "do_center_crop": False}
HALF = dict(image_mean=[0.5] * 3, image_std=[0.25, 0.5, 0.75])


@pytest.mark.parametrize(
    ("kind", "entries"),
    [
        ("Bit", {"size": {"shortest_edge": 36}, "crop_size": 32, "resample": 2}),
        ("Bit", {"size": 37, "crop_size": {"height": 31, "width": 31}}),
        ("Bit", {"size": {"shortest_edge": 41}, "crop_size": 32, "do_normalize": False}),
        ("Bit", {"size": {"shortest_edge": 36}, "crop_size": 32, "do_rescale": False}),
        ("Bit", {"size": {"shortest_edge": 36}, "crop_size": 32, "rescale_factor": 0.01}),
        ("Bit", {"size": {"height": 32, "width": 32}, "do_center_crop": False}),
        ("Bit", {"size": {"shortest_edge": 36}, "crop_size": 32, "resample": 1}),
        ("ViT", {"size": {"height": 32, "width": 32}, "resample": 0}),
        ("ViT", {"size": 32}),
        ("ViT", {"size": {"height": 24, "width": 40}}),
        ("Bit", {"size": [40, 24], "do_center_crop": False}),
        ("DeiT", {"size": [40, 60], "crop_size": {"height": 30, "width": 45}}),
        ("DeiT", {"size": [41, 60], "crop_size": [32, 47]}),
        ("DeiT", {"size": {"height": 40, "width": 40}, "crop_size": 33}),
        ("ConvNext", {"size": {"shortest_edge": 32}, "crop_pct": 0.9}),
        ("ConvNext", {"size": {"shortest_edge": 384}}),
    ],
    ids=str,
)
def test_transformers_processors_make_the_same_numbers(kind, entries, peers):
    import transformers

    content = {"image_processor_type": f"{kind}ImageProcessor"} | HALF | entries
    preprocessing, notes = read_transformers(content, origin="a file")
    assert notes == ()
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**HALF | entries)
    for image in IMAGES:
        theirs = processor(image, return_tensors="np")["pixel_values"][0]
        ours = preprocessing(image)
        # They subtract and divide in another order, in float32 and of up to 1e3.
        np.testing.assert_allclose(ours.transpose(2, 0, 1), theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "entries",
    [
        {"input_size": [3, 32, 32], "crop_pct": 0.9, "interpolation": "bilinear"},
        {"input_size": [3, 33, 33], "crop_pct": 0.8, "interpolation": "bicubic"},
        {"input_size": [3, 32, 32], "crop_pct": 1.0, "crop_mode": "squash"},
        {"input_size": [3, 32, 32], "interpolation": "lanczos", "crop_mode": "center"},
        {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25, 0.5, 0.75]},
    ],
    ids=str,
)
def test_timms_transform_makes_the_same_numbers(entries, peers):
    from timm.data import create_transform, resolve_data_config

    preprocessing, notes = read_timm(entries, origin="a file")
    assert notes == ()
    transform = create_transform(**resolve_data_config(pretrained_cfg=entries))
    for image in IMAGES:
        theirs = transform(image).numpy()
        # torch multiplies by 1 / 255, which can change the last bit.
        np.testing.assert_allclose(
            preprocessing(image).transpose(2, 0, 1), theirs, atol=1e-6
        )


def named(value):
    return getattr(value, "__name__", str(value))


def test_timms_preprocessing_has_timms_defaults():
    preprocessing, _ = read_timm({"crop_pct": 0.95}, origin="a file")
    assert (preprocessing.image_size, preprocessing.crop) == (224, 0.95)
    assert preprocessing.interpolation == "bicubic"


def test_timms_input_may_be_no_square():
    """It is cut as `EvalTransform` does, which a test compares with timm."""
    preprocessing, notes = read_timm({"input_size": [3, 160, 224]}, origin="config.json")
    assert (preprocessing.image_size, notes) == ((160, 224), ())


@pytest.mark.parametrize(
    ("read", "content", "note"),
    [
        (read_timm, {"crop_mode": "border"}, "crop_mode='border'"),
        (read_timm, {"interpolation": "area"}, "interpolation='area'"),
        (read_timm, {"test_input_size": [3, 288, 288]}, "test_input_size=[3, 288, 288]"),
        (read_timm, {"crop_pct": 0.9, "test_crop_pct": 1.0}, "crop_pct=0.9 is taken"),
        (read_transformers, {"do_resize": False}, "do_resize=false"),
        (read_transformers, {"do_center_crop": False}, "cuts out the middle 224 x 224"),
        (read_transformers, {"do_pad": True}, "has do_pad"),
        (read_transformers, {"image_processor_type": "SamImageProcessor"}, "is for Sam"),
        (read_transformers, {"do_resize": False, **SQUASHED}, "makes 64 x 96 pixels"),
        (
            read_transformers,
            {"crop_size": {"height": 360, "width": 880}},
            "resizes to a shorter side of 224 and cuts out 360 x 880, which "
            "preprocessing can't do alike for all images: it resizes to what covers 360",
        ),
        (
            read_transformers,
            {"size": {"shortest_edge": 256}, "crop_size": [64, 128]},
            "it resizes to what covers 256 x 512",
        ),
        (
            read_transformers,
            {"size": {"height": 64, "width": 96}, "crop_size": 48},
            "resizes to 64 x 96 and cuts out 48 x 48, which preprocessing can't do alike "
            "for all images: it resizes to 96 x 96",
        ),
        (
            read_transformers,
            {"size": {"shortest_edge": 224, "longest_edge": 300}},
            "of which preprocessing heeds shortest_edge alone",
        ),
        (
            read_transformers,
            {"image_processor_type": "ConvNextImageProcessor", "do_center_crop": True},
            "has do_center_crop",
        ),
    ],
    ids=named,
)
def test_what_is_not_heeded_is_said(read, content, note):
    _, notes = read(content, origin="a file")
    assert len(notes) == 1
    assert notes[0].startswith("a file ")
    assert note in notes[0]


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_timm, {"input_size": 224}, "which is not a list of 3 whole numbers"),
        (
            read_timm,
            {"crop_pct": "0.9"},
            "which is not a number in [0.1, 1]",
        ),
        (read_timm, {"mean": [0.5, 0.5]}, "one for each of 3 channels"),
        (read_timm, {"std": [0.0] * 3}, "which is not a number in [1e-06, 1,0"),
        (
            read_transformers,
            {"size": "large"},
            "which is not a whole number",
        ),
        (read_transformers, {"size": {"edge": 3}}, "which is not a shortest_edge, or"),
        (
            read_transformers,
            {"resample": 9},
            "which is not a whole number from 0",
        ),
        (read_transformers, {"image_mean": "gray"}, "image_mean='gray'"),
        (read_transformers, {"crop_size": -3}, "crop_size=-3, which is not a whole"),
        (read_timm, {"crop_pct": 0}, "crop_pct=0, which is not a number in [0.1, 1]"),
        (read_timm, {"crop_pct": 1e-9}, "crop_pct=1e-09, which is not a number in"),
        (read_timm, {"crop_pct": 5}, "crop_pct=5, which is not a number in [0.1, 1]"),
        (
            read_timm,
            {"input_size": [3, 10**9, 10**9]},
            "3 whole numbers from 1 to 16,384",
        ),
        (read_transformers, {"do_resize": "no"}, "do_resize='no', which is not True or"),
        (read_transformers, {"resample": True}, "resample=True, which is not a whole"),
        (read_transformers, {"rescale_factor": 0}, "rescale_factor=0, which is not a nu"),
        (
            read_transformers,
            {"image_processor_type": "ConvNextImageProcessor", "crop_pct": 3000},
            "crop_pct=3000, which is not a number in [0.1, 1]",
        ),
        (
            read_transformers,
            {"size": {"shortest_edge": 10**400}},
            "a file, in size, has shortest_edge=1000",
        ),
        (
            read_transformers,
            {"size": 4096, "crop_size": 32},
            "a file asks for a preprocessing that is not possible here: crop=0.0078125 "
            "is not a number in [0.1, 1]",
        ),
    ],
    ids=named,
)
def test_entries_of_the_wrong_type_are_one_line(read, content, message):
    with pytest.raises(SetupError) as error:
        read(content, origin="a file")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("read", [read_timm, read_transformers], ids=named)
def test_there_is_a_mean_for_each_channel(read):
    prefix = "" if read is read_timm else "image_"
    four = {f"{prefix}mean": [0.1, 0.2, 0.3, 0.4], f"{prefix}std": [0.5] * 4}
    preprocessing, notes = read(four, origin="a file", channels=4)
    assert (preprocessing.mean, notes) == ((0.1, 0.2, 0.3, 0.4), ())
    # One number is for all channels, and no channels but these are meant.
    one = four | {f"{prefix}std": 0.25}
    assert read(one, origin="a file", channels=4)[0].std == (0.25,) * 4
    with pytest.raises(SetupError, match="one for each of 2 channels"):
        read(four, origin="a file", channels=2)
    with pytest.raises(SetupError, match="differ in their number of channels"):
        read(four | {f"{prefix}std": [0.5] * 3}, origin="a file", channels=4)


def test_without_a_model_the_processor_says_how_many_channels_there_are():
    content = {"image_mean": [0.1] * 4, "image_std": [0.2] * 4}
    assert read_transformers(content, origin="a file")[0].mean == (0.1,) * 4
