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
        (read_transformers, {"do_center_crop": False}, "cuts out the middle square"),
        (read_transformers, {"do_pad": True}, "has do_pad"),
        (read_transformers, {"image_processor_type": "SamImageProcessor"}, "is for Sam"),
        (read_transformers, {"size": {"height": 64, "width": 96}}, "takes 64 x 64"),
        (
            read_transformers,
            {"size": {"shortest_edge": 64, "longest_edge": 96}},
            "longest_edge",
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
        (read_timm, {"input_size": 224}, "input_size=224, which is not channels, hei"),
        (read_timm, {"crop_pct": "0.9"}, "crop_pct='0.9', which is not a number above"),
        (read_timm, {"mean": [0.5, 0.5]}, "which is not 3 numbers, one for each channel"),
        (read_timm, {"std": [0.0] * 3}, "which is not 3 numbers"),
        (read_transformers, {"size": "large"}, "size='large', which is not a size"),
        (read_transformers, {"size": {"edge": 3}}, "which is not a shortest_edge, or"),
        (read_transformers, {"resample": 9}, "resample=9, which is not one of PIL's"),
        (read_transformers, {"image_mean": "gray"}, "image_mean='gray'"),
        (read_transformers, {"crop_size": -3}, "crop_size=-3, which is not a whole"),
    ],
    ids=named,
)
def test_entries_of_the_wrong_type_are_one_line(read, content, message):
    with pytest.raises(SetupError) as error:
        read(content, origin="a file")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
