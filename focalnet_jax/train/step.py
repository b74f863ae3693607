"""One step of training and one of prediction, as pure functions of arrays."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from focalnet_jax.tasks.base import Batch, Keys, Loss, Predicts, Task, Variables
from focalnet_jax.train import sharding
from focalnet_jax.train.state import TrainState, variables_of

Metrics = dict[str, jax.Array]
PyTree = Any


# What is logged beside the parts of a loss.
_OWN_METRICS = {"loss", "gradient_norm", "weight_norm", "learning_rate", "step_seconds"}
_OWN_METRICS |= {"input_wait", "bad_records", "nonfinite_steps", "mfu", "device_memory"}


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Known:
    """A number that the compiler knows: the weight of every part."""

    value: float


class _Sums(NamedTuple):
    """Sums over the parts of a batch, each divided by the number of rows in a part."""

    gradients: PyTree
    total: jax.Array
    weight: jax.Array | _Known
    parts: Metrics


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    layout: sharding.Layout | None = None,
    accumulate_steps: int = 1,
    ema_decay: float = 0.0,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Makes the function that a run repeats; jit it with shardings.

    It takes the state and a batch with the arrays of `task.batch`. It returns the next
    state, and scalars: `loss`, the parts of the task's loss, `gradient_norm` (before
    clipping) and `weight_norm` (after the step). If one of them but the last is not
    finite, nothing but counts of steps changes. Its randomness depends on `seed` and the
    state's step alone.

    The loss of a batch is the sum of its rows' losses over the sum of their weights. So
    `accumulate_steps` changes nothing but rounding, dropout and stochastic depth, also
    where parts have unequal weights. BatchNorm is the exception: each part is normalised
    by its own statistics, and the running averages take in one part after the other, as
    PyTorch's do when gradients are accumulated.

    Args:
      task: what is learnt.
      optimizer: its updates are added to the parameters.
      seed: of all randomness in the step.
      layout: where the model computes; None computes wherever the batch lies.
      accumulate_steps: parts that the batch is taken in, one after the other.
      ema_decay: of the average of parameters that the state then holds, see
        `moving_average`; 0 for none.
    """

    def loss_of(params, batch_stats, rows: Batch, keys: Keys) -> Loss:
        with sharding.maps_on(layout):
            variables = variables_of(sharding.gathered(params, layout), batch_stats)
            loss = task.loss(variables, rows, keys)
        if taken := _OWN_METRICS & loss.parts.keys():
            raise ValueError(f"parts of the loss have names of others: {sorted(taken)}")
        chex.assert_rank([loss.total, *loss.parts.values()], 0)
        return loss

    def sums_of(params, batch_stats, rows: Batch, keys: Keys) -> tuple[_Sums, PyTree]:
        """The sums of one part, and the next running averages."""
        # In units of the part's rows, gradients have the size of a mean's gradients.
        count = jax.tree.leaves(rows)[0].shape[0]

        def scaled(params):
            loss = loss_of(params, batch_stats, rows, keys)
            return loss.total / count, loss

        (total, loss), gradients = jax.value_and_grad(scaled, has_aux=True)(params)
        chex.assert_trees_all_equal_shapes_and_dtypes(gradients, params)
        parts = {name: value / count for name, value in loss.parts.items()}
        weight = loss.weight / count
        weight = _Known(weight) if isinstance(weight, float) else weight
        sums = _Sums(gradients, total, weight, parts)
        if loss.batch_stats is None:
            return sums, batch_stats
        chex.assert_trees_all_equal_shapes_and_dtypes(loss.batch_stats, batch_stats)
        return sums, loss.batch_stats

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(jax.random.key(seed), state.step)
        streams = task.random_streams
        keys = dict(zip(streams, jax.random.split(step_key, len(streams))))
        rows = task.prepare(batch, keys)
        if accumulate_steps == 1:
            sums, batch_stats = sums_of(state.params, state.batch_stats, rows, keys)
        else:
            sums, batch_stats = _add_parts(
                sums_of, state, rows, keys, count=accumulate_steps
            )
        if isinstance(sums.weight, _Known):
            weight = sums.weight.value * accumulate_steps
        else:  # A batch of which nothing counts has a loss of 0.
            weight = jnp.where(sums.weight > 0, sums.weight, 1)
        gradients = jax.tree.map(lambda leaf: leaf / weight, sums.gradients)
        metrics = {
            "loss": sums.total / weight,
            **{name: value / weight for name, value in sums.parts.items()},
            "gradient_norm": optax.tree.norm(gradients),
        }
        # Asked before the update, it is answered while the update is written. Afterwards
        # it would take another pass over the state.
        is_finite = jnp.isfinite(jnp.stack([*metrics.values()])).all()
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.ema_params, state.ema_batch_stats
        if ema_decay:
            average = moving_average(
                average, (params, batch_stats), state.step, decay=ema_decay
            )
        new = TrainState(state.step + 1, params, opt_state, batch_stats, *average)
        new = _replace_if(is_finite, state, new)
        return new, metrics | {"weight_norm": optax.tree.norm(new.params)}

    return train_step


