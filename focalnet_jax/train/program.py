"""What a run computes, and where: the same for training, resuming and compiling ahead."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from focalnet_jax.tasks.base import Batch, Task
from focalnet_jax.train import sharding
from focalnet_jax.train.optimizer import make_optimizer, make_schedule
from focalnet_jax.train.state import TrainState, initial_state
from focalnet_jax.train.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Program:
    """The functions of a run, compiled for a mesh when they are first called.

    Attributes:
      schedule: the learning rate by step.
      init: makes the state before the first step, split from birth.
      abstract_state: its shapes and dtypes, with the place of each array.
      abstract_batch: those of a batch.
      layout: where the model computes.
      train_step: maps a state and a batch to the next state and the metrics of the step;
        takes the state's memory for the next one.
    """

    schedule: optax.Schedule
    init: Callable[[], TrainState]
    abstract_state: TrainState
    abstract_batch: Batch
    layout: sharding.Layout
    train_step: jax.stages.Wrapped


def make_program(
    config: ConfigDict, task: Task, mesh: Mesh, *, num_examples: int
) -> Program:
    """The program that a config describes.

    Args:
      config, task: from `check_config`.
      mesh: of devices that are here, or of those of a slice to compile for.
      num_examples: of an epoch.
    """
    schedule = make_schedule(config, num_examples)
    optimizer = make_optimizer(config, schedule, depth_of=task.depth_of)
    init = functools.partial(
        initial_state, task, optimizer, seed=config.seed, ema=bool(config.ema_decay)
    )
    abstract_state = sharding.abstract_with_shardings(jax.eval_shape(init), mesh)
    shardings = sharding.shardings_of(abstract_state)
    layout = sharding.Layout(mesh, shardings.params)
    train_step = make_train_step(
        task,
        optimizer,
        accumulate_steps=config.accumulate_steps,
        ema_decay=config.ema_decay,
        seed=config.seed,
        layout=layout,
    )
    return Program(
        schedule=schedule,
        init=jax.jit(init, out_shardings=shardings),
        abstract_state=abstract_state,
        abstract_batch=sharding.abstract_batch(
            task.batch, batch_size=config.batch_size, mesh=mesh
        ),
        layout=layout,
        train_step=jax.jit(
            train_step,
            in_shardings=(shardings, None),
            out_shardings=(shardings, sharding.replicated(mesh)),
            donate_argnums=0,
        ),
    )


def mesh_of(config: ConfigDict, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that the config describes, of all devices or of those given.

    Raises:
      SetupError: as `make_mesh`; a batch that doesn't divide over it.
    """
    mesh = sharding.make_mesh(
        data=config.mesh.data,
        fsdp=config.mesh.fsdp,
        spatial=config.mesh.spatial,
        devices=devices,
    )
    sharding.check_batch_size(config.batch_size, mesh, parts=config.accumulate_steps)
    return mesh
