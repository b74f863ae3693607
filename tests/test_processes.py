"""Runs of several processes, and what ends them."""

import functools
import itertools
import json
import os
import random
import re
import signal
import time

import numpy as np
import PIL.Image
import pytest
from etils import epath
from running import (
    ROOT,
    TIMEOUT,
    TINY,
    finish,
    read_metrics,
    run,
    start,
    start_together,
    wait_for,
    without_speeds,
)

from focalnet_jax.data import TrainTransform, open_source, train_batches
from focalnet_jax.tasks.examples import TrainExample
from focalnet_jax.train.run.lock import WorkdirLock


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.extended)])
def test_processes_train_as_one(count, environment, tmp_path):
    """The same batches, the same losses; checkpoints of all are read by one.

    And each counts the bad record of its own, the first for all.
    """
    rng = np.random.default_rng(0)
    for split, images in {"train": 40, "val": 24}.items():
        for i in range(images):
            path = tmp_path / "data" / split / str(i % 2) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(256, size=(16, 16, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(path)
    for path in ("train/0/8.png", "val/0/8.png", "val/1/9.png"):
        (tmp_path / "data" / path).write_bytes(b"no image")
    tiny = [*TINY, "--config.data.name=folder:data", "--config.data.test_split=val"]
    tiny += ["--config.data.max_bad_records=2"]
    one = ["--workdir=one", *tiny]
    code, _, errors = run(*one, directory=tmp_path, environment=environment)
    assert code == 0, errors

    processes = start_together(
        count, "--workdir=several", *tiny, directory=tmp_path, environment=environment
    )
    results = finish(processes)
    assert [process.returncode for process in processes] == [0] * count, results
    assert f"{count} x cpu" in results[0][0]
    # Only the first process speaks and writes; the others' transport doesn't know.
    for output, _ in results[1:]:
        assert all(line.startswith("[Gloo]") for line in output.splitlines())
    assert len(list((tmp_path / "several").glob("events.out.tfevents*"))) == 1

    losses = []
    for workdir in ("one", "several"):
        metrics = read_metrics(tmp_path / workdir)
        losses.append([line["train/loss"] for line in metrics])
        assert metrics[-1]["test/examples"] == 22
        assert metrics[-1]["test/bad_records"] == 2
        assert metrics[-1]["train/bad_records"] == 1
    # float32, and sums in another order.
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)

    evaluate = ["--workdir=several", *tiny, "--mode=eval"]
    code, output, errors = run(*evaluate, directory=tmp_path, environment=environment)
    assert code == 0, errors
    assert "over 22 images, 2 unusable" in output


# Runs main.py with steps that someone can break into, and notes the examples of each.
NOTING = """
import json, os, runpy, time
import jax
import numpy as np
from jax.experimental import mesh_utils
from focalnet_jax.train.feed import DeviceFeed

if os.environ.get("SCATTER"):  # every other device, as in a torus
    mesh_utils.create_device_mesh = lambda shape, devices, **_: np.reshape(
        [*devices[::2], *devices[1::2]], shape
    )

take = DeviceFeed.next

def noting(self, **options):
    time.sleep(float(os.environ["PAUSE"]))
    batch = take(self, **options)
    shards = sorted(batch["id"].addressable_shards, key=lambda shard: shard.index)
    ids = np.concatenate([shard.data for shard in shards])
    with open(f"{os.environ['IDS']}-{jax.process_index()}", "a") as file:
        print(json.dumps(ids.tolist()), file=file)
    return batch

if __name__ == "__main__":
    DeviceFeed.next = noting
    runpy.run_path(os.environ["MAIN"], run_name="__main__")
"""


def test_overlaps_are_sums_over_processes(environment, tmp_path):
    """Each process has half of the rows, and all have the same totals and pictures."""
    here = dict(directory=tmp_path, environment=environment)
    program = ROOT / "tests" / "overlap_program.py"
    alone = start(program=program, **here)
    together = start_together(2, program=program, **here)
    (expected, _), (given, _), _ = results = finish([alone, *together])
    codes = [process.returncode for process in (alone, *together)]
    assert codes == [0, 0, 0], results
    given = [line for line in given.splitlines() if not line.startswith("[Gloo]")]
    assert json.loads(given[-1]) == json.loads(expected)
    content = json.loads(expected)
    assert content["metrics"]["test/examples"] == 10
    assert len(json.loads(content["files"]["test_examples.png"])) == 3


@pytest.mark.parametrize(
    "count", [2, *(pytest.param(n, marks=pytest.mark.extended) for n in (1, 4))]
)
def test_a_kill_repeats_and_skips_no_example(count, environment, data_dir, tmp_path):
    """kill -9 in mid-epoch, of all processes; two epochs by the ids of the examples."""
    program = tmp_path / "noting.py"
    program.write_text(NOTING)
    arguments = [*TINY, "--config.data.train_split=train[:96]", "--config.num_steps=12"]
    arguments += ["--config.data.workers=1", "--config.data.rand_augment=rand-m9"]

    def launch(name):
        noted = environment | dict(IDS=name, MAIN=str(ROOT / "main.py"), PAUSE="0.2")
        here = dict(directory=tmp_path, environment=noted, program=program)
        return start_together(count, *arguments, **here)

    def read(name):
        """Of each step, the ids of all processes one after the other."""
        files = [tmp_path / f"{name}-{i}" for i in range(count)]
        texts = [file.read_text() if file.exists() else "" for file in files]
        # A line that has no end yet is a step that is not done.
        lines = [map(json.loads, text.split("\n")[:-1]) for text in texts]
        return [[*itertools.chain(*parts)] for parts in zip(*lines)]

    processes = launch("first")
    try:
        wait_for(lambda: len(read("first")) >= 5, processes)
    finally:
        for process in processes:
            process.kill()
    finish(processes)
    killed = read("first")
    assert len(killed) < 12
    processes = launch("second")
    results = finish(processes)
    assert [process.returncode for process in processes] == [0] * count, results
    restored = int(re.search(r"resuming after step (\d+)", results[0][0])[1])
    assert 0 < restored <= len(killed)

    steps = killed[:restored] + read("second")
    assert [len(ids) for ids in steps] == [16] * 12
    epochs = np.reshape(steps, (2, 96))
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(96))
    assert killed == steps[: len(killed)]
    # And the same whatever the number of processes.
    source = open_source("digits", split="train[:96]", data_dir=data_dir)
    example = TrainExample(TrainTransform(8), source.labels())
    batches = train_batches(source, example, batch_size=16, seed=0)
    for ids, batch in zip(steps, batches):
        np.testing.assert_array_equal(ids, batch["id"])


