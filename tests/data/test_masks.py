"""Masks: how they are decoded, what their indices mean, and which ones are refused."""

import numpy as np
import PIL.Image
import pytest
from mask_files import encode, mask_of

from focalnet_jax.data import BadRecordError, MaskClasses, MaskLabels
from focalnet_jax.data.images.masks import decode_mask
from focalnet_jax.data.sources.mask_classes import (
    KNOWN_CLASSES,
    distinct_colors,
    read_mask_classes,
)
from focalnet_jax.errors import SetupError

MASK = mask_of("mask", indices=(0, 1, 7, 255))


def with_palette():
    image = PIL.Image.fromarray(MASK, "P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    return image


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (encode(MASK), MASK),
        (encode(with_palette()), MASK),
        (encode(with_palette(), transparency=1), MASK),
        (encode(MASK, "TIFF"), MASK),
        (encode(MASK.astype(np.uint16) * 9), MASK.astype(int) * 9),
        (encode(MASK > 0), MASK > 0),
    ],
    ids=["grey", "palette", "transparent", "tiff", "16-bit", "1-bit"],
)
def test_indices_are_what_the_file_stores(encoded, expected):
    indices = decode_mask(encoded)
    np.testing.assert_array_equal(indices, expected)
    assert np.issubdtype(indices.dtype, np.integer)


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (encode(MASK, "JPEG", quality=100), "its mask is a JPEG, .* made anew as PNG"),
        (encode(np.stack([MASK] * 3, -1)), "its mask has 3 channels .PIL calls it RGB"),
        (encode(np.stack([MASK] * 4, -1)), "its mask has 4 channels"),
        (encode(np.stack([MASK] * 2, -1)), "its mask has 2 channels .PIL calls it LA"),
        (encode(MASK.astype(np.float32), "TIFF"), "its mask has fractions for pixels"),
        (encode(MASK)[:-40], "its mask: OSError: .*truncated"),
        (b"no image", "its mask is 8 bytes, no image"),
        (b"", "its mask has zero bytes"),
    ],
)
def test_what_is_no_mask_is_refused(encoded, message):
    with pytest.raises(BadRecordError, match=message) as error:
        decode_mask(encoded)
    assert len(str(error.value).encode()) < 232  # A batch has no room for more.


def labels_of(indices, classes, num_classes=3):
    mask = np.array([indices], np.uint8)
    return MaskLabels(classes, num_classes).read({"mask": encode(mask)})[0].tolist()


def test_labels_follow_from_indices():
    assert labels_of([0, 2, 255], MaskClasses()) == [0, 2, 255]
    reduced = MaskClasses(reduce_zero_label=True)
    assert labels_of([0, 1, 3, 255], reduced) == [255, 0, 2, 255]
    listed = MaskClasses(("a", "b"), indices=(7, 255), ignored=(9,))
    assert labels_of([7, 9, 255], listed) == [0, 255, 1]
    # The names count, whatever a model has.
    assert labels_of([4], MaskClasses(tuple("abcde")), num_classes=150) == [4]
    assert labels_of([255] * 3, MaskClasses()) == [255] * 3


@pytest.mark.parametrize(
    ("indices", "classes", "message"),
    [
        (
            [0, 3, 3, 1],
            MaskClasses(),
            "its mask has the index 3 at 2 pixels, which is no class: 3 classes have the "
            "indices 0 to 2, or with reduce_zero_label=True 1 to 3",
        ),
        ([3], MaskClasses(tuple("abc")), "the index 3 at 1 pixels.* 3 classes"),
        (
            [4],
            MaskClasses(reduce_zero_label=True),
            "indices 1 to 3, or with reduce_zero_label=False 0 to 2",
        ),
        ([8, 10], MaskClasses(("a",), indices=(7,), ignored=(8,)), "the index 10 .* 7$"),
        ([254], MaskClasses(tuple(map(str, range(253)))), "the index 254 at"),
    ],
)
def test_an_index_that_is_no_class_is_refused(indices, classes, message):
    with pytest.raises(BadRecordError, match=message) as error:
        labels_of(indices, classes)
    assert len(str(error.value).encode()) < 232


