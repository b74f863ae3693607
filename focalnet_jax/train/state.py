"""What a run carries from step to step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from focalnet_jax.models import FocalNet


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes, and nothing else.

    Attributes:
      step: int32 scalar, the number of steps done. The position in the data and all
        randomness of a step follow from it.
      params: the model's parameters.
      opt_state: the optimiser's.
      ema_params: the parameters' exponential moving average, if there is one.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema_params: Any = None


def initial_state(
    model: FocalNet,
    optimizer: optax.GradientTransformation,
    *,
    image_size: int,
    seed: int,
    ema: bool = False,
) -> TrainState:
    """The state before the first step; a pure function, to be jitted with shardings."""
    images = jnp.zeros((1, image_size, image_size, model.encoder.in_channels))
    params = model.init(jax.random.key(seed), images)["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
    )
