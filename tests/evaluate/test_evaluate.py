"""The command that measures models on the evaluation sets, on small folders of each kind.

The model is replaced by one that reads its answer from the colour of an image, so that
each accuracy can be counted by hand.
"""

import csv
import io
import itertools
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from tiny import random_params, tiny_backbone, tiny_model

from focalnet_jax import create_model, list_models
from focalnet_jax.convert import to_torch
from focalnet_jax.convert.weight_files import write_weights
from focalnet_jax.data.prepare import __main__ as prepare
from focalnet_jax.data.sources.imagenet import SUBSETS, wordnet_ids
from focalnet_jax.errors import SetupError
from focalnet_jax.evaluate import __main__ as evaluate
from focalnet_jax.evaluate.data_sets import DATA_SETS, open_data, read_data
from focalnet_jax.evaluate.published import published, variant_of
from focalnet_jax.models import FocalNet

IDS = wordnet_ids()
RNG = np.random.default_rng(0)


def write_image(path, best, second=0):
    """An image of one colour: red and green say which class is the answer.

    Blue says how far above the answer the class that would be the next one is.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (12, 10), (best // 256, best % 256, second)).save(path)


@pytest.fixture
def answers_by_colour(monkeypatch):
    """Models answer with the class that the colour of an image names.

    The next best answers are the classes after it; `blue` classes before it are better.
    """

    def apply(self, variables, images, **_):
        del variables
        red, green, blue = (
            jnp.round(
                images[:, 4, 4] * jnp.float32([0.229, 0.224, 0.225]) * 255
                + jnp.float32([0.485, 0.456, 0.406]) * 255
            )
            .astype(int)
            .T
        )
        distance = jnp.arange(1000) - (red * 256 + green - blue)[:, None]
        logits = jnp.where(distance >= 0, -distance, distance - 2000)
        return logits.astype(jnp.float32), {}

    monkeypatch.setattr(FocalNet, "apply", apply)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with the weights of a model for 1,000 classes."""
    monkeypatch.chdir(tmp_path)
    model = tiny_model(num_classes=1000)
    tensors = to_torch(random_params(model, "float32"), model, dialect="timm")
    write_weights(tmp_path / "net.safetensors", tensors)
    return tmp_path


ARGUMENTS = ["--weights=net.safetensors", "--image-size=8"]
AS_PUBLISHED = ["--weights=net.safetensors", "--image-size=224"]


def run(*arguments, capsys):
    """Whether something was measured, and the results by data set."""
    is_measured = evaluate.main([*ARGUMENTS, "--json", *arguments])
    lines = capsys.readouterr().out.splitlines()
    return is_measured, {line["data"]: line for line in map(json.loads, lines)}


def validation_images(answers):
    """Images of classes 0, 5 and 999, whose names are not in the order of the classes."""
    for number, (label, answer) in enumerate(answers, start=1):
        name = f"ILSVRC2012_val_{number:08}.png"
        write_image(f"DATA/val/{IDS[label]}/{name}", answer)


def test_validation_images(place, answers_by_colour, capsys):
    validation_images([(999, 999), (0, 5), (5, 5), (0, 0), (5, 4), (5, 998)])
    is_measured, found = run("--data=imagenet2012=DATA", capsys=capsys)
    assert is_measured
    # Right: images 1, 3 and 4. Class 5 is the second of image 5, whose answer is 4.
    assert found["imagenet2012"]["top1"] == pytest.approx(100 * 3 / 6)
    assert found["imagenet2012"]["top5"] == pytest.approx(100 * 4 / 6)
    assert found["imagenet2012"]["images"] == 6
    # The folder itself, by its name.
    _, again = run("--data=DATA/val", capsys=capsys)
    assert again == found


def test_real_takes_any_label_and_leaves_images_without_one_out(
    place, answers_by_colour, capsys
):
    validation_images([(999, 999), (0, 5), (5, 5), (0, 0), (5, 4), (5, 998)])
    labels = [[999, 3], [5, 7], [], [1], [8], [0]]
    pathlib.Path("DATA/real.json").write_text(json.dumps(labels))
    _, found = run("--data=imagenet2012_real=DATA", capsys=capsys)
    # Right: image 1, and image 2, whose class in ImageNet-1K is another. Image 3 has no
    # label. Among five answers are 1 for image 4 and 8 for image 5, but not 0 for 998.
    assert found["imagenet2012_real"]["images"] == 5
    assert found["imagenet2012_real"]["top1"] == pytest.approx(100 * 2 / 5)
    assert found["imagenet2012_real"]["top5"] == pytest.approx(100 * 4 / 5)
    pathlib.Path("DATA/real.json").rename("labels.json")
    is_measured, found = run("--data=imagenet2012_real=DATA", capsys=capsys)
    assert (is_measured, found) == (False, {})
    _, found = run("--data=imagenet2012_real=DATA", "--real=labels.json", capsys=capsys)
    assert found["imagenet2012_real"]["images"] == 5