def test_processes_are_all_told_that_the_workdir_is_held(environment, tmp_path):
    with WorkdirLock(epath.Path(tmp_path / "runs" / "digits")):
        processes = start_together(2, *TINY, directory=tmp_path, environment=environment)
        results = finish(processes)
    assert [process.returncode for process in processes] == [1, 1]
    for index, (_, errors) in enumerate(results):
        [line] = errors.splitlines()
        prefix = "process 0 of the run has failed: " if index else ""
        assert line.startswith(f"error: {prefix}process {os.getpid()} on host "), line


def test_processes_need_the_same_workdir(environment, tmp_path):
    """Before anything is computed, though each has one of that name."""
    directories = [tmp_path / "a", tmp_path / "b"]
    for directory in directories:
        directory.mkdir()
    processes = start_together(2, *TINY, directory=directories, environment=environment)
    errors = [errors for _, errors in finish(processes)]
    assert all(process.returncode for process in processes)
    message = f"1 of 2 don't see {directories[0]}/runs/digits of process 0"
    assert any(message in error for error in errors), errors
    assert not [*tmp_path.glob("*/runs/digits/*")]


def test_an_error_of_one_process_ends_all(environment, tmp_path):
    """A bad record that one of two processes meets; no one waits for the other."""
    for split, count in {"train": 32, "val": 2}.items():
        directory = tmp_path / "data" / split / "a"
        directory.mkdir(parents=True)
        for i in range(count):
            PIL.Image.new("RGB", (16, 16)).save(directory / f"{i}.png")
    (tmp_path / "data" / "train" / "a" / "7.png").write_bytes(b"")
    arguments = [*TINY, "--config.data.name=folder:data", "--config.data.test_split=val"]
    processes = start_together(2, *arguments, directory=tmp_path, environment=environment)
    results = finish(processes)
    # By its own error or, where that was the first to go, by the other's absence.
    assert all(process.returncode for process in processes)
    errors = "".join(errors for _, errors in results)
    assert "split 'train' (a/7.png) is unusable: its image has zero bytes" in errors


