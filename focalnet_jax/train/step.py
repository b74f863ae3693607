"""One step of training and one of prediction, as pure functions of arrays."""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from focalnet_jax.models import FocalNet
from focalnet_jax.tasks.augment import Mixing, RandomErasing
from focalnet_jax.tasks.losses import cross_entropy
from focalnet_jax.train import sharding
from focalnet_jax.train.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
PyTree = Any


def normalize(
    images: jax.Array, *, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
    """Makes `uint8 [b, h, w, 3]` float32, `(x / 255 - mean) / std` by channel."""
    chex.assert_type(images, jnp.uint8)
    mean, std = jnp.array(mean, jnp.float32), jnp.array(std, jnp.float32)
    return (images.astype(jnp.float32) / 255 - mean) / std


def make_train_step(
    model: FocalNet,
    optimizer: optax.GradientTransformation,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    label_smoothing: float,
    seed: int,
    mesh: Mesh | None = None,
    accumulate_steps: int = 1,
    ema_decay: float = 0.0,
    erasing: RandomErasing | None = None,
    mixing: Mixing | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Makes the function that a run repeats; jit it with shardings.

    It takes the state, and a batch with `image`, uint8 `[b, h, w, 3]`, and `label`,
    `[b]`. It returns the next state, and `loss`, `gradient_norm` (before clipping) and
    `weight_norm` (after the step), scalars. If one of these is not finite, nothing but
    counts of steps changes. Its randomness depends on `seed` and the state's step alone.

    Args:
      model: with a head.
      optimizer: its updates are added to the parameters.
      mean, std: of pixels in [0, 1], by channel.
      label_smoothing: as in `cross_entropy`.
      seed: of all randomness in the step.
      mesh: the devices that maps are split over; None: wherever the images lie.
      accumulate_steps: parts that the batch is taken in, one after the other. Without
        dropout and stochastic depth nothing but rounding depends on it.
      ema_decay: of the average of parameters that the state then holds, see
        `moving_average`; 0 for none.
      erasing: applied to the normalised images, if given.
      mixing: applied after it to images and labels, if given.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        images = normalize(batch["image"], mean=mean, std=std)
        targets = batch["label"]
        step_key = jax.random.fold_in(jax.random.key(seed), state.step)
        keys = jax.random.split(step_key, 4)
        drop_path_key, dropout_key, erasing_key, mixing_key = keys
        if erasing is not None:
            images = erasing(images, erasing_key)
        if mixing is not None:
            targets = jax.nn.one_hot(targets, model.num_classes)
            images, targets = mixing(images, targets, mixing_key)

        def loss_of(params, images, targets, part):
            keys = {"drop_path": drop_path_key, "dropout": dropout_key}
            if accumulate_steps > 1:
                keys = {name: jax.random.fold_in(key, part) for name, key in keys.items()}
            with sharding.maps_on(mesh):
                logits, _ = model.apply(
                    {"params": sharding.gathered(params, mesh)},
                    images,
                    train=True,
                    rngs=keys,
                )
            return cross_entropy(logits, targets, label_smoothing=label_smoothing)

        def value_and_grad(images, targets, part):
            return jax.value_and_grad(loss_of)(state.params, images, targets, part)

        if accumulate_steps == 1:
            loss, gradients = value_and_grad(images, targets, 0)
        else:
            loss, gradients = _mean_over_parts(
                value_and_grad, (images, targets), accumulate_steps
            )
        chex.assert_trees_all_equal_shapes_and_dtypes(gradients, state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if ema_decay:
            ema_params = moving_average(ema_params, params, state.step, decay=ema_decay)
        metrics = {
            "loss": loss,
            "gradient_norm": optax.tree.norm(gradients),
            "weight_norm": optax.tree.norm(params),
        }
        is_finite = jnp.isfinite(jnp.stack([*metrics.values()])).all()
        new = TrainState(state.step + 1, params, opt_state, ema_params)
        return _replace_if(is_finite, state, new), metrics

    return train_step


def _mean_over_parts(function, batch: PyTree, count: int) -> PyTree:
    """The mean of `function(*part, index)`, part after part of a batch's rows."""

    def split(rows):
        # Rows j, j + count, j + 2 count ... are part j: so it has some of every device.
        return rows.reshape(-1, count, *rows.shape[1:]).swapaxes(0, 1)

    def add(total, part):
        return jax.tree.map(jnp.add, total, function(*part[0], part[1])), None

    parts = (jax.tree.map(split, batch), jnp.arange(count))
    first = jax.tree.map(lambda rows: rows[0], parts)
    abstract = jax.eval_shape(function, *first[0], first[1])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract)
    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda leaf: leaf / count, total)


def moving_average(
    average: PyTree, params: PyTree, step: jax.Array, *, decay: float
) -> PyTree:
    """The exponential moving average of parameters after the step of that number.

    In the first steps it forgets faster, by (1 + step) / (10 + step), so that it isn't
    long about where training has begun: as TensorFlow's, and timm's with `use_warmup`.
    """
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return optax.incremental_update(params, average, 1 - decay)


def _replace_if(condition: jax.Array, old: PyTree, new: PyTree) -> PyTree:
    """Counts go on all the same: so the schedule stays with the step."""

    def choose(old, new):
        is_count = jnp.issubdtype(new.dtype, jnp.integer)
        return new if is_count else jnp.where(condition, new, old)

    return jax.tree.map(choose, old, new)


def make_predict(
    model: FocalNet,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    mesh: Mesh | None = None,
) -> Callable[[chex.ArrayTree, jax.Array], jax.Array]:
    """Makes the function from parameters and `uint8 [b, h, w, 3]` to logits `[b, k]`.

    Args: as those of `make_train_step`.
    """

    def predict(params: chex.ArrayTree, images: jax.Array) -> jax.Array:
        images = normalize(images, mean=mean, std=std)
        with sharding.maps_on(mesh):
            params = sharding.gathered(params, mesh)
            logits, _ = model.apply({"params": params}, images, train=False)
        return logits

    return predict
