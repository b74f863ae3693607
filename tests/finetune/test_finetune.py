"""The command `python -m focalnet_jax.finetune`, from images to a page of results."""

import json
import os
import pathlib
import re
import resource
import shutil
import types

import numpy as np
import pytest
from running import read_metrics
from tiny import random_params, tiny_model

from focalnet_jax import command_line, load_model, predict
from focalnet_jax.convert import to_torch
from focalnet_jax.convert.directories import write_directory
from focalnet_jax.convert.weight_files import write_weights
from focalnet_jax.data.sources.listed import read_list
from focalnet_jax.errors import SetupError
from focalnet_jax.finetune import __main__ as finetune
from focalnet_jax.finetune import duration
from focalnet_jax.finetune.defaults import PACES, batch_size_of, make_config, set_pace
from focalnet_jax.finetune.report import commands
from focalnet_jax.preprocessing import Preprocessing
from focalnet_jax.train import check_config, loop
from focalnet_jax.train.overrides import apply_overrides, split_overrides
from focalnet_jax.train.run.preemption import Preemption
from focalnet_jax.weights.description import ModelDescription

pytestmark = pytest.mark.usefixtures("shared_programs", "no_summaries")

SMALL = [
    "--image-size=16",
    "--set=depths=(1,)",
    "--set=embed_dim=8",
    "--set=focal_levels=(1,)",
    "--set=focal_windows=(3,)",
]
# Eight images are a row for each of the tests' devices.
SHORT = ["--config.num_steps=4", "--config.batch_size=8", "--config.log_every_steps=1"]


def run(*arguments, weights=None):
    given = [f"--weights={weights}", "--image-size=16"] if weights else SMALL
    finetune.main([*given, *SHORT, *arguments])


def write_start(path, **options):
    """Weights of a tiny net for five classes, and how its images are prepared."""
    overrides = dict(depths=(1, 1), embed_dim=8, focal_levels=(2, 1))
    overrides |= dict(focal_windows=(3, 3), num_classes=5) | options
    model = tiny_model(**overrides)
    preprocessing = Preprocessing(
        32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), crop=1.0, interpolation="bilinear"
    )
    params = random_params(model, "float32")
    description = ModelDescription("focalnet_tiny_srf", overrides, preprocessing)
    write_directory(pathlib.Path(path), description, {"params": params})
    return params


