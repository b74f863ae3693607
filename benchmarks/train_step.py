"""Times the training step of a recipe on the devices that are here, on random images.

    python benchmarks/train_step.py --recipes base:tiny_srf base:base_lrf \\
        --implementations lax shifted --dtypes bfloat16 float32 --batch-size 128

The program is the one that `main.py` runs, with augmentation and optimiser, from a batch
that lies on the devices. All contenders of a recipe are compiled first, and then take
turns in every round; printed are medians over the rounds. With `--json=FILE` each
contender becomes a line of the file, with the device and the versions. The losses of the
first steps are given, too: contenders begin at the same parameters and see the same
images, so they differ by rounding alone.
"""

import argparse
import importlib.metadata
import json
import pathlib
import statistics
import time

import jax
import numpy as np

from focalnet_jax.chips import chip_of, count_chips, model_flops_utilization, peak_memory
from focalnet_jax.train import check_config, load_recipe, sharding
from focalnet_jax.train.program import make_program, mesh_of

STEPS = 10  # in a turn


class Contender:
    """A training step, compiled, with its state."""

    def __init__(self, recipe, implementation, dtype, batch_size):
        config = load_recipe(recipe)
        config.batch_size = batch_size
        config.model.implementation = implementation
        config.model.dtype = dtype
        config, self.task = check_config(config)
        mesh = mesh_of(config)
        program = make_program(config, self.task, mesh, num_examples=1_281_167)
        rng = np.random.default_rng(0)
        limits = {"image": 256, "label": self.task.model.num_classes}
        batch = {
            name: rng.integers(limits[name], size=(batch_size, *array.shape)).astype(
                array.dtype
            )
            for name, array in self.task.batch.items()
        }
        self.batch = sharding.to_device(
            batch, self.task.batch, mesh, batch_size=batch_size
        )
        self.name = dict(recipe=recipe, implementation=implementation, dtype=dtype)
        self.batch_size = batch_size
        start = time.perf_counter()
        self.state = program.init()
        step = program.train_step.lower(self.state, self.batch)
        self.step = step.compile()
        self.compile_seconds = time.perf_counter() - start
        self.losses = [self.turn(1)[1] for _ in range(3)]
        self.seconds = []

    def turn(self, steps):
        """Seconds a step, and the loss of the last one."""
        start = time.perf_counter()
        for _ in range(steps):
            self.state, metrics = self.step(self.state, self.batch)
        loss = metrics["loss"].item()  # This waits for the steps.
        return (time.perf_counter() - start) / steps, loss

    def result(self):
        device = jax.devices()[0]
        seconds = statistics.median(self.seconds)
        result = self.name | dict(
            batch_size=self.batch_size,
            step_seconds=seconds,
            images_per_second=self.batch_size / seconds,
            compile_seconds=self.compile_seconds,
            first_losses=self.losses,
            device=device.device_kind,
            devices=jax.device_count(),
            **{name: importlib.metadata.version(name) for name in ("jax", "flax")},
            **peak_memory(),
        )
        if chip := chip_of(device):
            result["model_flops_utilization"] = model_flops_utilization(
                self.task.multiply_adds,
                result["images_per_second"],
                chips=count_chips(jax.devices()),
                peak=chip.peak,
            )
        return result


def measure(recipe, args):
    """Results of one recipe; that a contender can't be compiled is a result, too."""
    contenders, results = [], []
    for dtype in args.dtypes:
        for implementation in args.implementations:
            try:
                contender = Contender(recipe, implementation, dtype, args.batch_size)
                contenders.append(contender)
            except jax.errors.JaxRuntimeError as error:
                name = dict(recipe=recipe, implementation=implementation, dtype=dtype)
                reason = str(error).splitlines()[0][:300]
                results.append(name | dict(batch_size=args.batch_size, error=reason))
    for round_number in range(args.rounds):
        order = contenders[:: 1 if round_number % 2 else -1]
        for contender in order:
            contender.seconds.append(contender.turn(STEPS)[0])
    return results + [contender.result() for contender in contenders]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--recipes", nargs="+", default=["base:tiny_srf"])
    add("--implementations", nargs="+", default=["lax", "shifted"])
    add("--dtypes", nargs="+", default=["bfloat16"])
    add("--batch-size", type=int, default=128)
    add("--rounds", type=int, default=5)
    add("--json", type=pathlib.Path, metavar="FILE")
    args = parser.parse_args()
    for recipe in args.recipes:
        for result in measure(recipe, args):
            print(json.dumps(result), flush=True)
            if args.json:
                with args.json.open("a") as file:
                    file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
