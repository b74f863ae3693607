"""Semantic segmentation as a task of the trainer: data, loss, evaluation and files."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from etils import epath
from mask_files import encode, mask_of, rng_of, write
from tiny import TINY, random_params, tiny_model

from focalnet_jax.convert.directories import write_directory
from focalnet_jax.errors import SetupError
from focalnet_jax.evaluators import Overlap
from focalnet_jax.heads.views import Windows
from focalnet_jax.preprocessing import Preprocessing
from focalnet_jax.tasks.losses import segmentation_loss
from focalnet_jax.train import check_config, default_config, evaluate, start, train
from focalnet_jax.train.program import make_program, mesh_of
from focalnet_jax.train.run.checkpoints import Checkpoints
from focalnet_jax.trees import named_leaves
from focalnet_jax.weights.description import ModelDescription, find_description


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in ADE20K's layout, whose images differ in size and in shades by class."""
    files = {}
    for split, count in (("training", 8), ("validation", 5)):
        for number in range(count):
            name = f"{split}/{number}.png"
            mask = mask_of(name, (20 + number, 30), indices=(0, 1, 2, 3))
            noise = rng_of(name).integers(0, 40, (*mask.shape, 3))
            files[f"annotations/{name}"] = encode(mask)
            files[f"images/{name}"] = encode((70 * mask[..., None] + noise).astype("u1"))
    return write(tmp_path_factory.mktemp("ade"), files)


@pytest.fixture
def config(folder):
    config = default_config("semantic_segmentation")
    config.batch_size = 8
    config.num_steps = 2
    config.learning_rate = 1e-2
    config.learning_rate_batch_size = 0
    config.schedule, config.warmup_steps = "poly", 1
    config.weight_decay_mask, config.no_weight_decay = "all", (".*norm",)
    config.model.num_classes = 3
    config.model.depths = (1, 1)
    config.model.embed_dim = 8
    config.model.focal_levels = (1, 1)
    config.model.focal_windows = (3, 3)
    config.model.head_channels = 8
    config.model.auxiliary_channels = 8
    config.model.pool_sizes = (1, 2)
    config.data.name = f"folder:{folder}"
    config.data.reduce_zero_label = True
    config.data.scale = (48, 32)
    config.data.crop_size = 32
    config.eval_canvases = 2
    config.log_every_steps = 1
    return config


def rows_of(split):
    """One batch of a split on the host: its first record in each group, and the next."""
    return [
        {
            name: np.stack(arrays)
            for name, arrays in _by_name(
                [group.example(split.source.read(i)) for i in group.indices]
            ).items()
        }
        for group in split.groups
    ]


def _by_name(examples):
    return {name: [example[name] for example in examples] for name in examples[0]}


def variables_of(task):
    """New variables, but logits and running averages that tell positions apart."""
    variables = task.init(jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(leaf):
        noise = rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        return leaf + noise - 1 if leaf.ndim else leaf

    return jax.tree.map(draw, variables)


# --- A run ---------------------------------------------------------------------


def test_a_run_from_a_folder_to_its_files(config, tmp_path, capsys):
    config.published = "mIoU 50.5 %"
    config.ema_decay = 0.9
    config.checkpoint.best_metric = "test/miou"
    config, task = check_config(config)
    workdir = epath.Path(tmp_path / "run")
    metrics = train(config, task, workdir)
    output = capsys.readouterr().out
    assert "5 images are evaluated on 1 canvas (32x64), so by 1 program" in output
    assert "test: mIoU" in output
    assert output.count("published: mIoU 50.5 %") == 2  # of the parameters' average, too
    assert metrics["test/examples"] == 5
    assert 0 <= metrics["test/miou"] <= metrics["test/macc"] <= 1
    assert metrics["test_ema/aacc"] <= 1
    assert {"train/decode_loss", "train/auxiliary_loss"} <= metrics.keys()
    table = (workdir / "test_classes.txt").read_text().splitlines()
    assert table[0].split() == ["class", "IoU", "Acc", "pixels"]
    assert [line[:7] for line in table[1:4]] == ["class 0", "class 1", "class 2"]
    with PIL.Image.open(workdir / "test_examples.png") as picture:
        assert picture.width > 4 * 128
    assert (workdir / "test_ema_examples.png").exists()
    summary = (workdir / "summary.html").read_text()
    assert summary.count("data:image/png;base64,") == 2
    assert "test_ema_classes.txt" in summary
    assert "overlap" in summary
    description = find_description(workdir)
    assert description.task == "semantic_segmentation"
    assert description.scale == [48, 32]
    assert len(description.colors) == 3
    assert description.reduce_zero_label is True
    assert description.create() == task.model

    again = evaluate(config, task, workdir)
    assert again == {name: v for name, v in metrics.items() if name.startswith("test")}
    assert train(config, task, workdir) == again
    assert "the run is finished" in capsys.readouterr().out


def test_the_loss_falls_and_resuming_changes_nothing(config, tmp_path, train_until):
    config.num_steps = 20
    config.loss_over = "labelled"  # else it follows the share of labelled pixels
    config.data.photometric = False
    config.evaluate_every_steps = 100
    config.checkpoint.every_steps = 10
    run = check_config(config)
    whole = train(*run, epath.Path(tmp_path / "whole"))
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["train/loss"] for line in lines]
    # It begins at that of chance, 1.4 log(3).
    assert losses[0] == pytest.approx(1.4 * np.log(3), rel=0.02)
    assert np.mean(losses[-5:]) < 0.9 * losses[0]
    broken = epath.Path(tmp_path / "broken")
    train_until(run, broken, step=14)
    resumed = train(*run, broken)
    for name in ("train/loss", "test/miou", "test/aacc"):
        assert resumed[name] == whole[name], name