@pytest.mark.parametrize(
    ("folder", "name"), [("imagenet-a", "imagenet_a"), ("imagenet-r", "imagenet_r")]
)
def test_answers_are_sought_among_200_classes(
    folder, name, place, answers_by_colour, capsys
):
    subset = SUBSETS[name]
    assert len(subset) == 200
    outside = next(c for c in range(20, 1000) if c not in subset)
    inside = next(c for c in subset if c > outside)
    write_image(f"{folder}/{IDS[inside]}/a.png", outside)  # its next best class
    write_image(f"{folder}/{IDS[subset[3]]}/b.png", subset[3])
    write_image(f"{folder}/{IDS[subset[4]]}/c.png", subset[3])
    _, found = run(f"--data={folder}", capsys=capsys)
    assert found[name]["top1"] == pytest.approx(100 * 2 / 3)
    assert found[name]["top5"] == 100
    # Among all classes, the first image is wrong.
    _, found = run(f"--data=imagenet_sketch={folder}", capsys=capsys)
    assert found["imagenet_sketch"]["top1"] == pytest.approx(100 / 3)


def test_folders_of_numbers_are_sorted_as_numbers(place, answers_by_colour, capsys):
    """As words, 10 would come before 2."""
    folder = "imagenetv2-matched-frequency-format-val"
    for label in (0, 2, 10, 999):
        write_image(f"{folder}/{label}/a.png", label)
    write_image(f"{folder}/10/b.png", 2)
    _, found = run(f"--data={folder}", capsys=capsys)
    assert found["imagenet_v2"]["top1"] == pytest.approx(100 * 4 / 5)


def test_a_data_set_of_tfds(place, answers_by_colour, capsys):
    for label, name in enumerate(IDS):
        write_image(f"sketches/test/{name}/a.png", label if label < 250 else 0)
    prepare.main(["folder:sketches", "--name=sketches", "--data-dir=tfds"])
    # TFDS prepares it from files that it downloads, under another name.
    old, new = place / "tfds/sketches", place / "tfds/imagenet_sketch"
    old.rename(new)
    for path in [path for path in new.rglob("*") if path.is_file()]:
        if path.suffix == ".json":
            text = path.read_text().replace("sketches", "imagenet_sketch")
            path.write_text(text)
        path.rename(path.with_name(path.name.replace("sketches", "imagenet_sketch")))
    capsys.readouterr()
    is_measured, found = run("--data-dir=tfds", capsys=capsys)
    assert is_measured
    assert found.keys() == DATA_SETS.keys()
    assert [name for name in found if found[name]["here"]] == ["imagenet_sketch"]
    assert found["imagenet_sketch"]["images"] == 1000
    assert found["imagenet_sketch"]["top1"] == pytest.approx(25)
    next(new.rglob("*array_record*")).unlink()
    assert not evaluate.main([*ARGUMENTS, "--data-dir=tfds"])
    assert "Sketch can't be used: " in capsys.readouterr().err
    with pytest.raises(SetupError, match="imagenet_sketch"):
        evaluate.main([*ARGUMENTS, "--data-dir=tfds", "--data=imagenet_sketch"])


