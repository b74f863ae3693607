"""Evaluates predictions that are written down, in one or several processes.

Prints the metrics and the name and size of what is left, as JSON, on the first process.
"""

import argparse
import json
import os

import jax
import numpy as np

from focalnet_jax.evaluators import Overlap
from focalnet_jax.tasks.base import BatchArray
from focalnet_jax.train import sharding

ROWS, COUNT = 4, 10


def batches(mesh):
    """Ten images in batches of four; each process has the rows of its devices."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (COUNT, 9, 11))
    predicted = np.where(rng.random(labels.shape) < 0.7, labels, 1)
    labels = np.where(rng.random(labels.shape) < 0.1, 255, labels)
    rows = sharding.process_rows(mesh, ROWS)
    for first in range(0, COUNT, ROWS):
        index = np.array([first + row for row in rows])
        known = np.minimum(index, COUNT - 1)
        batch = {
            "label": labels[known].astype(np.uint8),
            "given": predicted[known].astype(np.int32),
            "mask": index < COUNT,
            "id": index.astype(np.int32),
        }
        arrays = {"label": BatchArray((9, 11), np.uint8, ("height", "width"))}
        yield sharding.to_device(batch, arrays, mesh, batch_size=ROWS)


def join():
    """Meets the other processes, if there are any, as `main.py` is told of them."""
    parser = argparse.ArgumentParser()
    for name in ("coordinator_address", "num_processes", "process_id"):
        parser.add_argument(f"--{name}", default=os.environ.get(f"JAX_{name.upper()}"))
    args = parser.parse_args()
    if args.coordinator_address:
        jax.distributed.initialize(
            args.coordinator_address, int(args.num_processes), int(args.process_id)
        )


def main():
    join()
    mesh = sharding.make_mesh(data=-1, fsdp=1, spatial=1)
    evaluator = Overlap(
        lambda _, batch: batch["given"],
        lambda: batches(mesh),
        class_names=("a", "b", "c"),
        ignored=255,
        shown=(1, 5, 9),
        draw=lambda rows: str([int(row["label"].sum()) for row in rows]).encode(),
    )
    metrics = dict(evaluator.run(None))
    files = evaluator.details().files
    if jax.process_index() == 0:
        shown = {name: content.decode() for name, content in files.items()}
        print(json.dumps({"metrics": metrics, "files": shown}))


if __name__ == "__main__":
    main()