LONG = [*TINY, "--config.num_steps=100000", "--config.evaluate_every_steps=100000"]


@pytest.mark.parametrize(
    ("index", "name", "signs"),
    [
        (1, signal.SIGKILL, ["has lost touch with the others"]),
        # One that hangs, and the one that the others meet at: by missing heartbeats.
        pytest.param(
            1, signal.SIGSTOP, ["another task died"], marks=pytest.mark.extended
        ),
        pytest.param(
            0,
            signal.SIGKILL,
            ["has lost touch with the others", "another task died"],
            marks=pytest.mark.extended,
        ),
    ],
)
def test_a_process_that_is_gone_ends_the_others(
    index, name, signs, environment, tmp_path
):
    here = dict(directory=tmp_path, environment=environment)
    arguments = [*LONG, "--config.checkpoint.every_steps=100000"]
    processes = start_together(2, *arguments, **here)
    metrics = tmp_path / "runs" / "digits" / "metrics.jsonl"
    try:
        wait_for(metrics.exists, processes)
        processes[index].send_signal(name)
        other = processes[1 - index]
        _, errors = other.communicate(timeout=TIMEOUT)
    finally:
        finish(processes) if name == signal.SIGKILL else processes[index].kill()
    assert other.returncode != 0
    assert any(sign in errors for sign in signs), errors


@pytest.mark.parametrize(
    ("count", "name"),
    [
        (1, signal.SIGHUP),
        (2, signal.SIGTERM),
        pytest.param(1, signal.SIGTERM, marks=pytest.mark.extended),
        pytest.param(2, signal.SIGHUP, marks=pytest.mark.extended),
    ],
)
def test_a_notice_to_end_has_all_save_and_end(count, name, environment, tmp_path):
    """To one of them; the same command goes on after it, and no other one during it."""
    here = dict(directory=tmp_path, environment=environment)
    arguments = [*LONG, "--config.checkpoint.every_steps=100000"]
    several = functools.partial(start_together, count)
    processes = several(*arguments, **here) if count > 1 else [start(*arguments, **here)]
    workdir = tmp_path / "runs" / "digits"
    try:
        wait_for((workdir / "metrics.jsonl").exists, processes)
        if count == 1:
            code, output, errors = run(*arguments, **here)
            assert (code, output) == (1, "")
            assert f"process {processes[0].pid} on host " in errors
            assert "Traceback" not in errors
        processes[-1].send_signal(name)
    finally:
        results = finish(processes)
    assert [process.returncode for process in processes] == [0] * count, results
    saved = int(re.search(r"told to end: saved step ([\d,]+)", results[0][0])[1])
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == [str(saved)]
    assert read_metrics(workdir)[-1]["step"] == saved
    code, output, errors = run(*arguments, f"--config.num_steps={saved + 1}", **here)
    assert code == 0, errors
    assert f"resuming after step {saved}" in output


