"""Compiles one program of a checkout for a TPU that isn't here: `tpu.py` runs it.

    PYTHONPATH=CHECKOUT python benchmarks/compile_program.py JSON

The JSON says what: see `main`. It uses only what old checkouts have, too. It writes the
text of the compiled program, and as JSON what the compiler says of it.
"""

import json
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, SingleDeviceSharding

from focalnet_jax.train import check_config, load_recipe
from focalnet_jax.train.overrides import apply_overrides, split_overrides
from focalnet_jax.train.program import make_program, mesh_of


def lower(kind, config, task, devices):
    """The lowered program: a training step, or the forward pass of one chip."""
    if kind == "step":
        mesh = mesh_of(config, devices=devices)
        program = make_program(
            config, task, mesh, num_examples=config.data.num_train_examples
        )
        return program.train_step.lower(program.abstract_state, program.abstract_batch)

    dtype = jnp.dtype(config.model.dtype)
    place = SingleDeviceSharding(devices[0])

    def abstract(shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    def forward(params, images):
        # The mesh says what kind of chip it is for.
        mesh = Mesh(np.array(devices[:1]), ("data",))
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return task.model.apply({"params": params}, images)[0]

    shape = (config.batch_size // len(devices), *task.batch["image"].shape)
    params = jax.tree.map(lambda leaf: abstract(leaf.shape), params_of(task))
    return jax.jit(forward).lower(params, abstract(shape))


def params_of(task):
    """Abstract parameters."""
    images = jax.ShapeDtypeStruct((1, *task.batch["image"].shape), jnp.float32)
    return jax.eval_shape(task.model.init, jax.random.key(0), images)["params"]


def main(*, kind, recipe, overrides, batch_per_chip, slice_name, chips, directory):
    """Compiles a program and writes `program.txt` and `about.json`.

    Args:
      kind: `step`, or `forward` for one chip, with weights in the dtype of computation.
      recipe, overrides: as for `main.py`; overrides such as `--config.model.scan=True`.
      batch_per_chip: images.
      slice_name: such as `v5e:2x2`.
      chips: how many of the slice are used; None for all.
      directory: where the files go.
    """
    config = load_recipe(recipe)
    apply_overrides(config, split_overrides(overrides)[0])
    options = {"chip_config_name": "megacore"} if slice_name.startswith("v4") else {}
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name=slice_name, **options
    ).devices[:chips]
    config.batch_size = batch_per_chip * len(devices)
    config, task = check_config(config)
    lowered = lower(kind, config, task, devices)
    start = time.monotonic()
    about = {"problem": None}
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        about["problem"] = str(error).partition("\n")[0]
    about["compile_seconds"] = time.monotonic() - start
    about["multiply_adds"] = task.multiply_adds
    about["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(params_of(task)))
    about["depths"] = list(task.model.encoder.depths)
    about["image"] = list(task.batch["image"].shape)
    directory = pathlib.Path(directory)
    if not about["problem"]:
        memory = compiled.memory_analysis()
        about["argument_bytes"] = memory.argument_size_in_bytes
        about["temporary_bytes"] = memory.temp_size_in_bytes
        about["bytes_accessed"] = compiled.cost_analysis()["bytes accessed"]
        (directory / "program.txt").write_text(compiled.as_text())
    (directory / "about.json").write_text(json.dumps(about))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