def _add_parts(
    sums_of: Callable[..., tuple[_Sums, PyTree]],
    state: TrainState,
    rows: Batch,
    keys: Keys,
    *,
    count: int,
) -> tuple[_Sums, PyTree]:
    """Adds up the parts of a batch; the running averages go from part to part."""

    def split(array):
        # Rows j, j + count, j + 2 count ... are part j: so it has some of every device.
        return array.reshape(-1, count, *array.shape[1:]).swapaxes(0, 1)

    def add(carry, part):
        total, batch_stats = carry
        rows, index = part
        own_keys = {name: jax.random.fold_in(key, index) for name, key in keys.items()}
        sums, batch_stats = sums_of(state.params, batch_stats, rows, own_keys)
        return (jax.tree.map(jnp.add, total, sums), batch_stats), None

    parts = (jax.tree.map(split, rows), jnp.arange(count))
    first = jax.tree.map(lambda array: array[0], parts[0])
    abstract, _ = jax.eval_shape(sums_of, state.params, state.batch_stats, first, keys)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract)
    (total, batch_stats), _ = jax.lax.scan(add, (zeros, state.batch_stats), parts)
    return total, batch_stats


def moving_average(
    average: PyTree, new: PyTree, step: jax.Array, *, decay: float
) -> PyTree:
    """The exponential moving average after the step of that number.

    In the first steps it forgets faster, by (1 + step) / (10 + step), so that it isn't
    long about where training has begun: as TensorFlow's, and timm's with `use_warmup`.
    Of whole numbers, such as the count of BatchNorm's batches, the new ones are taken.
    """
    decay = jnp.minimum(decay, (1 + step) / (10 + step))

    def average_of(new, old):
        is_count = jnp.issubdtype(new.dtype, jnp.integer)
        return new if is_count else optax.incremental_update(new, old, 1 - decay)

    return jax.tree.map(average_of, new, average)


def _replace_if(condition: jax.Array, old: PyTree, new: PyTree) -> PyTree:
    """`new` if the condition holds, else `old`; counts of steps go on in any case.

    So the schedule of the learning rate stays with the step.
    """

    def choose(old, new):
        is_count = jnp.issubdtype(new.dtype, jnp.integer)
        return new if is_count else jnp.where(condition, new, old)

    return jax.tree.map(choose, old, new)


def make_predict(
    task: Predicts, *, layout: sharding.Layout | None = None
) -> Callable[[Variables, Batch], Any]:
    """Makes the function from variables and an evaluation batch to predictions.

    Args:
      task: whose `predict` it is.
      layout: where the model computes; None computes wherever the batch lies.
    """

    def predict(variables: Variables, batch: Batch) -> Any:
        with sharding.maps_on(layout):
            params = sharding.gathered(variables["params"], layout)
            return task.predict({**variables, "params": params}, batch)

    return predict
