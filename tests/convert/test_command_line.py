"""The command line `python -m focalnet_jax.convert`."""

import json
import os
import pathlib
import pickle
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny import TINY, random_params, tiny_model

from focalnet_jax import load_model
from focalnet_jax.convert import from_torch, to_torch
from focalnet_jax.convert.__main__ import main
from focalnet_jax.convert.weight_files import read_weights, write_weights
from focalnet_jax.errors import SetupError
from focalnet_jax.train import check_config, evaluate, train

OPTIONS = [f"--set={option}={value}" for option, value in TINY.items()]


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def weights(model, tmp_path, monkeypatch):
    """Writes float16 weights with timm's names to a safetensors file in the cwd."""
    monkeypatch.chdir(tmp_path)
    tensors = to_torch(random_params(model), model, dialect="timm", dtype="float16")
    write_weights(tmp_path / "weights.safetensors", tensors)
    return tensors


def run(*arguments):
    main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("given", "size"), [("384", 384), ("360x880", [360, 880]), ("(48, 48)", 48)]
)
def test_the_size_of_images_is_recorded(weights, given, size):
    run("weights.safetensors", "converted/net", f"--image-size={given}")
    description = json.loads(pathlib.Path("converted/net/model.json").read_text())
    assert description["image_size"] == size


def test_to_a_directory_and_back(weights, model, capsys):
    run("weights.safetensors", "converted/net")
    printed = capsys.readouterr().out
    assert "read weights.safetensors: 58 tensors, named as timm" in printed
    assert "note: 58 tensors: float16 widened to float32, exactly" in printed
    assert "so as in focalnet_tiny_srf: normalize_modulator=False" in printed
    description = json.loads(pathlib.Path("converted/net/model.json").read_text())
    assert description["name"] == "focalnet_tiny_srf"
    assert description["overrides"]["num_classes"] == 5
    assert description["image_size"] == 224
    sha256 = read_weights("weights.safetensors").sha256
    assert description["source"] == {
        "file": "weights.safetensors",
        "sha256": sha256,
        "dialect": "timm",
        "dtype": "float16",
    }
    assert sorted(os.listdir("converted/net")) == ["model.json", "params"]

    run("converted/net", "back.safetensors")
    back = read_weights("back.safetensors").tensors
    assert back.keys() == weights.keys()
    for key, array in weights.items():
        assert back[key].dtype == array.dtype
        assert back[key].tobytes() == array.tobytes()


def test_mixed_precision_comes_back_mixed(weights):
    for key in weights:
        if "norm" in key:
            weights[key] = weights[key].astype(np.float32)
    write_weights(pathlib.Path("mixed.safetensors"), weights)
    run("mixed.safetensors", "converted")
    run("converted", "back.safetensors")
    back = read_weights("back.safetensors").tensors
    assert {k: v.dtype for k, v in back.items()} == {
        k: v.dtype for k, v in weights.items()
    }


def test_from_dialect_to_dialect(weights, torch):
    run("weights.safetensors", "official.pth", "--dialect=microsoft")
    assert set(torch.load("official.pth", weights_only=True)) == {"model"}
    run("official.pth", "hub.safetensors", "--dialect=transformers")
    run("hub.safetensors", "again.safetensors", "--dialect=timm")
    again = read_weights("again.safetensors").tensors
    assert again.keys() == weights.keys()
    for key, array in weights.items():
        assert again[key].tobytes() == array.tobytes()


def test_files_are_loaded_strictly_by_the_peers(weights, model, peers, torch):
    import safetensors.torch

    run("weights.safetensors", "timm.pth", "--dialect=timm")
    tensors = torch.load("timm.pth", weights_only=True)
    peers.build_peer("timm", model).load_state_dict(tensors, strict=True)
    run("weights.safetensors", "hub.safetensors", "--dialect=transformers")
    tensors = safetensors.torch.load_file("hub.safetensors")
    peers.build_peer("transformers", model).load_state_dict(tensors, strict=True)


