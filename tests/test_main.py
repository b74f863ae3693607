"""The program as people run it: commands, messages, processes."""

import itertools
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest

from focalnet_jax.data import TrainTransform, open_source, train_batches

ROOT = pathlib.Path(__file__).parents[1]

TIMEOUT = 300  # seconds; a process that hangs is an error too

TINY = [
    "--config.batch_size=16",
    "--config.num_steps=4",
    "--config.model.depths=(1,1)",
    "--config.model.embed_dim=8",
    "--config.model.focal_levels=(1,1)",
    "--config.model.focal_windows=(3,3)",
    "--config.model.drop_rate=0.1",
    "--config.log_every_steps=1",
    "--config.checkpoint.every_steps=2",
]


MISSPELT = """
from focalnet_jax.train import default_config

def get_config():
    config = default_config()
    config.learning_rte = 1e-3
    return config
"""


@pytest.fixture(scope="module")
def environment(data_dir):
    """As on a machine with one CPU device and the digits prepared."""
    quick = "--xla_backend_optimization_level=0"  # to compile
    return os.environ | {
        "TFDS_DATA_DIR": data_dir,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": quick,
    }


def start(*arguments, directory, environment, program=ROOT / "main.py"):
    return subprocess.Popen(
        [sys.executable, str(program), *arguments],
        cwd=directory,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def start_together(count, *arguments, directory, environment, **options):
    """Processes of one run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        start(
            *arguments,
            directory=directory,
            environment=environment
            | {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(index),
            },
            **options,
        )
        for index in range(count)
    ]


def run(*arguments, directory, environment):
    process = start(*arguments, directory=directory, environment=environment)
    output, errors = process.communicate(timeout=TIMEOUT)
    return process.returncode, output, errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.learning_rte=1"], "no field learning_rte; did you mean 'learning_ra"),
        (["--config.model.nam=x"], "no field model.nam; did you mean 'model.name'"),
        (["--noconfig.data.flp"], "no field data.flp; did you mean 'data.flip'"),
        (["--config=misspelt.py"], "no field learning_rte; did you mean 'learning_ra"),
        (["--config=configs/bse.py"], "no recipe 'configs/bse.py'; did you mean 'confi"),
        (
            ["--config.seed=1", "--config=configs/base.py"],
            "tfds build imagenet2012 --file_format=array_rec",
        ),
        (["--config", "configs/base.py:tiny"], "did you mean 'tiny_"),
        (["--config=configs/digits.py:x"], "has no variants"),
        (["--config.model.name=focalnet_tny_srf"], "did you mean 'focalnet_tiny_srf'"),
        (["--config.mesh.fsdp=2"], "don't make up the 1 devices"),
        (["--compile_for=v5e:2x2"], "data.num_train_examples has to be set"),
        (["--mode=eval"], "holds no checkpoint and init_from is not set"),
    ],
)
def test_errors_are_one_message_without_a_trace(
    arguments, message, environment, tmp_path
):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "misspelt.py").write_text(MISSPELT)
    code, output, errors = run(*arguments, directory=tmp_path, environment=environment)
    assert code == 1
    assert "Traceback" not in errors
    error = errors[errors.index("error: ") :]
    assert message in error
    assert not output


def test_default_run_resumes_and_is_evaluated(environment, tmp_path):
    """`python main.py`, stopped and started, then `--mode=eval`."""
    here = dict(directory=tmp_path, environment=environment)
    code, output, errors = run(*TINY, "--config.num_steps=3", **here)
    assert code == 0, errors
    assert "starting anew" in output
    code, output, errors = run(*TINY, **here)
    assert code == 0, errors
    assert "resuming after step 3" in output
    assert "finished: step 4 of 4" in output
    code, again, _ = run(*TINY, **here)
    assert code == 0
    assert "the run is finished: step 4 of 4" in again
    code, evaluated, _ = run(*TINY, "--mode=eval", **here)
    assert code == 0
    tests = [re.search("test: .*", text)[0] for text in (output, again, evaluated)]
    assert len(set(tests)) == 1
    lines = (tmp_path / "runs" / "digits" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


@pytest.mark.extended
def test_default_reaches_what_its_head_says(environment, tmp_path):
    optimized = environment | {"XLA_FLAGS": ""}
    code, _, errors = run(directory=tmp_path, environment=optimized)
    assert code == 0, errors
    last = (tmp_path / "runs" / "digits" / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["test/top1"] >= 0.97
    assert json.loads(last)["test/examples"] == 360


def test_two_processes_train_as_one(environment, tmp_path):
    """The same batches, the same losses; checkpoints of two are read by one.

    And each counts the bad record of its own, the one for both.
    """
    rng = np.random.default_rng(0)
    for split, count in {"train": 40, "val": 24}.items():
        for i in range(count):
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
        2, "--workdir=two", *tiny, directory=tmp_path, environment=environment
    )
    try:
        results = [process.communicate(timeout=TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], results
    assert "2 x cpu" in results[0][0]
    # Only the first process speaks; the other one's transport doesn't know.
    lines = results[1][0].splitlines()
    assert [line for line in lines if not line.startswith("[Gloo]")] == []

    losses = []
    for workdir in ("one", "two"):
        lines = (tmp_path / workdir / "metrics.jsonl").read_text().splitlines()
        metrics = [json.loads(line) for line in lines]
        losses.append([line["train/loss"] for line in metrics])
        assert metrics[-1]["test/examples"] == 22
        assert metrics[-1]["test/bad_records"] == 2
        assert metrics[-1]["train/bad_records"] == 1
    # float32, and sums in another order.
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)

    code, output, errors = run(
        "--workdir=two", *tiny, "--mode=eval", directory=tmp_path, environment=environment
    )
    assert code == 0, errors
    assert "over 22 images, 2 unusable" in output


# Runs main.py, and notes the examples of each step that is done.
NOTING = """
import json, os, runpy, sys, time
import numpy as np
from focalnet_jax.train.feed import DeviceFeed

take = DeviceFeed.next
file = open(f"{os.environ['IDS']}-{os.environ['JAX_PROCESS_ID']}", "a")

def noting(self, **options):
    time.sleep(0.2)  # a step that someone can break into
    batch = take(self, **options)
    shards = sorted(batch["id"].addressable_shards, key=lambda shard: shard.index)
    ids = np.concatenate([shard.data for shard in shards])
    print(json.dumps(ids.tolist()), file=file, flush=True)
    return batch

if __name__ == "__main__":
    DeviceFeed.next = noting
    runpy.run_path(os.environ["MAIN"], run_name="__main__")
"""


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
        noted = environment | {"IDS": name, "MAIN": str(ROOT / "main.py")}
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
        deadline = time.monotonic() + TIMEOUT
        while len(read("first")) < 5:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
    for process in processes:
        process.communicate()
    killed = read("first")
    assert len(killed) < 12
    processes = launch("second")
    try:
        results = [process.communicate(timeout=TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
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
    batches = train_batches(source, TrainTransform(8), batch_size=16, seed=0)
    for ids, batch in zip(steps, batches):
        np.testing.assert_array_equal(ids, batch["id"])


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
    try:
        results = [process.communicate(timeout=TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    # By its own error or, where that was the first to go, by the other's absence.
    assert all(process.returncode for process in processes)
    errors = "".join(errors for _, errors in results)
    assert "split 'train' (a/7.png) is unusable: its image has zero bytes" in errors