def test_a_folder_becomes_a_net_and_a_page(make_folder, capsys):
    root = make_folder()
    (root / "red" / "9.png").write_text("no image")
    before = sorted(root.rglob("*"))
    run("photos")
    workdir = pathlib.Path("runs/photos")
    said = capsys.readouterr().out
    assert "19 images of 3 classes: 15 to train on, 3 to test with" in said
    assert "note: left out, since they can't be read: 1 image" in said
    assert "  red/9.png: 8 bytes that are no image" in said
    time = r"2.1 epochs, 4 steps of 8 images: about \d.* on this machine \(cpu\), after"
    assert re.search(time, said)
    assert "finished: step 4 of 4" in said
    *_, intro, command, _, look = said.splitlines()
    assert intro == "predict with it:"
    assert command == "  python -m focalnet_jax.predict IMAGE --weights=runs/photos"
    assert look.endswith("runs/photos/report.html")

    # Nothing is moved, and each image has its split.
    assert sorted(root.rglob("*")) == before
    rows = read_list(workdir / "images.csv")
    assert {row.file for row in rows} == {
        str(path.relative_to(root)) for path in before if path.suffix
    }

    # What the report says is what training has measured.
    best = json.loads((workdir / "best.json").read_text())
    metrics = {line["step"]: line for line in read_metrics(workdir)}
    right = round(3 * metrics[best["step"]]["test/top1"])
    assert f"{right} of 3 images are classified correctly" in said
    page = (workdir / "report.html").read_text("utf-8")
    assert f"{right} of 3 images are classified correctly" in page
    assert all(name in page for name in ("red", "grün", "deep blue"))

    # The workdir is a model with the names of its classes.
    net = load_model("runs/photos")
    assert net.classes == ("deep blue", "grün", "red")
    assert {p.name for p in net.predict("photos/red/0.png")[0]} == {*net.classes}
    assert predict.main(["photos/grün", "--weights=runs/photos"])
    assert "grün" in capsys.readouterr().out

    # The same command writes the page again, and trains no more.
    (workdir / "report.html").unlink()
    run("photos")
    assert "the run is finished: step 4 of 4" in capsys.readouterr().out
    assert (workdir / "report.html").read_text("utf-8").count("<h2>") == page.count(
        "<h2>"
    )
    assert len(read_metrics(workdir)) == 4

    # What it was trained with stays so, and its report says nothing else.
    stays = (workdir / "report.html").read_text("utf-8")
    assert "on images of 16 x 16 pixels" in stays
    for flag, change in (
        ("--config.learning_rate=0.1", "learning_rate: 0.001 -> 0.1"),
        ("--config.data.image_size=24", "data.image_size: 16 -> 24"),
        ("--config.num_steps=2", "num_steps: 4 -> 2"),
    ):
        with pytest.raises(SetupError, match=f"is finished, and .*\n  {change}\n"):
            run("photos", flag)

    # Other options would be another run, and other images as well.
    with pytest.raises(SetupError, match="begun with --seed=0, .* is with --seed=1"):
        run("photos", "--seed=1")
    with pytest.raises(SetupError, match="begun without --weights, .* with --weights=x:"):
        run("photos", weights="x")
    make_folder({"a": 3, "b": 3}, place="others")
    with pytest.raises(SetupError, match="other images: .*others lacks 18 of its 18"):
        run("others", "--workdir=runs/photos")
    shutil.copytree("photos", "same names")
    shutil.copy("photos/red/1.png", "same names/red/0.png")
    said = "'red/0.png' in .*same names has other contents than when it began. .* --work"
    with pytest.raises(SetupError, match=said):
        run("same names", "--workdir=runs/photos")
    assert (workdir / "report.html").read_text("utf-8") == stays

    # Images that came later are not in it, and it may be told to train longer.
    shutil.copy(root / "red/0.png", root / "red/new.png")
    run("photos", "--config.num_steps=5")
    said = capsys.readouterr().out
    assert "1 image came after the run began and is not in it: 'red/new.png'" in said
    assert "resuming after step 4" in said
    # A folder may move.
    shutil.move("photos", "moved")
    run("moved", "--workdir=runs/photos", "--config.num_steps=5")
    assert "the run is finished: step 5" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_weights_bring_their_options_and_preprocessing(
    kind, make_folder, capsys, monkeypatch
):
    monkeypatch.setenv("HOME", str(make_folder().parent))
    params = write_start("start", normalize_modulator=True)
    source = "~/start"
    if kind == "file":
        source = "net.safetensors"
        net = load_model("start")
        tensors = to_torch(net.params, net.model, dialect="timm")
        write_weights(
            pathlib.Path(source),
            tensors,
            metadata={"focalnet_jax": pathlib.Path("start/model.json").read_text()},
        )
    finetune.main(["photos", f"--weights={source}", *SHORT, "--config.num_steps=1"])
    said = capsys.readouterr().out
    assert "focalnet_tiny_srf with " in said
    assert f"options changed, from {source}, on images of 32 x 32 pixels" in said
    assert "starting from" in said
    model = json.loads(pathlib.Path("runs/photos/model.json").read_text())
    assert model["overrides"]["normalize_modulator"] is True
    assert model["overrides"]["num_classes"] == 3
    assert (model["image_size"], model["mean"], model["crop"]) == (32, [0.5, 0.4, 0.3], 1)
    assert model["interpolation"] == "bilinear"
    # One step of a warmup moves the trained weights by next to nothing.
    net = load_model("runs/photos")
    for name in ("patch_embed", "layers_1"):
        given, trained = params[name], net.params[name]
        leaf = {"patch_embed": ("proj", "kernel"), "layers_1": ("blocks_0", "norm1")}[
            name
        ]
        for part in leaf:
            given, trained = given[part], trained[part]
        given = given["scale"] if isinstance(given, dict) else given
        trained = trained["scale"] if isinstance(trained, dict) else trained
        np.testing.assert_allclose(trained, given, atol=1e-5)
    # A run that goes on needs the weights no more.
    shutil.rmtree("start")
    pathlib.Path("net.safetensors").unlink(missing_ok=True)
    given = [f"--weights={source}", *SHORT, "--config.num_steps=2"]
    finetune.main(["photos", *given])
    assert "resuming after step 1" in capsys.readouterr().out


