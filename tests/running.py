"""How tests run `main.py`, one or several processes to a run, and read what it leaves."""

import json
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = pathlib.Path(__file__).parents[1]

TIMEOUT = 1800  # seconds, for machines that are busy; one that hangs is an error too

TINY = [
    "--config.batch_size=16",
    "--config.num_steps=4",
    "--config.model.depths=(1,)",
    "--config.model.embed_dim=8",
    "--config.model.focal_levels=(1,)",
    "--config.model.focal_windows=(3,)",
    "--config.model.drop_rate=0.1",
    "--config.log_every_steps=1",
    "--config.checkpoint.every_steps=2",
]


def start(*arguments, directory, environment, program=ROOT / "main.py"):
    # Programs inherit which signals are ignored. Under `nohup`, or once `libtpu` is
    # loaded here, they would not hear that their terminal is closed.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    return subprocess.Popen(
        [sys.executable, str(program), *arguments],
        cwd=directory,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def start_together(count, *arguments, directory, environment, **options):
    """Processes of one run: the first named by its environment, the others by flags."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    names = [
        {
            "coordinator_address": f"localhost:{port}",
            "num_processes": str(count),
            "process_id": str(index),
        }
        for index in range(count)
    ]
    variables = {f"JAX_{name.upper()}": value for name, value in names[0].items()}
    directories = directory if isinstance(directory, list) else [directory] * count
    named = [([], variables)]
    named += [([f"--{name}={v}" for name, v in these.items()], {}) for these in names[1:]]
    return [
        start(
            *arguments,
            *flags,
            directory=here,
            environment=environment | variables,
            **options,
        )
        for here, (flags, variables) in zip(directories, named)
    ]


def run(*arguments, directory, environment):
    process = start(*arguments, directory=directory, environment=environment)
    [(output, errors)] = finish([process])
    return process.returncode, output, errors


def finish(processes):
    """Waits for them to end; returns their outputs and errors."""
    try:
        return [process.communicate(timeout=TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()


def wait_for(condition, processes):
    """Until it returns something, while the processes run."""
    deadline = time.monotonic() + TIMEOUT
    while not (result := condition()):
        assert all(process.poll() is None for process in processes), finish(processes)
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return result


def read_metrics(workdir):
    """The lines of `metrics.jsonl`, but for one that is still being written."""
    lines = (workdir / "metrics.jsonl").read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def without_speeds(metrics):
    """Lines of `metrics.jsonl` without what differs from run to run."""
    speeds = ("images_per_second", "images_per_second_per_chip", "step_seconds")
    names = {f"train/{name}" for name in (*speeds, "input_wait")}
    return [{n: v for n, v in line.items() if n not in names} for line in metrics]


def stored_arrays(workdir, step):
    """Every array of a checkpoint, parameters and optimiser's state."""
    arrays = {}
    for item in ("params", "ema", "optimizer"):
        if not (workdir / "checkpoints" / str(step) / item).exists():
            continue
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.restore(workdir / "checkpoints" / str(step) / item)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            arrays[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return arrays
