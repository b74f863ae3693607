"""What a run carries from step to step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from focalnet_jax.tasks.base import Task, Variables


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes, and nothing else.

    Attributes:
      step: int32 scalar, the number of steps done. The position in the data and all
        randomness of a step follow from it.
      params: the model's parameters.
      opt_state: the optimiser's.
      batch_stats: running averages of BatchNorm; empty for a model without it.
      ema_params: the parameters' exponential moving average; None if there is none.
      ema_batch_stats: that of the running averages; None if there is none.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    batch_stats: Any = dataclasses.field(default_factory=dict)
    ema_params: Any = None
    ema_batch_stats: Any = None

    @property
    def variables(self) -> Variables:
        """What the model is applied with."""
        return variables_of(self.params, self.batch_stats)

    @property
    def ema_variables(self) -> Variables | None:
        """The same of the average; None if there is none."""
        if self.ema_params is None:
            return None
        return variables_of(self.ema_params, self.ema_batch_stats)

    def starting_average(self) -> "TrainState":
        """The same state with an average that begins at its parameters."""
        copies = jax.tree.map(jnp.copy, (self.params, self.batch_stats))
        return dataclasses.replace(self, ema_params=copies[0], ema_batch_stats=copies[1])


def variables_of(params: Any, batch_stats: Any) -> Variables:
    """What a model is applied with, without `batch_stats` where there are none."""
    return {"params": params} | ({"batch_stats": batch_stats} if batch_stats else {})


def initial_state(
    task: Task, optimizer: optax.GradientTransformation, *, seed: int, ema: bool = False
) -> TrainState:
    """The state before the first step; a pure function, to be jitted with shardings."""
    variables = task.init(jax.random.key(seed))
    if unknown := variables.keys() - {"params", "batch_stats"}:
        raise ValueError(
            f"the model of the task {task.name!r} has variables {sorted(unknown)}: a run "
            "carries 'params' and 'batch_stats' alone"
        )
    params = variables["params"]
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        batch_stats=variables.get("batch_stats", {}),
    )
    return state.starting_average() if ema else state