# --- What a run starts from ----------------------------------------------------


@pytest.fixture
def classifier(tmp_path):
    """A converted directory of a classifier, whose windows have 3 positions."""
    model = tiny_model(depths=(1, 1), focal_levels=(1, 1), num_classes=5)
    params = random_params(model, "float32")
    description = ModelDescription(
        name="focalnet_tiny_srf",
        overrides=dict(TINY, depths=(1, 1), focal_levels=(1, 1), num_classes=5),
        preprocessing=Preprocessing(),
    )
    write_directory(tmp_path / "start", description, {"params": params})
    return str(tmp_path / "start"), params


def started(config, tmp_path):
    """The state that a run begins with."""
    config, task = check_config(config)
    program = make_program(config, task, mesh_of(config), num_examples=8)
    workdir = epath.Path(tmp_path / "run")
    start_of = functools.partial(start.start, config, task, workdir, program)
    with Checkpoints(workdir, keep=1) as checkpoints:
        return start_of(
            checkpoints, init_from=start.find_start(config, workdir), source=None
        )


def test_a_segmenter_starts_from_a_classifier(config, classifier, tmp_path):
    path, params = classifier
    config.model.focal_windows = (7, 3)
    config.init_from = path
    with pytest.raises(SetupError) as error:
        started(config, tmp_path)
    for text in (
        "head/kernel (16, 5) is not in the model",
        "decode_head/conv_seg/kernel (1, 1, 8, 3) is not stored",
        "is stored as (3, 3, 1, 8), the model has (7, 7, 1, 8)",
        "resize_kernels=True zero-pads or crops them",
        "reset_head=True starts it anew",
    ):
        assert text in str(error.value)
    config.reset_head = config.resize_kernels = True
    state, origin = started(config, tmp_path)
    assert "with a new head, with new running averages" in origin
    assert "model.focal_windows: (3, 3) there, (7, 3) here" in origin
    given, stored = named_leaves(state.params), named_leaves(params)
    kernel = "layers_0/blocks_0/modulation/focal_layers_0/kernel"
    np.testing.assert_array_equal(given[kernel][2:5, 2:5], stored[kernel])
    assert np.count_nonzero(given[kernel]) == stored[kernel].size
    for name in given.keys() & stored.keys() - {kernel}:
        np.testing.assert_array_equal(given[name], stored[name], err_msg=name)
    assert len(given.keys() & stored.keys()) > 20


def test_a_segmenter_starts_from_one_of_other_classes(config, tmp_path):
    config.model.head_dropout = 0.0
    _, task = check_config(config)
    variables = variables_of(task)
    description = ModelDescription(
        name="focalnet_tiny_srf",
        overrides=task.model_overrides,
        preprocessing=task.preprocessing,
    )
    write_directory(tmp_path / "start", description, variables)
    config.model.num_classes = 4
    config.init_from = str(tmp_path / "start")
    with pytest.raises(SetupError, match="conv_seg/bias is stored as .*, the model has"):
        started(config, tmp_path)
    config.reset_head = True
    state, _ = started(config, tmp_path)
    given = named_leaves({"params": state.params, "batch_stats": state.batch_stats})
    stored = named_leaves(variables)
    assert given.keys() == stored.keys()
    for name, value in given.items():
        is_new = "/conv_seg/" in name
        assert (value.shape == stored[name].shape) != is_new, name
        assert is_new or np.array_equal(value, stored[name]), name


# --- Training ------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["seen", "masked"])
def test_crops_beyond_their_images(config, padding):
    """With "masked", the loss doesn't depend on how large the canvas is."""
    config.padding = padding
    _, task = check_config(config)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(256, size=(4, 32, 32, 3), dtype=np.uint8),
        "label": rng.integers(3, size=(4, 32, 32), dtype=np.uint8),
        "valid": np.full((4, 2), (24, 28), np.int32),
    }
    batch["label"][:, 24:], batch["label"][:, :, 28:] = 255, 255
    rows = task.prepare(jax.tree.map(jnp.asarray, batch), {})
    assert not rows["image"][:, 24:].any()
    assert not rows["image"][:, :, 28:].any()
    assert rows["image"][:, :24, :28].all()
    assert ("valid" in rows) == (padding == "masked")
    variables = variables_of(task)
    keys = {name: jax.random.key(1) for name in task.random_streams}
    loss = jax.jit(task.loss)
    changed = {**rows, "image": rows["image"].at[:, 24:].set(7.0)}
    given, other = (loss(variables, part, keys).total for part in (rows, changed))
    assert (given == other) == (padding == "masked")