def test_the_table(place, answers_by_colour, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "variant_of", lambda _: "focalnet_tiny_srf")
    validation_images([(999, 999), (0, 5), (5, 5)])
    write_image(f"sketch/{IDS[3]}/a.png", 3)
    data = ["--data=DATA/val", "--data=sketch", "--data=imagenet_a", "--data-dir=tfds"]
    assert evaluate.main([*AS_PUBLISHED, "--weights=./net.safetensors", *data, "--top5"])
    out, errors = capsys.readouterr()
    assert out.splitlines() == [
        "top-1 in percent; in brackets what is published for 224 pixels",
        "",
        "                                        ImageNet-1K         Sketch         A",
        "net.safetensors (focalnet_tiny_srf)    66.67 (82.1)  100.00 (31.6)  not here",
        "./net.safetensors (focalnet_tiny_srf)  66.67 (82.1)  100.00 (31.6)  not here",
        "",
        "published for ImageNet-1K: arXiv 2203.11926 and the official README",
        "published for Sketch: the results of timm, whose evaluation keeps 0.9 of the "
        "shorter side",
        "",
        "top-5 in percent; in brackets what is published for 224 pixels",
        "",
        "                                        ImageNet-1K         Sketch         A",
        "net.safetensors (focalnet_tiny_srf)    66.67 (96.0)  100.00 (50.9)  not here",
        "./net.safetensors (focalnet_tiny_srf)  66.67 (96.0)  100.00 (50.9)  not here",
        "",
        "published for ImageNet-1K, Sketch: the results of timm, whose evaluation keeps "
        "0.9 of the shorter side",
        "",
    ]
    assert "has 3 images, and ImageNet-1K has 50,000: the accuracy is of a part" in errors
    assert "net.safetensors on Sketch: top-1 100.00%, top-5 100.00%, 1 image\n" in errors
    [missing] = [line for line in errors.splitlines() if "not here" in line]
    assert missing.startswith("A is not here: pip install 'focalnet_jax[prepare]' && tf")
    assert "--data=imagenet_a=DIR, from https://github.com/hendrycks" in missing
    assert "has 1 image, and Sketch has 50,889: the accuracy is of a part" in errors
    # Nothing is published for another size.
    evaluate.main([*ARGUMENTS, *data])
    out = capsys.readouterr().out.splitlines()
    assert out[3].split()[1:] == ["(focalnet_tiny_srf)", "66.67", "100.00", "not", "here"]
    assert "published for" not in "".join(out[1:])


def test_a_folder_of_more_images_is_no_part(place, capsys, monkeypatch):
    fewer = DATA_SETS["imagenet_sketch"]._replace(images=1)
    monkeypatch.setitem(DATA_SETS, "imagenet_sketch", fewer)
    for name in "ab":
        write_image(f"sketch/{IDS[3]}/{name}.png", 3)
    [remark] = open_data(read_data("sketch")).remarks
    assert remark.endswith(
        "has 2 images, and Sketch has 1: the accuracy is of more than that"
    )


def test_lines_of_csv(place, answers_by_colour, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "variant_of", lambda _: "focalnet_base_lrf")
    validation_images([(999, 999), (0, 5)])
    data = ["--data=DATA/val", "--data=imagenet_a", "--data-dir=tfds"]
    evaluate.main([*AS_PUBLISHED, *data, "--csv"])
    rows = [*csv.DictReader(io.StringIO(capsys.readouterr().out))]
    assert [row["published_source"] for row in rows] == ["paper", "timm", "timm"]
    assert [row["published_top1"] for row in rows] == ["83.9", "83.838", "37.533"]
    assert [row["top1"] for row in rows] == ["50.0", "50.0", ""]
    assert {row["image_size"] for row in rows} == {"224"}
    # A line has the accuracy where nothing is published, too.
    evaluate.main([*ARGUMENTS, *data, "--csv"])
    rows = [*csv.DictReader(io.StringIO(capsys.readouterr().out))]
    assert [(row["top1"], row["published_top1"]) for row in rows] == [
        ("50.0", ""),
        ("", ""),
    ]


def test_what_was_measured_is_printed_before_an_error(place, answers_by_colour, capsys):
    validation_images([(999, 999), (0, 5)])
    pathlib.Path(f"sketch/{IDS[3]}").mkdir(parents=True)
    pathlib.Path(f"sketch/{IDS[3]}/a.png").write_text("no image")
    with pytest.raises(SetupError, match="a.png.*unusable"):
        evaluate.main([*ARGUMENTS, "--data=DATA/val", "--data=sketch"])
    assert "50.00" in capsys.readouterr().out


def test_all_weights_are_loaded_before_the_first_are_measured(place, capsys):
    validation_images([(999, 999), (0, 5)])
    with pytest.raises(SetupError, match=r"no file, directory or release"):
        evaluate.main([*ARGUMENTS, "--weights=lost.pth", "--data=DATA/val"])
    out, errors = capsys.readouterr()
    assert out == ""
    assert "top-1" not in errors


def test_where_nothing_is_here_nothing_is_measured(place, capsys):
    assert not evaluate.main([*ARGUMENTS, "--data-dir=tfds"])
    with pytest.raises(SetupError, match=r"no file, directory or release"):
        evaluate.main(["--weights=lost.pth", "--data-dir=tfds"])
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.count(" is not here: ") == 2 * len(DATA_SETS)