def test_runs_start_from_a_converted_directory(weights, tiny_config, tmp_path, capsys):
    """Only evaluation is tested here; the tests of the loop train from a directory."""
    run("weights.safetensors", "start", "--head=reset", "--num-classes=10")
    tiny_config.model.update(TINY)
    tiny_config.model.name = "focalnet_tiny_srf"
    tiny_config.init_from = "start"
    metrics = evaluate(*check_config(tiny_config), tmp_path / "run")
    assert metrics["test/examples"] == 60
    assert "start" in capsys.readouterr().out
    tiny_config.model.normalize_modulator = True  # The parameters don't show it.
    with pytest.raises(SetupError, match="normalize_modulator: False there, True here"):
        evaluate(*check_config(tiny_config), tmp_path / "run")
    tiny_config.init_from = "weights.safetensors"
    with pytest.raises(SetupError, match="python -m focalnet_jax.convert /"):
        train(*check_config(tiny_config), tmp_path / "run")


def test_a_directory_can_be_changed_on_the_way(weights, model, capsys):
    run("weights.safetensors", "start")
    run("start", "backbone", "--head=reset", "--set=out_stages=(0,1)")
    assert "note: new: norm0/bias, norm0/scale" in capsys.readouterr().out
    backbone = load_model("backbone")
    assert [
        m.shape[-1]
        for m in backbone.model.apply(
            {"params": backbone.params}, np.zeros((1, 32, 32, 3), np.float32)
        )
    ] == [8, 16]
    run("start", "wide", "--resize-kernels", "--set=focal_windows=(9,9)")
    run("start", "deep", "--add-levels", "--set=focal_levels=(3,3)")
    kernel = load_model("wide").params["layers_0"]["blocks_0"]["modulation"]
    assert kernel["focal_layers_0"]["kernel"].shape == (9, 9, 1, 8)
    run("backbone", "backbone.pth", "--dialect=microsoft")
    run("backbone.pth", "again")
    assert load_model("again").model == backbone.model


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["none.pth", "out"], "no file, directory or release is named 'none.pth'"),
        (["focalnet_tiny_sr", "out"], "did you mean 'focalnet_tiny_srf'"),
        (["focalnet_huge_fl3", "out"], "isotropic and huge weights are offline"),
        (["focalnet_large_fl3", "out"], "that model is 'focalnet_large_lrf_384'"),
        (["weights.safetensors", "empty.bin/out"], "empty.bin is a file"),
        (["weights.safetensors", "out.h5"], "out.h5 ends in '.h5'"),
        (["run", "out", "--prefix=backbone"], "prefix and wrapper are for files"),
        (["run", "out"], "run/model.json is no description of a model"),
        (["weights.safetensors", "out.npz"], "out.npz ends in '.npz'"),
        (
            ["weights.safetensors", "out", "--model=focalnet_tny"],
            "did you mean 'focalnet_t",
        ),
        (["weights.safetensors", "out", "--model=focalnet_tiny_srf"], "depths is (1, 2)"),
        (["weights.safetensors", "out", "--set=depth=3"], "no option 'depth'"),
        (["weights.safetensors", "out", "--set=depth"], "OPTION=VALUE"),
        (
            ["weights.safetensors", "out", "--head=reset"],
            "head='reset' needs num_classes for a classifier",
        ),
        (["weights.safetensors", "out", "--num-classes=7"], "head='reset'"),
        (["weights.safetensors", "out", "--head=in22k_to_in1k"], "has 5"),
        (["weights.safetensors", "out", "--wrapper=ema"], "no weights under 'ema'"),
        (["weights.safetensors", "."], "which is not written there, so it is not"),
        (["weights.safetensors", "weights.safetensors"], "overwrite=True replaces it"),
        (["weights.safetensors", "folder.pth"], "and is a directory"),
        (["bomb.pth", "out"], "bomb.pth holds builtins.print, not named tensors"),
        (["weights.safetensors", "out", "--dialect=timm"], "is for a file, and"),
        (
            ["weights.safetensors", "out", "--num-classes=3", "--set=num_classes=4"],
            "--num-classes and --set=num_classes differ",
        ),
        (["weights.safetensors", "out", "--set=a=1", "--set=a=2"], "is given twice"),
        (["https://example.org/a.pth", "out"], "is an address, of which nothing is read"),
        (["s3://bucket/a", "out"], "s3://bucket/a can't be reached: "),
        (["ftp://example.org/a", "out"], "give its path, or give hf:OWNER/NAME"),
        (["microsoft/focalnet-tiny", "out"], "give 'hf:microsoft/focalnet-tiny'"),
        (["~nobody-of-that-name/a.pth", "out"], "that user has no home"),
        (["weights.safetensors", "gs://bucket/out"], "is not on a disk"),
        (["weights.safetensors", "https://example.org/out"], "is neither a path nor"),
        (["weights.safetensors", "x" * 300], "can't be written: File name too long"),
        (["weights.safetensors", "~nobody-of-that-name/out"], "that user has no home"),
        (["weights.safetensors", ""], "DST is empty"),
        (["folder.pth", "out"], "there is no checkpoint in"),
        (["empty.bin", "out"], "is empty"),
        (["nan.safetensors", "out"], "hold NaN or infinity"),
        (["swin.safetensors", "out"], "holds no FocalNet"),
    ],
)
def test_bad_input_leaves_nothing_behind(arguments, expected, weights, torch):
    pathlib.Path("folder.pth").mkdir()
    pathlib.Path("run/params").mkdir(parents=True)
    pathlib.Path("run/model.json").write_text("null")
    pathlib.Path("empty.bin").touch()
    pathlib.Path("bomb.pth").write_bytes(pickle.dumps(print))
    write_weights(
        pathlib.Path("nan.safetensors"),
        weights | {"norm.bias": weights["norm.bias"] * np.float16(np.nan)},
    )
    swin = {"layers.0.blocks.0.attn.qkv.weight": np.zeros(3)}
    write_weights(pathlib.Path("swin.safetensors"), swin)
    before = sorted(os.listdir())
    if arguments[1] == ".":
        arguments = [*arguments, "--overwrite"]
    with pytest.raises(SetupError) as error:
        run(*arguments)
    assert expected in str(error.value)
    assert sorted(os.listdir()) == before


