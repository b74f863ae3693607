"""A second task, from outside of the package, does all that a run does.

The task is `discs.py`: images with a mask in place of a label, a loss that leaves void
pixels out, BatchNorm in its head, and a metric of its own.
"""

import dataclasses
import functools
import signal

import chex
import discs
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from flax import traverse_util
from running import ROOT, finish, read_metrics, run, start, wait_for, without_speeds

from focalnet_jax.errors import SetupError
from focalnet_jax.train import check_config, default_config, evaluate, sharding, train
from focalnet_jax.train.aot.compile_for import compile_for
from focalnet_jax.train.program import make_program
from focalnet_jax.train.run.summary import draw_curves, pictures_of
from focalnet_jax.train.state import initial_state
from focalnet_jax.train.step import make_train_step

pytestmark = pytest.mark.usefixtures("shared_programs")

RECIPE = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests" / "tasks")!r})
import discs
from focalnet_jax.train import default_config

def get_config(variant=""):
    config = default_config("discs")
    config.update(batch_size=16, num_steps=12, learning_rate_batch_size=0)
    config.checkpoint.every_steps = 4
    config.log_every_steps = 1
    return config
"""


@pytest.fixture
def config():
    config = default_config("discs")
    config.batch_size = 16
    config.num_steps = 12
    config.learning_rate = 1e-2
    config.learning_rate_batch_size = 0
    config.warmup_epochs = 0.0
    config.ema_decay = 0.8
    config.accumulate_steps = 2
    config.layer_decay = 0.9
    config.evaluate_every_steps = 4
    config.log_every_steps = 1
    config.checkpoint.every_steps = 100
    config.checkpoint.keep = 1
    config.checkpoint.best_metric = "test_ema/iou"
    return config


def test_it_is_short():
    lines = (ROOT / "tests" / "tasks" / "discs.py").read_text().splitlines()
    assert len(lines) < 120


@pytest.mark.parametrize("spatial", [pytest.param(1, marks=pytest.mark.extended), 2])
def test_it_trains_and_resumes_to_the_bit(spatial, config, tmp_path, train_until, capsys):
    """On eight devices, of which two split the height; in parts, with an average."""
    config.mesh.spatial = spatial
    config.mesh.fsdp = 2
    unbroken, broken = epath.Path(tmp_path / "unbroken"), epath.Path(tmp_path / "broken")
    metrics = train(*check_config(config), unbroken)
    assert metrics["test/iou"] > 0.5  # Nothing is a disc in the beginning.
    assert metrics["test/examples"] == 20
    said = capsys.readouterr().out
    assert "disc finder, " in said
    assert (
        f"test of the average: IoU {metrics['test_ema/iou']:.1%} over 20 scenes" in said
    )
    assert "scenes/s" in said
    lines = read_metrics(unbroken)
    assert "train/scenes_per_second" in lines[1]
    assert "test_ema/iou</td>" in (unbroken / "summary.html").read_text()
    pictures = pictures_of(check_config(config)[1].metrics, unit="scenes")
    axes = {
        figure.axes[0].get_title(loc="left"): figure.axes[0]
        for figure in draw_curves(lines, pictures)
    }["overlap"]
    labels = [line.get_label() for line in axes.lines]
    assert labels == ["test/iou", "test_ema/iou"]

    # The best checkpoint by the task's own metric is kept beside the newest.
    values = {line["step"]: line["test_ema/iou"] for line in lines if "test/iou" in line}
    kept = {int(path.name) for path in (unbroken / "checkpoints").iterdir()}
    assert kept == {max(values, key=values.get), 12}
    newest = {path.name for path in (unbroken / "checkpoints" / "12").iterdir()}
    assert newest >= {"params", "batch_stats", "optimizer", "ema", "ema_batch_stats"}

    config.checkpoint.every_steps = 4
    train_until(check_config(config), broken, 7)
    train(*check_config(config), broken)
    names = {"train/scenes_per_second", "train/scenes_per_second_per_chip"}
    traces = [
        [{k: v for k, v in line.items() if k not in names} for line in without_speeds(m)]
        for m in (lines, read_metrics(broken))
    ]
    assert traces[0] == traces[1]
    evaluated = evaluate(*check_config(config), broken)
    for name in ("test/iou", "test_ema/iou", "test_ema/examples"):
        assert evaluated[name] == metrics[name]


@pytest.mark.usefixtures("no_summaries")
def test_it_starts_from_parameters_with_their_running_averages(config, tmp_path, capsys):
    first, second = epath.Path(tmp_path / "first"), epath.Path(tmp_path / "second")
    config.num_steps = 2
    trained = train(*check_config(config), first)
    for average, expected in (("params", "test/iou"), ("ema", "test_ema/iou")):
        config.init_from = str(first / "checkpoints" / "2" / average)
        assert evaluate(*check_config(config), second)["test/iou"] == trained[expected]
    config.num_steps = 1
    config.reset_head = True
    train(*check_config(config), second)
    assert "with a new head" in capsys.readouterr().out


def test_it_runs_by_its_recipe_and_survives_a_kill(environment, tmp_path):
    """`python main.py --config=recipe.py`, killed and started again."""
    (tmp_path / "recipe.py").write_text(RECIPE)
    here = dict(directory=tmp_path, environment=environment)
    arguments = ["--config=recipe.py", "--config.num_steps=100000"]
    workdir = tmp_path / "runs" / "recipe"
    process = start(*arguments, **here)
    try:
        wait_for((workdir / "checkpoints" / "8").exists, [process])
        process.send_signal(signal.SIGKILL)
    finally:
        finish([process])
    code, output, errors = run(
        *arguments,
        "--config.num_steps=40",
        "--config.discs.name=focalnet_tiny_lrf",
        **here,
    )
    assert code == 0, errors
    assert "resuming after step" in output
    assert "with discs.name: focalnet_tiny_srf -> focalnet_tiny_lrf" in output
    assert [line["step"] for line in read_metrics(workdir)][-1] == 40
    code, _, errors = run(*arguments, "--config.discs.nam=x", **here)
    assert "no field discs.nam; did you mean 'discs.name'" in errors


def test_its_metrics_are_those_a_checkpoint_can_be_best_by(config):
    config.checkpoint.best_metric = "test/top1"
    with pytest.raises(SetupError, match="'test/top1' is unknown; there are .*test/iou"):
        check_config(config)


def test_it_compiles_for_a_slice(config):
    pytest.importorskip("libtpu", reason="it is the compiler")
    config.mesh.spatial = 2
    config.data.num_train_examples = 96
    report = compile_for(*check_config(config), "v5e:2x2")
    assert report.fits
    assert "scenes of 32 x 32 x 3" in str(report)
    assert "MFU" not in str(report)  # The task doesn't say what it costs.


# Sums with weights, and BatchNorm, in the step.


def one_step(config, batch, mesh=None):
    config, task = check_config(config)
    devices = jax.devices()[:1] if mesh is None else jax.devices()
    mesh = sharding.make_mesh(**(mesh or {}), devices=devices)
    program = make_program(config, task, mesh, num_examples=96)
    placed = sharding.to_device(batch, task.batch, mesh, batch_size=16)
    return program.train_step(program.init(), placed)


@pytest.fixture
def batch():
    """Scenes of which the first rows have nearly nothing that counts."""
    records = [discs.draw(seed) for seed in range(16)]
    batch = {name: np.stack([r[name] for r in records]) for name in records[0]}
    batch["target"][::2, :31] = discs.VOID
    return batch


def first_state(task, optimizer, **options):
    """Compiled as a whole, which is quicker than operation by operation."""
    return jax.jit(functools.partial(initial_state, task, optimizer, seed=0, **options))()


def test_parts_of_unequal_weight_make_the_loss_of_the_whole(config, batch):
    """Of a head without BatchNorm's dependence on the part, so of frozen statistics.

    The mean of the parts' means is another number, which the test would notice.
    """
    config, task = check_config(config)
    frozen = discs.Discs(FrozenStatistics(task.model))
    optimizer = optax.sgd(1.0)
    state = first_state(frozen, optimizer)
    results = []
    for parts in (1, 2):
        step = jax.jit(make_train_step(frozen, optimizer, seed=0, accumulate_steps=parts))
        results.append(step(state, batch))
    (whole, metrics), (in_parts, part_metrics) = results
    # float32, sums in another order.
    chex.assert_trees_all_close(metrics, part_metrics, rtol=1e-5)
    chex.assert_trees_all_close(whole.params, in_parts.params, rtol=1e-4, atol=1e-6)
    means = [
        step_loss(frozen, state, {name: a[i::2] for name, a in batch.items()})
        for i in range(2)
    ]
    assert abs(np.mean(means) - metrics["loss"]) > 1e-3


@functools.partial(jax.jit, static_argnums=0)
def step_loss(task, state, rows):
    keys = {"drop_path": jax.random.key(0)}
    loss = task.loss(state.variables, task.prepare(rows, keys), keys)
    return loss.total / loss.weight


class FrozenStatistics:
    """A model whose BatchNorm always takes the running averages."""

    def __init__(self, model):
        self._model = model
        self.backbone = model.backbone

    def init(self, *args, **options):
        return self._model.init(*args, **options)

    def apply(self, variables, images, **options):
        logits = self._model.apply(variables, images, train=False)
        return logits, {"batch_stats": variables["batch_stats"]}


def test_running_averages_take_in_one_part_after_the_other(config, batch):
    """Each part is normalised by its own rows, as PyTorch does it."""
    config.ema_decay = 0.5
    before = make_program(
        *check_config(config), sharding.make_mesh(), num_examples=96
    ).init()
    state, _ = one_step(config, batch)
    config, task = check_config(config)
    stats = before.batch_stats
    keys = {"drop_path": jax.random.key(0)}
    loss = jax.jit(task.loss)
    for part in range(2):
        rows = {name: array[part::2] for name, array in batch.items()}
        stats = loss(
            {"params": before.params, "batch_stats": stats}, rows, keys
        ).batch_stats
    chex.assert_trees_all_close(state.batch_stats, stats, rtol=1e-4, atol=1e-5)
    # The average begins at the first values and takes in a part of the new ones: in
    # the first step all but a tenth.
    expected = jax.tree.map(
        lambda old, new: 0.1 * old + 0.9 * new, before.batch_stats, stats
    )
    chex.assert_trees_all_close(state.ema_batch_stats, expected, rtol=1e-4, atol=1e-5)


def test_statistics_are_those_of_all_devices(config, batch):
    config.accumulate_steps = 1
    one, _ = one_step(config, batch)
    eight, _ = one_step(config, batch, dict(data=2, fsdp=2, spatial=2))
    chex.assert_trees_all_close(
        jax.device_get(one.batch_stats),
        jax.device_get(eight.batch_stats),
        rtol=1e-4,  # float32, sums in another order.
        atol=1e-5,
    )


def test_a_batch_of_which_nothing_counts_has_no_gradient(config, batch):
    batch["target"][:] = discs.VOID
    config.weight_decay = 0.0
    state, metrics = one_step(config, batch)
    assert metrics["loss"] == 0
    assert metrics["gradient_norm"] == 0
    assert state.step == 1


def test_steps_that_are_not_finite_leave_running_averages_alone(config, batch):
    config, task = check_config(config)
    optimizer = optax.sgd(1.0)
    state = first_state(task, optimizer, ema=True)
    flat = traverse_util.flatten_dict(state.params, sep="/")
    flat["head/bias"] = jnp.full_like(flat["head/bias"], jnp.nan)
    broken = dataclasses.replace(
        state, params=traverse_util.unflatten_dict(flat, sep="/")
    )
    step = jax.jit(make_train_step(task, optimizer, seed=0, ema_decay=0.5))
    after, metrics = step(broken, batch)
    assert not np.isfinite(metrics["loss"])
    chex.assert_trees_all_equal(after.batch_stats, state.batch_stats)
    chex.assert_trees_all_equal(after.ema_batch_stats, state.ema_batch_stats)


def test_what_contradicts_itself_is_told_to_the_author(config, tmp_path):
    """Arrays that differ from the declared ones, and names that are taken."""
    config, task = check_config(config)
    target = task.batch["target"]._replace(shape=(8, 8))
    wrong = discs.Discs(task.model)
    wrong.batch = task.batch | {"target": target}
    with pytest.raises(ValueError, match="says that the arrays of an example are"):
        train(config, wrong, epath.Path(tmp_path))
    wrong.open = lambda *, train: task.open(train=train)._replace(train=None)
    with pytest.raises(TypeError, match="has opened no split to train on"):
        train(config, wrong, epath.Path(tmp_path))
    assert not list(tmp_path.iterdir())

    def loss(variables, batch, keys):
        return task.loss(variables, batch, keys)._replace(parts={"loss": 42.0})

    wrong.loss = loss
    step = make_train_step(wrong, optax.sgd(1.0), seed=0)
    state = first_state(task, optax.sgd(1.0))
    batch = {name: np.stack([discs.draw(0)[name]] * 2) for name in discs.draw(0)}
    with pytest.raises(ValueError, match="parts of the loss have names of others"):
        step(state, batch)


def test_fields_of_the_run_are_not_a_tasks_to_take():
    entry = discs.TASKS["discs"]
    discs.TASKS["thief"] = entry._replace(fields=default_config_fields())
    try:
        with pytest.raises(ValueError, match="'thief' has fields of the run: .*seed"):
            default_config("thief")
    finally:
        del discs.TASKS["thief"]


def default_config_fields():
    from focalnet_jax.train.config import RUN_FIELDS

    return {"seed": RUN_FIELDS["seed"]}