def test_the_loss_is_the_one_that_is_asked_for(config):
    config.auxiliary_weight, config.loss_over = 0.7, "labelled"
    config.model.head_dropout = config.model.drop_path_rate = 0.0
    _, task = check_config(config)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(4, 32, 32, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(3, size=(4, 32, 32)), jnp.uint8).at[:2].set(255)
    variables = variables_of(task)
    keys = {name: jax.random.key(1) for name in task.random_streams}
    given = task.loss(variables, {"image": images, "label": labels}, keys)
    (logits, _), new = task.model.apply(
        variables, images, train=True, mutable=["batch_stats"]
    )
    expected = segmentation_loss(
        logits, labels, auxiliary_weight=0.7, loss_over="labelled"
    )
    # In float32, compiled with other operations beside it.
    assert float(given.total) == pytest.approx(float(expected.total), rel=1e-5)
    assert given.weight == 2 * 32 * 32
    assert jax.tree.structure(given.batch_stats) == jax.tree.structure(new["batch_stats"])


# --- Evaluation ----------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(
            eval_mode="slide",
            eval_window=(20, 24),
            eval_ratios=(1.0, 0.75),
            eval_flip=True,
        ),
    ],
    ids=["whole", "all at once"],
)
def test_predictions_do_not_depend_on_canvases(config, options):
    """Of a group on one canvas they are what they are of each image alone."""
    config.update(options)
    _, task = check_config(config)
    split = task.open(train=False).test
    alone = dataclasses.replace(
        task, eval_transform=dataclasses.replace(task.eval_transform, most_canvases=9)
    )
    # Images of the folder differ in height, and resized to this scale in width, too.
    exact = alone.open(train=False).test
    variables = variables_of(task)
    predict = jax.jit(task.predict)
    given = {}
    for group, rows in zip(split.groups, rows_of(split)):
        for index, classes in zip(group.indices, predict(variables, rows)):
            given[index] = classes
    assert len(given) == 5
    seen = set()
    for index in (0, 4):  # a program for each
        record = exact.source.read(index)
        example = _tight(split.groups[0].example, record)
        row = {name: array[None] for name, array in example(record).items()}
        [expected] = predict(variables, row)
        height, width = row["size"][0]
        assert expected.shape == (height, width)
        np.testing.assert_array_equal(given[index][:height, :width], expected)
        seen |= {*np.unique(expected).tolist()}
    assert len(seen) > 1


def _tight(example, record):
    """The same example on canvases that are as large as the image."""
    row = example(record)
    numbers = range(1, len(example.more) + 1)
    return dataclasses.replace(
        example,
        canvas=tuple(row["valid"].tolist()),
        label_canvas=tuple(row["size"].tolist()),
        more=tuple(
            (scale, tuple(row[f"valid_{number}"].tolist()))
            for number, (scale, _) in zip(numbers, example.more)
        ),
    )


def test_fields_of_evaluation(config):
    config.eval_mode = "slide"
    config.eval_ratios = (0.5, 1.25)
    views = check_config(config)[1].eval_transform
    assert views.scales == ((24, 16), (60, 40))
    assert views.windows == Windows((32, 32), (21, 21))
    config.eval_window, config.eval_stride = (24, 30), 7
    windows = check_config(config)[1].eval_transform.windows
    assert windows == Windows((24, 30), (7, 7))
    config.eval_mode = "whole"
    assert check_config(config)[1].eval_transform.windows is None


def test_the_evaluator_shows_records_of_the_whole_split(config):
    _, task = check_config(config)
    source = task.open(train=False).test.source
    evaluator = task.evaluator(None, list, source)
    assert isinstance(evaluator, Overlap)
    legend = task.legend(source)
    assert legend.names == ["class 0", "class 1", "class 2"]
    assert legend.colors.shape == (3, 3)


# --- Mistakes ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 1}, "takes 1 image at a time, of which BatchNorm has no stat"),
        ({"accumulate_steps": 8}, "accumulate_steps=8 takes 1 image at a time"),
        (
            {"eval_mode": "slide", "eval_window": 16, "eval_stride": 17},
            "eval_stride=17 is larger than the windows of 16 x 16 pixels",
        ),
        (
            {
                "model.depths": (1,),
                "model.focal_levels": (1,),
                "model.focal_windows": (3,),
            },
            r"model.depths=\(1,\) makes a single map",
        ),
        ({"loss_over": "al"}, "did you mean 'all'"),
        ({"data.test_split": "testing"}, "testing"),
        ({"data.classes": "ade20k"}, "model.num_classes=3 is too few for .*150 classes"),
    ],
)
def test_mistakes_are_said_in_one_line(config, tmp_path, changes, message):
    config.update_from_flattened_dict(changes)
    with pytest.raises(SetupError, match=message):
        train(*check_config(config), epath.Path(tmp_path / "run"))
    assert not (tmp_path / "run").exists() or not [*(tmp_path / "run").iterdir()]