def test_it_is_the_model_that_answers(place, capsys):
    """Without the stand-in: the answers are those of `predict`."""
    from focalnet_jax import load_model

    net = load_model("net.safetensors", image_size=8)
    expected = []
    for index in range(5):
        path = pathlib.Path(f"noise/{index}.png")
        path.parent.mkdir(exist_ok=True)
        pixels = RNG.integers(0, 256, (11, 14, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(path)
        expected.append([p.index for p in net.predict(path, topk=5)[0]])
    # The first is right, the second is the second best, the others are wrong.
    for index, rank in enumerate((0, 1, -1, -1, -1)):
        wrong = next(c for c in range(1000) if c not in expected[index])
        label = wrong if rank < 0 else expected[index][rank]
        target = pathlib.Path(f"DATA/val/{IDS[label]}/{index}.png")
        target.parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(f"noise/{index}.png").rename(target)
    _, found = run("--data=DATA/val", "--batch-size=2", capsys=capsys)
    assert found["imagenet2012"]["top1"] == pytest.approx(20)
    assert found["imagenet2012"]["top5"] == pytest.approx(40)
    assert found["imagenet2012"]["variant"] is None


# --- Bad input ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("imagenet_z", "'imagenet_z' is neither an evaluation set nor a folder; did you"),
        ("imagenet2012_reel=DATA", "did you mean 'imagenet2012_real'?"),
        ("imagenet_a=DATE", r"there is no folder .*DATE; did you mean .*DATA\?"),
        ("DATA/pets", "the name of DATA/pets does not say which data set it is: give it"),
        ("imagenet_v2=DATA/pets", "'cat' of the directories in .* is no class"),
        ("imagenet_a=DATA/val", f"has '{IDS[0]}', which A lacks: it is another data set"),
        ("imagenet_a=gs://bucket/a", "is in a bucket"),
        (
            "imagenet_a=",
            "--data=imagenet_a= names no folder: it is --data=imagenet_a=DIR",
        ),
        ("imagenet2012=DATA/empty", "there are no directories in"),
    ],
)
def test_data_that_cannot_be_used(data, message, place):
    write_image("DATA/pets/cat/a.png", 0)
    write_image(f"DATA/val/{IDS[0]}/a.png", 0)
    pathlib.Path("DATA/empty").mkdir()
    with pytest.raises(SetupError, match=message):
        evaluate.main([*ARGUMENTS, f"--data={data}"])


def test_a_data_set_has_one_column(place):
    with pytest.raises(SetupError, match="--data has imagenet_a twice"):
        evaluate.main([*ARGUMENTS, "--data=imagenet_a", "--data=imagenet_a"])


def test_the_file_of_real_is_for_real_in_a_folder(place):
    for data in ([], ["--data=imagenet2012_real"], ["--data=imagenet_a"]):
        with pytest.raises(
            SetupError, match="--real=x is for ReaL in a folder: give --d"
        ):
            evaluate.main([*ARGUMENTS, *data, "--real=x"])


def test_images_too_small_for_the_model_are_told(place):
    write_image(f"DATA/val/{IDS[0]}/a.png", 0)
    with pytest.raises(
        SetupError, match="image_size=3 is too small for focalnet_tiny_sr"
    ):
        evaluate.main([ARGUMENTS[0], "--image-size=3", "--data=DATA/val"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[1], [2]]", "has 2 sets of labels, and folder:.* has 3 images"),
        ("[[1], [2], [1000]]", "has .1000. for image 3, and not a list of labels from 0"),
        ("[[1], 2, [3]]", "has 2 for image 2, and not a list of labels"),
        ("[[true], [2], [3]]", "has .True. for image 1"),
        ("{}", "is no list of lists of labels"),
        ("[[", "is no JSON"),
    ],
)
def test_a_wrong_file_of_real_labels(content, message, place):
    validation_images([(999, 999), (0, 5), (5, 5)])
    pathlib.Path("real.json").write_text(content)
    with pytest.raises(SetupError, match=message):
        evaluate.main([*ARGUMENTS, "--data=imagenet2012_real=DATA", "--real=real.json"])


def test_images_without_a_number_have_no_real_labels(place):
    write_image(f"DATA/val/{IDS[0]}/a.png", 0)
    pathlib.Path("real.json").write_text("[[0]]")
    with pytest.raises(SetupError, match=r"/a.png\) has no name from ILSVRC2012_val_"):
        evaluate.main([*ARGUMENTS, "--data=imagenet2012_real=DATA", "--real=real.json"])
    with pytest.raises(SetupError, match=r"lost.json can't be read: No such file"):
        evaluate.main([*ARGUMENTS, "--data=imagenet2012_real=DATA", "--real=lost.json"])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: tiny_model(num_classes=10), "1,000 classes .* and the model has 10$"),
        (lambda: tiny_model(num_classes=0), "the model has no head"),
        (tiny_backbone, "the model has no head"),
        (lambda: tiny_model(num_classes=1000, in_channels=1), "the model takes 1"),
        (
            lambda: tiny_model(num_classes=21_842, embed_dim=2),
            "has 21,842; --head=in22k_to_in1k takes those of ImageNet-1K",
        ),
    ],
)
def test_models_that_do_not_predict_imagenet(model, message, place):
    model = model()
    tensors = to_torch(random_params(model, "float32"), model, dialect="microsoft")
    write_weights(place / "other.safetensors", tensors)
    write_image(f"DATA/val/{IDS[0]}/a.png", 0)
    with pytest.raises(SetupError, match=message) as error:
        evaluate.main(["--weights=other.safetensors", "--data=DATA/val"])
    assert str(error.value).startswith("--weights=other.safetensors: ")