@pytest.mark.parametrize(
    ("kills", "steps"),
    [(2, 100), pytest.param(20, 1000, marks=pytest.mark.extended)],
)
def test_kills_at_random_moments_leave_no_trace(kills, steps, environment, tmp_path):
    """kill -9, every other time while a checkpoint is written; all randomness on."""
    program = tmp_path / "noting.py"
    program.write_text(NOTING)
    arguments = [
        *TINY,
        f"--config.num_steps={steps}",
        "--config.checkpoint.every_steps=10",
        "--config.model.drop_path_rate=0.2",
        "--config.data.rand_augment=rand-m9-mstd0.5",
        "--config.mixup_alpha=0.8",
        "--config.random_erasing=0.5",
        "--config.ema_decay=0.9",
    ]

    def launch(workdir):
        noted = environment | dict(IDS=workdir, MAIN=str(ROOT / "main.py"), PAUSE="0.02")
        here = dict(directory=tmp_path, environment=noted, program=program)
        return start(f"--workdir={workdir}", *arguments, **here)

    def steps_done():
        ids = tmp_path / "broken-0"
        return ids.read_text().count("\n") if ids.exists() else 0

    def is_saved():
        paths = (tmp_path / "broken" / "checkpoints").glob("*")
        return any(path.name.isdigit() for path in paths)

    def saving():
        return [*(tmp_path / "broken" / "checkpoints").glob("*.orbax-checkpoint-tmp*")]

    unbroken = launch("unbroken")
    [results] = finish([unbroken])
    assert unbroken.returncode == 0, results

    draw = random.Random(0)
    in_saving = 0
    for kill in range(kills):
        process = launch("broken")
        before = steps_done()
        # On a slow machine the first checkpoint takes longer than these steps.
        wait_for(lambda n=before: steps_done() > n + 12 and is_saved(), [process])
        if kill % 2:
            wait_for(saving, [process])
        else:
            time.sleep(draw.uniform(0, 0.6))
        process.kill()
        finish([process])
        in_saving += bool(saving())
    last = launch("broken")
    [results] = finish([last])
    assert last.returncode == 0, results
    assert "resuming after step" in results[0]
    print(f"{kills} kills, {in_saving} of them in saving")
    assert in_saving >= kills // 4
    traces = [
        without_speeds(read_metrics(tmp_path / workdir))
        for workdir in ("unbroken", "broken")
    ]
    assert [line["step"] for line in traces[0]] == list(range(1, steps + 1))
    assert traces[1] == traces[0]


# Runs main.py with a disk that gets full while the checkpoint of step 4 is written, as
# far as a limit on the size of files is one.
LIMITED = """
import os, resource, runpy
from focalnet_jax.train.run.checkpoints import Checkpoints

save = Checkpoints.save

def limited(self, state, metrics):
    self.wait()
    if int(state.step) == 4:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    save(self, state, metrics)

Checkpoints.save = limited
runpy.run_path(os.environ["MAIN"], run_name="__main__")
"""


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.extended)])
def test_a_full_disk_leaves_the_older_checkpoint(count, environment, tmp_path):
    program = tmp_path / "limited.py"
    program.write_text(LIMITED)
    # No cache of compiled programs: parts of files would be written there, too.
    environment = environment | dict(MAIN=str(ROOT / "main.py"))
    environment.pop("JAX_COMPILATION_CACHE_DIR")
    here = dict(directory=tmp_path, environment=environment)
    arguments = [*TINY, "--workdir=run", "--config.num_steps=8"]
    processes = start_together(count, *arguments, program=program, **here)
    results = finish(processes)
    assert all(process.returncode for process in processes)
    # By its own error or, where that was the first to go, by the other's absence.
    last = [errors.splitlines()[-1] for _, errors in results]
    [told] = {line for line in last if "a checkpoint could not be written to" in line}
    assert re.search("File too large; the newest checkpoint is of step 2$", told)
    code, output, errors = run(*arguments, **here)
    assert code == 0, errors
    assert "resuming after step 2" in output


