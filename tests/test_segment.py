"""The command line `python -m focalnet_jax.segment`."""

import csv
import io
import json
import os
import pathlib

import jax
import numpy as np
import PIL.Image
import pytest
from mask_files import image_of
from tiny import TINY, random_params, tiny_model

from focalnet_jax import create_segmenter, segment
from focalnet_jax.convert.directories import write_directory
from focalnet_jax.data import resized_size, segmentation_operations
from focalnet_jax.errors import SetupError
from focalnet_jax.preprocessing import Preprocessing
from focalnet_jax.segment import main
from focalnet_jax.weights.description import ModelDescription

NAMES = ["sea", "land", "lake"]
COLORS = [[0, 0, 200], [0, 160, 0], [0, 210, 255]]
SCALE = (64, 32)
OPTIONS = TINY | dict(
    num_classes=3, head_channels=8, auxiliary_channels=8, pool_sizes=(1, 2)
)
SIZES = {"a.png": (40, 50), "photos/b.jpg": (41, 50), "photos/inner/a.png": (90, 30)}


@pytest.fixture(scope="module")
def variables():
    """Of a net whose predictions differ from place to place."""
    model = create_segmenter("focalnet_tiny_srf", pad_to_patch=True, **OPTIONS)
    images = jax.numpy.zeros((1, 32, 32, 3))
    abstract = jax.eval_shape(model.init, jax.random.key(0), images)
    rng = np.random.default_rng(0)

    def draw(leaf):
        if not leaf.ndim:
            return np.zeros((), leaf.dtype)
        return rng.uniform(-1, 1, leaf.shape).astype(leaf.dtype)

    found = jax.tree.map(draw, abstract)
    averages = jax.tree.map(lambda leaf: np.abs(leaf) + 1, found["batch_stats"])
    return model, {**found, "batch_stats": averages}


