"""`Pretrained.predict` and the command line `python -m focalnet_jax.predict`."""

import csv
import importlib.util
import io
import json
import os
import pathlib
import types

import numpy as np
import PIL.Image
import pytest
from tiny import random_params, tiny_model

from focalnet_jax import load_model, predict
from focalnet_jax.convert import to_torch
from focalnet_jax.convert.weight_files import write_weights
from focalnet_jax.errors import SetupError
from focalnet_jax.predict import find_images, main
from focalnet_jax.weights.imagenet_classes import imagenet_classes

SIZE = 32


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Weights of a net without names of classes, and images, in the cwd."""
    monkeypatch.chdir(tmp_path)
    write_net("net.safetensors")
    rng = np.random.default_rng(0)
    for name in ("a.png", "photos/b.jpg", "photos/inner/c.png", "photos/no image.txt"):
        path = pathlib.Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("notes")
        else:
            pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(path)
    return "net.safetensors"


def write_net(path, **options):
    model = tiny_model(**options)
    tensors = to_torch(random_params(model, "float32"), model, dialect="timm")
    write_weights(pathlib.Path(path), tensors)


def stdin(text):
    return types.SimpleNamespace(buffer=io.BytesIO(text))


def run(*arguments, weights="net.safetensors"):
    return main([*arguments, f"--weights={weights}", f"--image-size={SIZE}"])


def test_the_most_probable_classes_come_first(weights):
    net = load_model(weights, image_size=SIZE)
    images = ["a.png", PIL.Image.open("photos/b.jpg"), "photos/inner/c.png"]
    prepared = np.stack([net.preprocessing(image) for image in images])
    logits, _ = net.model.apply({"params": net.params}, prepared)
    exp = np.exp(np.asarray(logits, np.float64))
    probabilities = exp / exp.sum(1, keepdims=True)
    # The second batch is filled up.
    predictions = net.predict(images, topk=3, batch_size=2)
    assert [len(best) for best in predictions] == [3, 3, 3]
    for best, row in zip(predictions, probabilities):
        assert [p.index for p in best] == np.argsort(-row)[:3].tolist()
        # What batches of other sizes differ by.
        given = [p.probability for p in best]
        np.testing.assert_allclose(given, np.sort(row)[:-4:-1], rtol=1e-4)
        assert [p.name for p in best] == [f"class {p.index}" for p in best]
    assert [p.index for p in net.predict("a.png")[0]] == [
        p.index for p in net.predict(images, topk=99)[0]
    ]


def test_a_head_for_imagenet_has_its_names(tmp_path):
    write_net(tmp_path / "net.safetensors", num_classes=1000)
    net = load_model(tmp_path / "net.safetensors", image_size=SIZE)
    assert net.classes[:2] == ("tench, Tinca tinca", "goldfish, Carassius auratus")
    assert net.class_name(850) == "teddy, teddy bear"
    assert net._replace(params={}).classes == net.classes
    new = load_model(tmp_path / "net.safetensors", head="reset", num_classes=1000)
    assert new.classes is None


def test_names_of_imagenet_are_those_of_timm():
    """Its lists are read without it, because it takes seconds to import."""
    if not (timm := importlib.util.find_spec("timm")):
        pytest.skip("timm has the lists")
    info = pathlib.Path(timm.origin).parent / "data" / "_info"
    lemmas = (info / "imagenet_synset_to_lemma.txt").read_text("utf-8").splitlines()
    names = dict(line.split("\t") for line in lemmas)
    for rows, file in ((1_000, "imagenet"), (21_842, "imagenet22k_ms")):
        synsets = (info / f"{file}_synsets.txt").read_text().split()
        assert imagenet_classes(rows) == tuple(names[synset] for synset in synsets)
    assert imagenet_classes(10) is None


def test_wrong_numbers_are_told(weights):
    net = load_model(weights, image_size=SIZE)
    for wrong in (dict(topk=0), dict(batch_size=0)):
        with pytest.raises(ValueError, match="=0 is below 1"):
            net.predict("a.png", **wrong)
    with pytest.raises(SetupError, match="no head"):
        load_model(weights, num_classes=0, image_size=SIZE).predict("gone.png")
    for wrong in (np.zeros((9, 9, 3)), np.zeros((2, 9, 9, 3), np.uint8)):
        with pytest.raises(ValueError, match="expected uint8 .height, width, 3."):
            net.predict(wrong)
    with pytest.raises(SetupError, match="no head"):
        run("a.png", "--set=num_classes=0")
    with pytest.raises(SetupError, match="image_size=3 is too small .* needs 8 x 8"):
        main(["a.png", f"--weights={weights}", "--image-size=3"])


# --- The command -------------------------------------------------------------


def test_files_are_found(weights, monkeypatch):
    below = ["photos/b.jpg", "photos/inner/c.png"]
    assert find_images(["a.png", "photos"]) == ["a.png", *below]
    pathlib.Path("photos/empty").mkdir()
    assert find_images(["photos/*"]) == [below[0], below[1]]
    assert find_images(["**/*.png"]) == ["a.png", below[1]]
    for text in (
        b"a.png\n\nphotos/b.jpg\n",
        b"a.png\r\nphotos/b.jpg",
        b"a.png\0photos/b.jpg\0",
    ):
        monkeypatch.setattr("sys.stdin", stdin(text))
        assert find_images(["-"]) == ["a.png", below[0]]
    monkeypatch.setattr("sys.stdin", stdin(b"\xff.png"))
    assert os.fsencode(find_images(["-"])[0]) == b"\xff.png"
    pathlib.Path("photos/loop").symlink_to("..", target_is_directory=True)
    assert sorted(find_images(["photos"])) == sorted([*below, "photos/loop/a.png"])


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("b.png", r"there is no file b.png; did you mean a.png\?"),
        ("*.gif", r"no image is named like \*.gif \(images end in .jpg"),
        ("empty", "empty holds no images"),
        ("-", "standard input names no files"),
        ("", "an IMAGE is empty"),
    ],
)
def test_images_that_are_not_there_are_told(weights, argument, said, monkeypatch):
    pathlib.Path("empty").mkdir()
    monkeypatch.setattr("sys.stdin", stdin(b""))
    with pytest.raises(SetupError, match=said):
        run(argument)


def test_a_text_a_table_and_objects_say_the_same(weights, capsys):
    assert run("a.png", "photos", "--topk=2", "--batch-size=2")
    text = capsys.readouterr().out.splitlines()
    assert run("a.png", "photos", "--topk=2", "--json")
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert run("a.png", "photos", "--topk=2", "--csv")
    rows = [*csv.DictReader(io.StringIO(capsys.readouterr().out))]
    images = ["a.png", "photos/b.jpg", "photos/inner/c.png"]
    assert [o["image"] for o in objects] == images == text[::3]
    assert [row["image"] for row in rows] == [i for i in images for _ in range(2)]
    assert [row["rank"] for row in rows] == ["1", "2"] * 3
    flat = [p for o in objects for p in o["predictions"]]
    assert [row["name"] for row in rows] == [p["name"] for p in flat]
    lines = [line for line in text if line.startswith("  ")]
    for line, p, row in zip(lines, flat, rows, strict=True):
        assert line == f"  {p['probability']:7.2%}  {p['name']}"
        assert float(row["probability"]) == pytest.approx(p["probability"], rel=1e-4)


def test_a_table_has_any_name(weights, capsys):
    name = 'a "b",\r\n.png'
    pathlib.Path("a.png").rename(name)
    assert run(name, "--topk=2", "--csv")
    rows = [*csv.DictReader(io.StringIO(capsys.readouterr().out, newline=""))]
    assert [row["image"] for row in rows] == [name] * 2


def test_what_can_not_be_read_is_named_and_skipped(weights, capsys, monkeypatch):
    pathlib.Path("bad.png").write_bytes(b"no image")
    monkeypatch.setattr("sys.stdin", stdin(b"bad.png\na.png\ngone.png"))
    assert not run("-", "--topk=1")
    out, errors = capsys.readouterr()
    assert out.splitlines()[0] == "a.png"
    assert len(out.splitlines()) == 2
    assert "skipped bad.png: 8 bytes that are no image" in errors
    assert "skipped gone.png: No such file or directory" in errors
    assert errors.endswith("2 images could not be read\n")


def test_it_ends_when_nobody_reads(weights, monkeypatch):
    """As in front of `head -1`."""
    computed = []

    def classify(net, images, **_):
        for image in images:
            computed.append(image)
            yield predict.Result(image, [])

    monkeypatch.setattr(predict, "classify", classify)
    monkeypatch.setattr(predict, "nobody_reads", lambda: len(computed) == 2)
    assert run("a.png", "photos")
    assert len(computed) == 2