def test_overwriting_replaces_the_whole(weights):
    run("weights.safetensors", "out")
    run("weights.safetensors", "out", "--overwrite", "--head=reset", "--num-classes=3")
    assert load_model("out").model.num_classes == 3
    run("out", "a.safetensors")
    run("out", "a.safetensors", "--overwrite", "--dialect=transformers")
    assert "classifier.bias" in read_weights("a.safetensors").tensors
    assert sorted(os.listdir()) == ["a.safetensors", "out", "weights.safetensors"]


def test_a_training_run_is_never_overwritten(weights):
    run("weights.safetensors", "runs/net")
    pathlib.Path("runs/net/metrics.jsonl").touch()
    with pytest.raises(SetupError, match="holds metrics.jsonl, which is not written"):
        run("weights.safetensors", "runs/net", "--overwrite")
    assert sorted(os.listdir("runs/net")) == ["metrics.jsonl", "model.json", "params"]


def test_what_was_there_comes_back_when_renaming_fails(weights, monkeypatch):
    run("weights.safetensors", "out")
    rename = pathlib.Path.rename

    def fail_once(path, target):
        if target.name == "out" and ".old" not in path.name:
            raise OSError("no")
        return rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", fail_once)
    with pytest.raises(SetupError, match="out can't be written: no"):
        run(
            "weights.safetensors", "out", "--overwrite", "--head=reset", "--num-classes=3"
        )
    assert load_model("out").model.num_classes == 5
    assert sorted(os.listdir()) == ["out", "weights.safetensors"]