def test_splits_that_are_there_choose_and_test(make_folder, capsys):
    make_folder({"a": 8, "b": 8}, place="photos/train")
    make_folder({"a": 2, "b": 3}, place="photos/val")
    make_folder({"a": 3, "b": 1}, place="photos/test")
    run("photos")
    said = capsys.readouterr().out
    assert "16 to train on, 5 to choose the best checkpoint by, 4 to test with" in said
    assert "over 5 images" in said
    assert "of 4 images are classified correctly" in said
    assert "of the split 'val', and tested on others." in said


def test_a_run_that_is_told_to_end_goes_on(make_folder, capsys, monkeypatch):
    make_folder()
    with monkeypatch.context() as patch:
        patch.setattr(Preemption, "reached", lambda self: True)
        run("photos")
    said = capsys.readouterr().out
    assert "told to end: saved step 1 of 4" in said
    assert "predict with it" not in said
    assert not pathlib.Path("runs/photos/report.html").exists()
    run("photos")
    said = capsys.readouterr().out
    assert "resuming after step 1" in said
    assert "predict with it" in said


def test_two_images_of_a_class_suffice_and_ctrl_c_blocks_nothing(
    make_folder, monkeypatch, capsys
):
    root = make_folder(dict.fromkeys("abcdefgh", 2))
    pathlib.Path("link").symlink_to(root)
    before = sorted(pathlib.Path().rglob("*"))

    def interrupt(*_):
        raise KeyboardInterrupt

    # Before the trainer has begun, nothing stays; a hidden file is none of the command's.
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "train", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run("link", "--seed=1")
        assert sorted(pathlib.Path().rglob("*")) == before
        pathlib.Path("runs/link").mkdir(parents=True)
        pathlib.Path("runs/link/.hidden").write_text("")
        with pytest.raises(KeyboardInterrupt):
            run("link", "--seed=1")
        assert os.listdir("runs/link") == [".hidden"]
    # Before the first step, another command may still take the place.
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_train_steps", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run("link", "--seed=1")
        assert pathlib.Path("runs/link/config.json").exists()
    capsys.readouterr()
    run("link")
    said = capsys.readouterr().out
    assert "16 images of 8 classes: 8 to train on, 8 to test with" in said
    assert "4 epochs, 4 steps of 8 images" in said
    assert "of 8 images are classified correctly" in said


def test_a_place_that_cannot_be_written_is_told(make_folder, monkeypatch):
    make_folder()
    pathlib.Path("file").write_text("")
    before = sorted(pathlib.Path().rglob("*"))
    with pytest.raises(OSError, match="Not a directory: '.*file/run/finetune.json'"):
        run("photos", "--workdir=file/run")
    with monkeypatch.context() as patch:
        refused = PermissionError(13, "Permission denied", "/runs")
        patch.setattr(
            pathlib.Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(refused)
        )
        with pytest.raises(PermissionError, match="Permission denied: '/runs'"):
            run("photos")
    # As on a full disk: the list of images is longer than a file may be.
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, usual[1]))
    try:
        with pytest.raises(OSError, match="File too large: '.*runs/photos/images.csv'"):
            run("photos")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert sorted(pathlib.Path().rglob("*")) == before