def test_an_index_of_16_bits_does_not_wrap_around():
    mask = encode(np.array([[1, 257]], np.uint16))
    with pytest.raises(BadRecordError, match="the index 257 at 1 pixels"):
        MaskLabels(MaskClasses(), 3).read({"mask": mask})


def test_known_classes_are_those_of_mmsegmentation(mmseg):
    from mmseg.datasets import ADE20KDataset, CityscapesDataset

    for name, reference in (("ade20k", ADE20KDataset), ("cityscapes", CityscapesDataset)):
        classes = read_mask_classes(name)
        given = reference.METAINFO
        assert classes.names == tuple(word.strip() for word in given["classes"])
        np.testing.assert_array_equal(classes.colors, given["palette"])
    assert KNOWN_CLASSES == ("ade20k", "cityscapes")
    ade = read_mask_classes("ade20k")
    assert ade.table(150).tolist() == [255, *range(150), *[254] * 104, 255]
    # The ids of road, rider and bicycle, and of caravan, which is ignored.
    table = read_mask_classes("cityscapes").table(19)
    assert table[[7, 25, 33, 29, 34]].tolist() == [0, 12, 18, 255, 254]
    assert (table[:34] == 255).sum() == 34 - 19
    # Masks of train ids, and ADE20K's that have been reduced already.
    train_ids = read_mask_classes("cityscapes").with_reduce_zero_label(False)
    assert train_ids.table(19).tolist() == [*range(19), *[254] * 236, 255]
    assert ade.with_reduce_zero_label(None) == ade
    assert (ade.with_reduce_zero_label(True).table(150) == ade.table(150)).all()


def test_files_of_classes(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("a cat\n\n  dog \n", encoding="utf-8")
    assert read_mask_classes(str(path)) == MaskClasses(("a cat", "dog"))
    for delimiter in ",;\t":
        lines = ["class,index,note", "car,255,x", "road,0,", ",7,"]
        text = "\n".join(lines).replace(",", delimiter)
        path.write_text(text, encoding="utf-8")
        expected = MaskClasses(("road", "car"), indices=(0, 255), ignored=(7,))
        assert read_mask_classes(str(path)) == expected
    path.write_text("index,class,red,green,blue\n0,a,1,2,3\n1,b,4,5,6", encoding="utf-8")
    classes = read_mask_classes(str(path))
    assert classes.colors == ((1, 2, 3), (4, 5, 6))
    assert MaskClasses.from_json(classes.to_json()) == classes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("cat\ncat\n", "two classes in classes have one name: 'cat'"),
        ("\n".join(map(str, range(255))), "has 255 classes: masks have at most 254"),
        ("index,class\n0,a\n0,b", "line 3: index 0 is there twice"),
        ("index,class\n256,a", "line 2, index: '256' is no whole number from 0 to 255"),
        ("index,class\n-1,a", "'-1' is no whole number"),
        ("index,class\n1,", "has no classes"),
        ("index,class,red,green,blue\n1,a,1,2,x", "line 2, blue: 'x' is no whole number"),
    ],
)
def test_what_is_no_file_of_classes_is_refused(tmp_path, text, message):
    path = tmp_path / "classes.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SetupError, match=message):
        read_mask_classes(str(path))
    with pytest.raises(SetupError, match="neither 'ade20k' nor 'cityscapes' nor a file"):
        read_mask_classes(str(tmp_path / "ade"))


def test_classes_without_colours_get_some():
    colors = distinct_colors(254)
    assert len({*map(tuple, colors.tolist())} | {(0, 0, 0)}) == 255
    # The first colours of PASCAL VOC: aeroplane, bicycle, bird.
    assert colors[:3].tolist() == [[128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert MaskClasses().colors_of(2).tolist() == colors[:2].tolist()
    assert read_mask_classes("cityscapes").colors_of(19)[0].tolist() == [128, 64, 128]