def test_double_precision_goes_from_file_to_file_to_the_bit(model, tmp_path):
    source = to_torch(random_params(model), model, dialect="timm")
    write_weights(tmp_path / "double.safetensors", source)
    run(
        tmp_path / "double.safetensors", tmp_path / "a.safetensors", "--dialect=microsoft"
    )
    run(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--dialect=timm")
    for key, array in read_weights(tmp_path / "b.safetensors").tensors.items():
        assert array.tobytes() == source[key].tobytes()
    # A directory holds parameters of the model's dtype, and the command says so.
    run(tmp_path / "double.safetensors", tmp_path / "single")
    run(tmp_path / "single", tmp_path / "c.safetensors")
    arrays = read_weights(tmp_path / "c.safetensors").tensors.values()
    assert {array.dtype.name for array in arrays} == {"float32"}


def test_what_is_new_is_not_rounded_on_the_way_out(weights):
    run("weights.safetensors", "start", "--head=reset", "--num-classes=3")
    run("start", "out.safetensors")
    tensors = read_weights("out.safetensors").tensors
    assert tensors["norm.bias"].dtype == np.float16
    new = np.asarray(load_model("start").params["head"]["kernel"])
    np.testing.assert_array_equal(tensors["head.fc.weight"], new.T)
    assert tensors["head.fc.weight"].dtype == np.float32


def test_a_safetensors_file_carries_model_and_preprocessing(weights):
    run("weights.safetensors", "start", "--set=normalize_modulator=True")
    path = pathlib.Path("start/model.json")
    changes = dict(mean=[0.5] * 3, crop=1.0, image_size=16, classes=list("abcde"))
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    run("start", "out.safetensors", "--dialect=transformers")
    assert load_model("out.safetensors")[::2] == load_model("start")[::2]
    run("out.safetensors", "again")
    again = json.loads(pathlib.Path("again/model.json").read_text())
    assert {key: again[key] for key in changes} == changes
    assert again["source"]["file"] == "out.safetensors"
    # With a name, the description in the file is ignored.
    run("out.safetensors", "named", "--model=focalnet_tiny_srf", *OPTIONS)
    assert not load_model("named").model.encoder.normalize_modulator


def test_transformers_own_directories(peers, tmp_path):
    """`save_pretrained` writes a config that tells what the weights don't show."""
    model = tiny_model(use_postln=True, normalize_modulator=True)
    peer = peers.build_peer("transformers", model)
    peer.save_pretrained(tmp_path / "hub")
    loaded = load_model(tmp_path / "hub")
    assert loaded.model == model
    run(tmp_path / "hub", tmp_path / "out")
    assert load_model(tmp_path / "out").model == model


def test_class_names_go_with_their_head(weights):
    run("weights.safetensors", "start")
    path = pathlib.Path("start/model.json")
    description = json.loads(path.read_text()) | {"classes": list("abcde")}
    path.write_text(json.dumps(description))
    run("start", "same")
    run("start", "other", "--head=reset", "--num-classes=3")
    classes = [
        json.loads(pathlib.Path(d, "model.json").read_text())["classes"]
        for d in ("same", "other")
    ]
    assert classes == [list("abcde"), None]


def test_damaged_directories_are_one_line(weights):
    run("weights.safetensors", "start")
    metadata = pathlib.Path("start/params/_METADATA")
    metadata.write_text(metadata.read_text()[:100])
    with pytest.raises(SetupError, match=r"start/params is damaged: ") as error:
        run("start", "out")
    assert "\n" not in str(error.value)


def test_with_a_name_every_missing_tensor_is_listed(weights):
    gone = [key for key in weights if "focal_layers" in key or key == "norm.weight"]
    for key in gone:
        del weights[key]
    write_weights(pathlib.Path("cut.safetensors"), weights)
    with pytest.raises(SetupError) as error:
        run("cut.safetensors", "out", "--model=focalnet_tiny_srf", *OPTIONS)
    for key in gone:
        assert key in str(error.value)
    with pytest.raises(SetupError, match="can't be inferred: name it by name, such as"):
        run("cut.safetensors", "out")


def test_what_a_file_does_not_hold_is_said(tmp_path, capsys):
    model = tiny_model("focalnet_large_fl4", stem_padding=3)
    tensors = to_torch(random_params(model), model, dialect="microsoft")
    write_weights(tmp_path / "a.safetensors", tensors)
    settings = ["--model=focalnet_large_fl4", "--set=stem_padding=3", *OPTIONS]
    run(tmp_path / "a.safetensors", tmp_path / "b.pth", *settings)
    assert (
        "note: weights do not show normalize_modulator=True, use_postln=True, "
        "stem_padding=3"
    ) in capsys.readouterr().out
    with pytest.raises(SetupError, match="timm's FocalNet always has stem_padding=2"):
        to_torch(random_params(model), model, dialect="timm")


def test_a_stage_can_be_left_out_of_a_backbone(weights):
    run("weights.safetensors", "both", "--head=reset", "--set=out_stages=0,1")
    with pytest.raises(SetupError, match=r"ignore=\['norm0/\*'\] leaves"):
        run("both", "last", "--set=out_stages=(1,)")
    run("both", "last", "--set=out_stages=(1,)", "--ignore=norm0/*")
    run("both", "both.pth")  # Only the dialect microsoft has the norms.
    run("both.pth", "again", "--ignore=norm0.*")
    assert load_model("last").model == load_model("again").model
    assert load_model("last").model.out_stages == (1,)


def test_a_name_leaves_the_head_to_the_weights(weights, model):
    run("weights.safetensors", "out", "--model=focalnet_small_srf", *OPTIONS)
    description = json.loads(pathlib.Path("out/model.json").read_text())
    assert description["name"] == "focalnet_small_srf"
    assert description["overrides"]["num_classes"] == 5
    expected = from_torch(weights, model)
    for a, b in zip(jax.tree.leaves(load_model("out").params), jax.tree.leaves(expected)):
        np.testing.assert_array_equal(a, b)


def test_the_program_ends_with_one_line_and_a_status(weights, tmp_path):
    """A process shows no trace and writes nothing at DST."""
    command = [sys.executable, "-m", "focalnet_jax.convert"]
    good = subprocess.run(
        [*command, "weights.safetensors", "out"], capture_output=True, text=True
    )
    assert (good.returncode, good.stderr) == (0, "")
    pathlib.Path("cut.safetensors").write_bytes(
        pathlib.Path("weights.safetensors").read_bytes()[:-9]
    )
    bad = subprocess.run(
        [*command, "cut.safetensors", "other"], capture_output=True, text=True
    )
    assert bad.returncode == 1
    assert bad.stderr.count("\n") == 1
    assert "cut.safetensors is damaged, or no safetensors file" in bad.stderr
    assert not os.path.exists("other")
    lost = subprocess.run(
        ["bash", "-c", f"{shlex.join(command)} weights.safetensors whole >/dev/full"],
        capture_output=True,
        text=True,
    )
    assert lost.returncode == 0, lost.stderr  # What was asked for is there.
    assert load_model("whole").model.num_classes == 5
    nowhere = subprocess.run(
        [*command, "weights.safetensors", "other"],
        env=os.environ | {"JAX_PLATFORMS": "foo"},
        capture_output=True,
        text=True,
    )
    assert nowhere.returncode == 1
    assert nowhere.stderr.count("\n") == 1
    assert "error: JAX finds no devices for JAX_PLATFORMS=foo: Unab" in nowhere.stderr
    assert not os.path.exists("other")


def test_what_is_one_is_told_as_one(weights, capsys):
    tensors = {f"backbone.{name}": tensor for name, tensor in weights.items()}
    tensors["decoder.weight"] = np.zeros(2, np.float16)
    write_weights(pathlib.Path("a.safetensors"), tensors)
    run("a.safetensors", "out", "--prefix=backbone", "--set=in_channels=1")
    printed = capsys.readouterr().out
    assert "1 tensor outside of 'backbone.' is left out" in printed
    assert "the model takes 1 channel, so mean and std" in printed