def test_bad_input_leaves_nothing(make_folder, capsys):
    make_folder()
    make_folder({"a": 5}, place="single")
    write_start("grey", in_channels=1, num_classes=2)
    pathlib.Path("notes.pth").write_text("no weights")
    other = {"conv1.weight": np.zeros((4, 3, 7, 7)), "fc.weight": np.zeros((9, 4))}
    write_weights(pathlib.Path("resnet.safetensors"), other)
    pathlib.Path("full").mkdir()
    pathlib.Path("full/x").write_text("")
    before = sorted(pathlib.Path().rglob("*"))
    for arguments, message in (
        (["phots"], r"there is no directory .*phots; did you mean .*photos\?"),
        (["single"], "all images in .*single are of one class, 'a'"),
        (["photos", "--workdir=photos/run"], "would lie in .*photos, whose directories"),
        (["photos", "--workdir=full"], "full holds 'x', and no run of this command"),
        (["photos", "--workdir=notes.pth"], "notes.pth is a file: --workdir is a dir"),
        (["photos", "--config.batchsize=2"], "no field batchsize; did you mean 'batch_s"),
        (["photos", "--config.num_steps=0"], "a run of no steps learns nothing"),
        (["photos", "--config.batch_size=64"], "batch_size=64 is more than the 15 examp"),
        (["photos", "--config.data.image_size=0"], "data.image_size=0 is no size in pix"),
        (["photos", "--config.data.image_size=3"], "data.image_size=3 is too small for "),
        ([""], "DIR is empty: it is a directory"),
        (["photos", "--workdir="], "--workdir is empty: it is the directory of the run"),
        (["photos", "--config.seed=1"], "seed is not for this command, seed sets it"),
        (["photos", "--allow-nan"], "allow_nan is for weights: give --weights, too"),
        (["photos", "--set=depth=(1,)"], "no field model.depth; did you mean 'model.dep"),
        (["photos", "--set=num_classes=3"], "num_classes is not for this command"),
        (["photos", "--config.data.test_split=train"], "data.test_split is not for this"),
        (["photos", "--prefix=x"], "prefix is for weights: give --weights, too"),
    ):
        with pytest.raises(SetupError, match=message):
            run(*arguments)
    for weights, message in (
        ("gone", "no file, directory or release is named 'gone'"),
        ("notes.pth", "notes.pth is a text, which begins with 'no weights'"),
        (
            "resnet.safetensors",
            "resnet.safetensors holds no FocalNet, as .* conv1.weight",
        ),
        ("grey", "grey takes images of 1 channels, and photographs have three"),
        ("single", "there is no checkpoint in .*single"),
    ):
        with pytest.raises(SetupError, match=message):
            run("photos", weights=weights)
    assert sorted(pathlib.Path().rglob("*")) == before


def test_a_damaged_record_is_told(make_folder):
    make_folder()
    workdir = pathlib.Path("runs/photos")
    workdir.mkdir(parents=True)
    for text in ("{", "{}", "[]"):
        (workdir / "finetune.json").write_text(text)
        with pytest.raises(SetupError, match="finetune.json is damaged: .* --workdir"):
            run("photos")


# --- Defaults ----------------------------------------------------------------


def config_for(images, *overrides, **options):
    config = make_config(**dict(images=images, num_classes=3, start=None) | options)
    config.data.name = "folder:/photos"
    changed, _ = split_overrides(overrides)
    apply_overrides(config, changed)
    set_pace(config, images=images, given={name for name, _ in changed})
    return check_config(config)[0]


def test_all_numbers_of_images_have_a_configuration():
    start = ModelDescription(
        "focalnet_tiny_lrf", {"dtype": "bfloat16"}, Preprocessing(64)
    )
    for images in (1, 2, 10, 100, 201, 999, 4_000, 6_000, 10**5):
        for options in ({}, {"start": start}):
            config = config_for(images, **options)
            assert 1 <= config.batch_size <= min(images, 64)
            assert config.warmup_epochs <= config.num_epochs / 5
            steps = config.num_epochs * images / config.batch_size
            assert steps / config.evaluate_every_steps <= 41
        assert config.model.name == "focalnet_tiny_lrf"
        assert config.model.dtype is None  # That of the weights says nothing here.
        assert config.data.image_size == 64


def test_more_images_take_fewer_epochs():
    start = ModelDescription("focalnet_tiny_srf", {}, Preprocessing())
    counts = (99, 999, 9_999, 99_999)
    epochs = [config_for(count, start=start).num_epochs for count in counts]
    assert epochs == sorted({*epochs}, reverse=True)
    scratch = [config_for(count).num_epochs for count in counts]
    assert scratch == sorted({*scratch}, reverse=True)
    assert all(more > fewer for more, fewer in zip(scratch, epochs))


