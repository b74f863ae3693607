"""Masked image modelling as a task of the trainer, and what starts from it."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from tiny import random_params, tiny_model

from focalnet_jax import load_model
from focalnet_jax.command_line import assigned
from focalnet_jax.convert import to_torch
from focalnet_jax.convert.__main__ import main as convert
from focalnet_jax.convert.model_arguments import spell
from focalnet_jax.convert.weight_files import write_weights
from focalnet_jax.errors import SetupError
from focalnet_jax.evaluators import Mean
from focalnet_jax.export import export_onnx, export_program
from focalnet_jax.models import FocalNet, FocalNetBackbone, MaskedFocalNet
from focalnet_jax.tasks.masked_image_modeling import RandomMask, hidden_errors
from focalnet_jax.train import (
    check_config,
    default_config,
    evaluate,
    load_recipe,
    train,
)
from focalnet_jax.trees import named_leaves
from focalnet_jax.weights.description import parse_description

pytestmark = pytest.mark.usefixtures("shared_programs", "no_summaries")


@pytest.fixture
def masked_config(tiny_config):
    """As `tiny_config`, but nobody reads the labels."""
    config = default_config("masked_image_modeling")
    for name in ("batch_size", "num_steps", "learning_rate", "warmup_epochs"):
        config[name] = tiny_config[name]
    config.learning_rate_batch_size = 0
    config.log_every_steps = 1
    config.checkpoint.every_steps = 3
    for group in ("model", "data"):
        for field, value in tiny_config[group].items():
            if field in config[group]:
                config[group][field] = value
    config.mask_patch_size = 4
    return config


def run(config, workdir):
    return train(*check_config(config), epath.Path(workdir))


# --- What is hidden ----------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.01, 0.6, 1.0])
def test_each_image_has_as_many_hidden_squares(ratio):
    mask = RandomMask(ratio, squares=(3, 5), repeats=(2, 4))
    drawn = np.asarray(mask(jax.random.split(jax.random.key(0), 50)))
    assert drawn.shape == (50, 6, 20)
    squares = drawn.reshape(50, 3, 2, 5, 4)
    assert (squares == squares[:, :, :1, :, :1]).all()
    counts = squares[:, :, 0, :, 0].sum((1, 2))
    assert set(counts) == {math.ceil(15 * ratio)} == {mask.hidden}
    if ratio < 1:
        assert len({image.tobytes() for image in drawn}) > 10
    if ratio > 0.5:  # Then every square is hidden now and then.
        assert squares.any(0).all()


def test_the_loss_by_hand():
    images = np.zeros((2, 4, 6, 3), np.float32)
    painted = images.copy()
    painted[0, :2, :3] = [1, -2, 3]  # hidden
    painted[0, 2:, 3:] = 100  # seen
    painted[1, 1, 5] = 6
    hidden = np.zeros((2, 2, 2), bool)
    hidden[0, 0, 0] = hidden[1, 0, 1] = hidden[1, 1, 0] = True
    given = hidden_errors(jnp.array(images), jnp.array(painted), jnp.array(hidden))
    # Of 12 hidden pixels in the second image, one is wrong.
    np.testing.assert_allclose(given, [2, 6 / 12], rtol=1e-6)


def test_masks_of_an_evaluation_belong_to_records(masked_config):
    _, task = check_config(masked_config)
    variables = jax.jit(task.init)(jax.random.key(0))
    predict = jax.jit(task.predict)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 16, 16, 3), np.uint8)
    ids = np.array([7, 3, 9, 3])
    images[3] = images[1]
    first = predict(variables, {"image": images, "id": ids})["loss"]
    order = np.array([2, 1, 0, 3])
    second = predict(variables, {"image": images[order], "id": ids[order]})["loss"]
    np.testing.assert_allclose(second, first[order], rtol=1e-5)
    np.testing.assert_allclose(first[1], first[3], rtol=1e-5)
    other = predict(variables, {"image": images, "id": ids + 1})["loss"]
    assert np.abs(other - first).max() > 1e-3


def test_the_step_draws_its_masks_from_its_key(masked_config):
    _, task = check_config(masked_config)
    batch = {"image": np.zeros((8, 16, 16, 3), np.uint8)}
    one, two, again = (
        np.asarray(task.prepare(batch, {"mask": jax.random.key(seed)})["hidden"])
        for seed in (0, 1, 0)
    )
    assert (one == again).all()
    assert (one != two).any()


def test_means_count_each_example_once():
    batches = [
        {"x": np.array([1.0, 5.0]), "mask": np.array([True, True])},
        {"x": np.array([3.0, 99.0]), "mask": np.array([True, False])},
    ]
    mean = Mean(lambda scale, batch: {"loss": scale * batch["x"]}, lambda: batches)
    assert dict(mean.run(2.0, name="t")) == {"t/loss": 6.0, "t/examples": 3}
    nothing = [{"x": np.ones(1), "mask": np.array([False])}]
    mean = Mean(lambda _, batch: {"loss": batch["x"]}, lambda: nothing)
    assert dict(mean.run(None)) == {"test/examples": 0}


# --- Training, and what starts from it ---------------------------------------


def test_a_run_learns_resumes_and_is_evaluated(masked_config, tmp_path, train_until):
    masked_config.num_steps = 40
    masked_config.learning_rate = 3e-2
    masked_config.model.depths = (1, 1)
    masked_config.model.focal_levels = (2, 1)
    masked_config.model.focal_windows = (3, 3)
    masked_config.model.drop_rate = 0.0
    metrics = run(masked_config, tmp_path / "whole")
    lines = [
        json.loads(line)
        for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert metrics["test/loss"] < losses[0]
    assert metrics["test/examples"] == 60
    train_until(check_config(masked_config), epath.Path(tmp_path / "two"), 7)
    assert run(masked_config, tmp_path / "two")["test/loss"] == metrics["test/loss"]
    config, task = check_config(masked_config)
    again = evaluate(config, task, epath.Path(tmp_path / "whole"))
    assert again["test/loss"] == pytest.approx(metrics["test/loss"], rel=1e-6)


def test_parts_and_splits_of_a_batch_change_nothing(masked_config, tmp_path):
    masked_config.num_steps = 2
    masked_config.model.drop_rate = 0.0
    expected = run(masked_config, tmp_path / "plain")
    masked_config.accumulate_steps = 2
    masked_config.mesh.spatial = 2
    masked_config.mesh.fsdp = 2
    given = run(masked_config, tmp_path / "split")
    # Sums in another order, after two steps of Adam.
    assert given["train/loss"] == pytest.approx(expected["train/loss"], rel=1e-4)
    assert given["test/loss"] == pytest.approx(expected["test/loss"], rel=1e-4)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, data_dir):
    config = load_recipe("simmim:digits")
    config.num_steps = 2
    config.data.data_dir = data_dir
    config.data.test_split = "test[:60]"
    config.model.depths = (1, 1)
    config.model.focal_levels = (1, 1)
    config.model.focal_windows = (3, 3)
    config.model.embed_dim = 8
    workdir = tmp_path_factory.mktemp("runs") / "simmim"
    run(config, workdir)
    return workdir


def test_a_classifier_starts_from_it(pretrained, tmp_path, data_dir):
    config = load_recipe("digits")
    config.num_steps = 1
    config.learning_rate = config.warmup_learning_rate = 0.0
    config.final_learning_rate = 0.0
    config.data.data_dir = data_dir
    config.data.test_split = "test[:60]"
    config.model.depths = (1, 1)
    config.model.focal_levels = (1, 1)
    config.model.focal_windows = (3, 3)
    config.model.embed_dim = 8
    config.init_from = str(pretrained)
    with pytest.raises(SetupError, match="reset_head=True starts it anew"):
        run(config, tmp_path / "without")
    config.reset_head = True
    run(config, tmp_path / "with")
    there = named_leaves(load_model(pretrained).params)
    here = named_leaves(load_model(tmp_path / "with").params)
    shared = there.keys() & here.keys()
    assert here.keys() - shared == {"head/bias", "head/kernel"}
    for name in shared:
        np.testing.assert_array_equal(here[name], there[name])


def test_it_is_loaded_as_what_is_asked_for(pretrained):
    net = load_model(pretrained)
    assert isinstance(net.model, MaskedFocalNet)
    assert net.classes is None
    images = np.zeros((1, 16, 16, 3), np.float32)
    painted, _ = net.model.apply({"params": net.params}, images)
    assert painted.shape == images.shape
    with pytest.raises(SetupError, match="has no head, so it predicts no classes"):
        net.predict(np.zeros((16, 16, 3), np.uint8))
    classifier = load_model(pretrained, head="reset", num_classes=7)
    assert isinstance(classifier.model, FocalNet)
    norm = classifier.params["norm"]["scale"]
    np.testing.assert_array_equal(norm, net.params["norm"]["scale"])
    assert len(classifier.predict(np.zeros((16, 16, 3), np.uint8), topk=9)[0]) == 7
    features = load_model(pretrained, num_classes=0)
    assert not {"head", "decoder", "mask_token"} & features.params.keys()
    backbone = load_model(pretrained, head="reset", out_stages=(0, 1))
    assert isinstance(backbone.model, FocalNetBackbone)
    with pytest.raises(SetupError, match="num_classes is for .* reconstruct for masked"):
        load_model(pretrained, num_classes=3, reconstruct=True)


@pytest.mark.parametrize("value", [False, 1, "yes", None])
def test_a_masked_model_is_not_half_one(pretrained, value):
    problem = "reconstruct=.* says of no kind of model: True is for masked image"
    with pytest.raises(SetupError, match=problem):
        load_model(pretrained, reconstruct=value)
    content = json.loads((pretrained / "model.json").read_text())
    content["overrides"]["reconstruct"] = value
    with pytest.raises(SetupError, match=f"model.json: {problem}"):
        parse_description(json.dumps(content), origin="model.json")


def test_a_classifier_becomes_one(tmp_path):
    model = tiny_model()
    tensors = to_torch(random_params(model, "float32"), model, dialect="timm")
    write_weights(tmp_path / "a.safetensors", tensors)
    with pytest.raises(SetupError, match="starts the model's decoder and mask token"):
        load_model(tmp_path / "a.safetensors", reconstruct=True)
    with pytest.raises(SetupError, match="reconstruct=True for masked image") as error:
        load_model(tmp_path / "a.safetensors", head="reset")
    assert "--set=reconstruct=True" in error.value.spelt(spell, assigned)
    remedies = error.value.remedies
    assert remedies.pop("segment")  # The other way out: it makes a segmenter.
    net = load_model(tmp_path / "a.safetensors", **remedies)
    assert isinstance(net.model, MaskedFocalNet)
    assert {"decoder", "mask_token"} <= net.params.keys()
    stem = tensors["stem.proj.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(net.params["patch_embed"]["proj"]["kernel"], stem)


def test_it_is_converted_for_transformers(pretrained, tmp_path, capsys):
    path = tmp_path / "net.safetensors"
    convert([str(pretrained), str(path)])
    assert "named as transformers" in capsys.readouterr().out
    given, expected = load_model(path), load_model(pretrained)
    assert given.model == expected.model
    jax.tree.map(np.testing.assert_array_equal, given.params, expected.params)
    with pytest.raises(SetupError, match="no place for .* masked models with dialect="):
        convert([str(pretrained), str(tmp_path / "net.pth"), "--dialect=microsoft"])


def test_it_is_not_exported(pretrained):
    net = load_model(pretrained)
    for export in (export_onnx, export_program):
        with pytest.raises(SetupError, match="its encoder is, with num_classes=0"):
            export(net.model, net.params)


# --- Configurations ----------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"mask_patch_size": 5}, "=5 does not divide .*=16; the nearest that does is 4"),
        ({"mask_patch_size": 2}, "mask_patch_size=2 is no multiple of model.patch_size"),
        ({"data.image_size": 18}, "data.image_size=18 is no multiple of 4 x 4"),
        ({"mask_ratio": 0.0}, "mask_ratio=0.0"),
        ({"mask_ratio": 1.1}, "mask_ratio=1.1"),
    ],
)
def test_values_that_do_not_go_together_are_said(masked_config, fields, problem):
    masked_config.update_from_flattened_dict(fields)
    with pytest.raises(SetupError, match=problem):
        check_config(masked_config)


def test_the_recipe_has_all_variants():
    config, task = check_config(load_recipe("simmim:tiny_lrf"))
    assert config.model.name == "focalnet_tiny_lrf"
    assert task.random_mask == RandomMask(0.6, squares=(6, 6), repeats=(8, 8))
    assert task.random_mask.hidden == 22
    with pytest.raises(
        SetupError, match="no variant 'tiny_lrff'; did you mean 'tiny_lrf"
    ):
        load_recipe("simmim:tiny_lrff")


def test_the_mask_token_stands_with_the_stem(masked_config):
    _, task = check_config(masked_config)
    assert task.depth_of("mask_token") == task.depth_of("patch_embed/proj/kernel") == 0
    assert task.depth_of("decoder/kernel") == task.model.encoder.max_depth