def test_a_model_of_other_classes_is_refused(place, capsys):
    """Its classes are WordNet's, in another order."""
    model = tiny_model(num_classes=1000)
    tensors = to_torch(random_params(model, "float32"), model, dialect="timm")
    config = {"architecture": "focalnet_tiny_srf", "label_names": IDS[::-1]}
    pathlib.Path("other").mkdir()
    write_weights(place / "other" / "model.safetensors", tensors)
    pathlib.Path("other/config.json").write_text(json.dumps(config))
    write_image(f"DATA/val/{IDS[0]}/a.png", 0)
    with pytest.raises(SetupError, match="has other classes than .*in another order"):
        evaluate.main(["--weights=other", "--image-size=8", "--data=DATA/val"])


def test_damaged_images_are_left_out_if_that_is_allowed(place, answers_by_colour, capsys):
    validation_images([(999, 999), (0, 5)])
    pathlib.Path(f"DATA/val/{IDS[0]}/x.png").write_bytes(b"no image")
    with pytest.raises(SetupError, match="x.png.*unusable") as error:
        evaluate.main([*ARGUMENTS, "--data=DATA/val"])
    said = error.value.spelt(evaluate.spell, lambda name, value: f"{name}={value}")
    assert "--max-bad-records=0 allows" in said
    _, found = run("--data=DATA/val", "--max-bad-records=1", capsys=capsys)
    assert (found["imagenet2012"]["images"], found["imagenet2012"]["damaged"]) == (2, 1)


# --- What is published -------------------------------------------------------


def test_published_accuracies_are_of_variants_and_data_sets():
    rows = {(v, d): published(v, d) for v in list_models() for d in DATA_SETS}
    count = sum(map(len, rows.values()))
    lines = pathlib.Path(evaluate.__file__).with_name("published.tsv").read_text()
    assert count == sum(not line.startswith("#") for line in lines.splitlines()) == 48
    for row in itertools.chain(*rows.values()):
        assert 20 < float(row.top1) < float(row.top5 or 100) <= 100
        assert row.source in ("paper", "timm")
    # ReaL is easier than ImageNet-1K, and the others are harder.
    timms = {d: float(published("focalnet_base_srf", d)[-1].top1) for d in DATA_SETS}
    assert [*sorted(timms, key=timms.get)] == [
        *("imagenet_sketch", "imagenet_a", "imagenet_r", "imagenet_v2"),
        *("imagenet2012", "imagenet2012_real"),
    ]
    assert published(None, "imagenet2012") == []


@pytest.mark.parametrize("name", list_models())
def test_the_variant_of_a_model(name):
    model = create_model(name, num_classes=7, drop_path_rate=0.3, dtype="bfloat16")
    assert variant_of(model) == name
    assert variant_of(create_model(name, mlp_ratio=2.0)) is None


def test_folders_are_known_by_their_names(place):
    for name, expected in {
        "imagenet-a": "imagenet_a",
        "ImageNet-R": "imagenet_r",
        "imagenet-rendition": "imagenet_r",
        "sketch": "imagenet_sketch",
        "ImageNet-Sketch": "imagenet_sketch",
        "imagenetv2-matched-frequency-format-val": "imagenet_v2",
        "ILSVRC2012_img_val": "imagenet2012",
        "val": "imagenet2012",
        "imagenet-real": "imagenet2012_real",
    }.items():
        pathlib.Path("in", name).mkdir(parents=True, exist_ok=True)
        asked = read_data(f"in/{name}/")
        assert (asked.name, asked.folder) == (expected, place / "in" / name)


def test_a_folder_that_lacks_classes_is_searched_among_all(place):
    write_image(f"v2/{3}/a.png", 3)
    opened = open_data(read_data("imagenet_v2=v2"))
    assert opened.source.subset is None
    write_image(f"a/{IDS[6]}/a.png", 6)
    opened = open_data(read_data("imagenet_a=a"))
    assert opened.source.subset == SUBSETS["imagenet_a"]