def test_what_follows_from_the_length_follows_what_is_given():
    config = config_for(320, "--config.num_steps=40", "--config.batch_size=16")
    assert config.evaluate_every_steps == 20  # an epoch
    assert config.warmup_epochs == 0.2
    lines = [
        steps / config_for(320, f"--config.num_steps={steps}").log_every_steps
        for steps in (4, 11, 40, 200, 3_000)
    ]
    assert lines == [4, 5.5, 10, 20, 50]
    config = config_for(320, "--config.evaluate_every_steps=7", "--config.num_epochs=400")
    assert config.evaluate_every_steps == 7
    config = config_for(320, "--config.num_epochs=400")
    assert config.evaluate_every_steps == 100  # ten epochs of ten steps of 32


def test_batches_are_for_all_devices():
    assert [batch_size_of(n) for n in (1, 3, 8, 100, 500, 10**6)] == [1, 3, 4, 8, 32, 64]
    assert batch_size_of(100, devices=12) == 12
    assert batch_size_of(10**4, devices=3) == 66
    for images in range(32, 2000):
        assert images / batch_size_of(images) >= 8


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3, "10 seconds"), (44, "40 seconds"), (100, "2 minutes"), (9000, "2.5 hours")],
)
def test_times_are_spelt(seconds, text):
    assert duration.time_spelt(seconds) == text


@pytest.mark.parametrize(
    ("steps", "batch_size", "text"),
    [
        (1, 8, "0.08 epochs, 1 step of 8 images"),
        (100, 1, "1 epoch, 100 steps of 1 image"),
        (250, 1, "2.5 epochs, 250 steps of 1 image"),
        (10**6, 100, "1,000,000 epochs, 1,000,000 steps of 100 images"),
    ],
)
def test_lengths_are_spelt(steps, batch_size, text):
    assert duration.length_spelt(steps, batch_size=batch_size, images=100) == text


def test_the_time_of_a_run_is_that_of_its_images():
    config = config_for(80, "--config.num_steps=40", "--config.evaluate_every_steps=10")
    assert config.batch_size == 8
    test = types.SimpleNamespace(source=range(20))
    splits = types.SimpleNamespace(test=test)
    speed = duration.Speed(forward=2.0, train_input=1.0, eval_input=0.5)
    # Half of the run: 20 steps, and two of four evaluations.
    seconds = duration.seconds_of_run(config, speed, splits, steps=20, all_steps=40)
    assert seconds == pytest.approx(20 * 8 * (3.7 * 2 + 1) + 2 * 20 * (2 + 0.5))


@pytest.mark.parametrize(
    ("flags", "ways"),
    [
        (["--image-size=64"], ["--image-size=32", "--config.num_epochs=66"]),
        (["--image-size=64x80"], ["--image-size=32x40", "--config.num_epochs=66"]),
        (["--image-size=32", "--config.num_steps=2"], []),
        (
            ["--config.data.image_size=64", "--config.num_steps=300"],
            ["--config.data.image_size=32", "--config.num_steps=100"],
        ),
    ],
)
def test_a_long_run_is_told_how_to_be_shorter(flags, ways, make_folder, monkeypatch):
    make_folder(dict.fromkeys("ab", 9))
    plans = []
    monkeypatch.setattr(finetune, "_introduce", lambda plan, *_: plans.append(plan))
    monkeypatch.setattr(finetune, "train", lambda *_: None)
    finetune.main(["photos", "--config.batch_size=8", *flags])
    found = finetune._ways_to_shorten(plans[0])
    assert [way.partition(" ")[0] for way in found] == ways


def test_commands_are_spelt_as_they_are_given(monkeypatch, tmp_path):
    monkeypatch.setattr(command_line, "_CALLED", {})
    command_line.call_as("focalnet predict", module="focalnet_jax.predict")
    assert commands(tmp_path)[0].startswith("focalnet predict IMAGE --weights=")


def test_the_command_line_has_no_option_of_the_head():
    assert finetune.parse(["x", "--config.seed=1"]).overrides == [("seed", "1")]
    with pytest.raises(SystemExit):
        finetune.parse(["x", "--head=reset"])


def test_the_documentation_has_the_table_of_defaults():
    page = pathlib.Path(finetune.__file__).parents[2] / "docs" / "finetune.md"
    text = page.read_text("utf-8")
    for pace in PACES:
        images = f"up to {pace.images:,}" if pace.images < 1e9 else "more"
        row = f"{pace.epochs} | {pace.epochs_from_scratch} | {pace.size_from_scratch}"
        assert f"\n| {images} | {row} |\n" in text