@pytest.fixture(scope="module")
def place(tmp_path_factory, variables):
    """A directory with weights and images of three sizes."""
    place = tmp_path_factory.mktemp("segment")
    description = ModelDescription(
        name="focalnet_tiny_srf",
        overrides=OPTIONS | dict(segment=True, pad_to_patch=True),
        preprocessing=Preprocessing(image_size=32, interpolation="bilinear", crop=1.0),
        classes=NAMES,
        scale=SCALE,
        colors=COLORS,
    )
    write_directory(place / "net", description, variables[1])
    for name, size in SIZES.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image_of(name, size)).save(place / name)
    (place / "photos" / "notes.txt").write_text("no image")
    return place


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    """The working directory: the images and the net, and no results of others."""
    for name in ("net", "photos", "a.png"):
        (tmp_path / name).symlink_to(place / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return main([*arguments, "--weights=net"])


def expected_labels(image, variables):
    """What the net predicts of an image alone, without any canvas."""
    model, values = variables
    pixels = np.asarray(PIL.Image.open(image).convert("RGB"))
    size = resized_size(pixels.shape[:2], SCALE)
    resized = segmentation_operations().resize_image(pixels, size)
    mean, std = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
    images = ((resized / 255 - mean) / std).astype(np.float32)[None]
    (logits, *_), _ = model.apply(values, images)
    for target in (size, pixels.shape[:2]):
        logits = jax.image.resize(
            logits, (1, *target, 3), "bilinear", antialias=False, precision="highest"
        )
    return np.asarray(logits[0])


def test_masks_are_what_the_net_predicts_of_each_image(here, variables, capsys):
    assert run("a.png", "photos", "--batch-size=2")
    output = capsys.readouterr().out
    for image in SIZES:
        name = os.path.splitext(image.removeprefix("photos/"))[0]
        if image == "photos/inner/a.png":
            name = "inner/a"
        mask = PIL.Image.open(f"segmented/{name}_mask.png")
        assert mask.mode == "P"
        assert mask.getpalette()[:9] == np.ravel(COLORS).tolist()
        labels = np.asarray(mask)
        logits = expected_labels(image, variables)
        assert labels.shape == SIZES[image]
        # Where two classes are as good as equal, rounding decides.
        best = np.sort(logits, -1)
        clear = best[..., -1] - best[..., -2] > 1e-4 * np.abs(logits).max()
        assert clear.mean() > 0.95
        np.testing.assert_array_equal(labels[clear], logits.argmax(-1)[clear])
        assert len(np.unique(labels)) > 1
        with PIL.Image.open(f"segmented/{name}_picture.png") as picture:
            assert picture.width > 2 * 80
        assert f"{image} -> " in output
        share = (labels == 1).mean()
        assert f"  {share:7.2%}  land" in output or not share


def test_json_and_csv(here, capsys):
    assert run("a.png", "--json", "--out=one")
    record = json.loads(capsys.readouterr().out)
    assert record["image"] == "a.png"
    assert pathlib.Path(record["mask"]) == here / "one" / "a_mask.png"
    assert sum(found["share"] for found in record["classes"]) == pytest.approx(1)
    assert [NAMES[found["label"]] for found in record["classes"]] == [
        found["name"] for found in record["classes"]
    ]
    shares = [found["share"] for found in record["classes"]]
    assert shares == sorted(shares, reverse=True)
    assert run("a.png", "--csv", "--out=two")
    rows = [*csv.DictReader(io.StringIO(capsys.readouterr().out))]
    assert [row["name"] for row in rows] == [f["name"] for f in record["classes"]]


def test_images_that_cannot_be_read_are_named_and_skipped(here, capsys):
    (here / "bad.png").write_bytes(b"no image")
    assert not run("bad.png", "a.png")
    output, errors = capsys.readouterr()
    assert "skipped bad.png: " in errors
    assert "1 image could not be read" in errors
    assert "a.png -> " in output
    assert sorted(path.name for path in (here / "segmented").iterdir()) == [
        "a_mask.png",
        "a_picture.png",
    ]


def test_what_is_there_is_not_lost(here):
    run("a.png")
    before = (here / "segmented" / "a_mask.png").read_bytes()
    with pytest.raises(SetupError, match="is there already; overwrite=True replaces it"):
        run("a.png")
    assert run("a.png", "--overwrite")
    assert (here / "segmented" / "a_mask.png").read_bytes() == before
    (here / "segmented" / "notes.txt").write_text("mine")
    with pytest.raises(SetupError, match="holds notes.txt, which is not written there"):
        run("a.png", "--overwrite")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png", "photos/inner/a.png"], "two images would have one name, .*a_mask.png"),
        (["b.png"], "there is no file b.png; did you mean a.png"),
        (["a.png", "--out=a.png"], "is there already, and is a file"),
    ],
)
def test_mistakes_are_said_before_anything_is_computed(here, arguments, message):
    with pytest.raises(SetupError, match=message):
        run(*arguments)
    assert not (here / "segmented").exists()


def test_a_classifier_segments_nothing(here):
    description = ModelDescription(
        name="focalnet_tiny_srf",
        overrides=dict(TINY, num_classes=5),
        preprocessing=Preprocessing(),
    )
    params = random_params(tiny_model(), "float32")
    write_directory(here / "classifier", description, {"params": params})
    with pytest.raises(SetupError, match="no head for segmentation: it is a model for"):
        main(["a.png", "--weights=classifier"])


def test_without_names_and_colours_classes_are_numbered(here):
    description = json.loads((here / "net" / "model.json").read_text())
    del description["colors"]
    description["classes"] = None
    (here / "other").mkdir()
    for name in ("params", "batch_stats"):
        (here / "other" / name).symlink_to(here / "net" / name)
    (here / "other" / "model.json").write_text(json.dumps(description))
    net = segment.read_net(segment.parse(["a.png", "--weights=other"]))
    assert net.legend.names == ["class 0", "class 1", "class 2"]
    assert len({*map(tuple, net.legend.colors.tolist())}) == 3