# Processes, devices of each, and how they are arranged.
PLACES = {
    "one": (1, 1, []),
    "fsdp": (1, 4, ["--config.mesh.fsdp=4"]),
    "processes": (2, 1, []),
    "spatial": (1, 4, ["--config.mesh.spatial=2"]),
    "processes_fsdp": (2, 2, ["--config.mesh.fsdp=2"]),
    "four": (4, 1, ["--config.mesh.fsdp=4"]),
    "processes_spatial": (2, 2, ["--config.mesh.spatial=2"]),
    "across": (2, 1, ["--config.mesh.spatial=2"]),  # both hold the same rows
    "scattered": (2, 2, []),  # neither holds neighbouring rows
}


@pytest.mark.parametrize(
    "places",
    [
        ["scattered", "across"],
        pytest.param([*PLACES, "one"], marks=pytest.mark.extended),
    ],
    ids=["some", "all"],
)
def test_a_run_goes_on_in_other_places(places, environment, tmp_path):
    """Killed in each; other devices, meshes and numbers of processes take it on."""
    program = tmp_path / "noting.py"
    program.write_text(NOTING)
    steps = 6 * len(places)
    arguments = [*TINY, f"--config.num_steps={steps}", "--config.ema_decay=0.9"]
    arguments += ["--config.mixup_alpha=0.8", "--config.evaluate_every_steps=1000"]

    def launch(workdir, place):
        processes, devices, mesh = PLACES[place]
        flags = f" --xla_force_host_platform_device_count={devices}"
        noted = environment | dict(
            IDS=f"{workdir}-{place}",
            MAIN=str(ROOT / "main.py"),
            PAUSE="0.1",
            SCATTER="1" if place == "scattered" else "",
            XLA_FLAGS=environment["XLA_FLAGS"] + flags,
        )
        here = dict(directory=tmp_path, environment=noted, program=program)
        command = [f"--workdir={workdir}", *arguments, *mesh]
        if processes == 1:
            return [start(*command, **here)]
        return start_together(processes, *command, **here)

    unbroken = launch("unbroken", "one")
    results = finish(unbroken)
    assert unbroken[0].returncode == 0, results

    def examples(workdir, place):
        """Of each step that was begun there, the ids of all its examples."""
        files = [*tmp_path.glob(f"{workdir}-{place}-*")]
        lines = [map(json.loads, file.read_text().split("\n")[:-1]) for file in files]
        return [sorted({*itertools.chain(*parts)}) for parts in zip(*lines)]

    newest = 0
    expected_examples = examples("unbroken", "one")
    for place in places[:-1]:
        restored = newest
        processes = launch("moved", place)

        def is_further(newest=newest):
            checkpoints = (tmp_path / "moved" / "checkpoints").glob("[0-9]*")
            steps = [int(path.name) for path in checkpoints if path.name.isdigit()]
            return max(steps, default=0) > newest

        try:
            wait_for(is_further, processes)
        finally:
            for process in processes:
                process.kill()
            finish(processes)
        newest = max(
            int(path.name)
            for path in (tmp_path / "moved" / "checkpoints").iterdir()
            if path.name.isdigit()
        )
        assert newest < steps
        seen = examples("moved", place)
        assert len(seen) >= newest - restored
        assert seen == expected_examples[restored : restored + len(seen)]
    last = launch("moved", places[-1])
    results = finish(last)
    assert last[0].returncode == 0, results
    assert f"resuming after step {newest}" in results[0][0]

    expected, given = (read_metrics(tmp_path / name) for name in ("unbroken", "moved"))
    assert [line["step"] for line in given] == list(range(1, steps + 1))
    for name in ("train/loss", "train/gradient_norm", "train/weight_norm"):
        # float32, and sums in another order, over some tens of steps.
        assert [line[name] for line in given] == pytest.approx(
            [line[name] for line in expected], rel=1e-3
        )
    assert given[-1]["test_ema/loss"] == pytest.approx(
        expected[-1]["test_ema/loss"], rel=1e-3
    )
