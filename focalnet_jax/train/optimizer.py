"""AdamW as in the recipe: clipped gradients, a schedule, and a weight-decay mask.

Fine-tuning adds learning rates that decay from the head down, parameters that stay as
they are, and factors for groups of parameters.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from focalnet_jax.errors import SetupError, nearest
from focalnet_jax.train.config import total_steps, warmup_steps
from focalnet_jax.train.schedule import warmup_cosine, warmup_poly
from focalnet_jax.trees import map_named, named_leaves

PyTree = Any


def make_schedule(config: ConfigDict, num_examples: int) -> optax.Schedule:
    """The config's learning rate by step, for an epoch of `num_examples`."""
    reference = config.learning_rate_batch_size
    scale = config.batch_size / reference if reference else 1
    schedules: dict[str, Callable[..., optax.Schedule]] = {
        "cosine": warmup_cosine,
        "poly": functools.partial(warmup_poly, power=config.schedule_power),
    }
    return schedules[config.schedule](
        peak=config.learning_rate * scale,
        start=config.warmup_learning_rate * scale,
        final=config.final_learning_rate * scale,
        warmup_steps=warmup_steps(config, num_examples),
        total_steps=total_steps(config, num_examples),
        warmup_prefix=config.warmup_prefix,
    )


def make_optimizer(
    config: ConfigDict, schedule: optax.Schedule, *, depth_of: Callable[[str], int]
) -> optax.GradientTransformation:
    """AdamW with decoupled weight decay scaled by the learning rate, as torch's.

    Parameters that `config.frozen` names have no part in the gradient's norm, no
    moments and no updates.

    Args:
      config: from `check_config`.
      schedule: the learning rate by step.
      depth_of: how deep in the net a parameter stands, by its name.

    Raises:
      SetupError: when it is initialised, a pattern or a decay without any effect.
    """
    clip = optax.clip_by_global_norm(config.clip_norm)
    optimizer = optax.chain(
        clip if config.clip_norm else optax.identity(),
        optax.adamw(
            schedule,
            b1=config.adam_b1,
            b2=config.adam_b2,
            eps=config.adam_eps,
            weight_decay=config.weight_decay,
            mask=_decays(config),
        ),
    )

    def label(params):
        frozen = matches(params, config.frozen, field="frozen")
        if all(jax.tree.leaves(frozen)):
            raise SetupError(f"frozen={config.frozen} leaves no parameter to train")
        return jax.tree.map(
            lambda is_frozen: "frozen" if is_frozen else "trained", frozen
        )

    if config.frozen:
        transforms = {"trained": optimizer, "frozen": optax.set_to_zero()}
        optimizer = optax.partition(transforms, label)

    def factors_of(params):
        return rate_factors(
            params,
            config.layer_decay,
            config.learning_rate_factors,
            depth_of=depth_of,
        )

    def init(params):
        factors_of(params)  # Mistakes are found here, before anything is compiled.
        return optax.EmptyState()

    def update(updates, state, params):
        factors = factors_of(params)
        updates = jax.tree.map(lambda update, factor: factor * update, updates, factors)
        return updates, state

    if config.layer_decay != 1 or config.learning_rate_factors:
        optimizer = optax.chain(optimizer, optax.GradientTransformation(init, update))

    def checked_init(params):
        # Of all parameters, for those that are frozen don't reach the mask.
        matches(params, config.no_weight_decay, field="no_weight_decay")
        return optimizer.init(params)

    return optax.GradientTransformationExtraArgs(checked_init, optimizer.update)


def _decays(config: ConfigDict) -> Callable[[PyTree], PyTree]:
    """Which parameters decay, as a function of the parameters."""
    masks = {"nominal": decay_matrices, "all": decay_all, "none": decay_nothing}
    of_mask = masks[config.weight_decay_mask]

    def decays(params):
        return map_named(
            lambda name, does: does and not _begins(name, config.no_weight_decay),
            of_mask(params),
        )

    return decays


def decay_matrices(params: PyTree) -> PyTree:
    """Which parameters decay as the recipe states: not biases, norms and layer scales."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def decay_all(params: PyTree) -> PyTree:
    """Which parameters decay in mmsegmentation, but for what a recipe excepts there."""
    return jax.tree.map(lambda leaf: True, params)


def decay_nothing(params: PyTree) -> PyTree:
    """Which parameters decay in the official code, whose exceptions match all of them.

    `no_weight_decay_keywords()` returns `{''}` there, and `'' in name` is always true.
    """
    return jax.tree.map(lambda leaf: False, params)


def rate_factors(
    params: PyTree,
    layer_decay: float,
    factors: tuple[tuple[str, float], ...],
    *,
    depth_of: Callable[[str], int],
) -> PyTree:
    """By what each parameter's learning rate is multiplied.

    Args:
      params: of a model.
      layer_decay: the rate of a block over that of the next one: Bao et al., arXiv
        2106.08254, as in timm. The deepest parameters, such as the head, have the whole
        rate.
      factors: patterns of names, and what comes on top for the parameters that they
        match. If several patterns match a parameter, all their factors apply.
      depth_of: how deep in the net a parameter stands, by its name.

    Raises:
      SetupError: a decay where all parameters are as deep, or a pattern that matches
        nothing.
    """
    depths = {name: depth_of(name) for name in named_leaves(params)}
    deepest = max(depths.values())
    if layer_decay != 1 and min(depths.values()) == deepest:
        raise SetupError(
            f"layer_decay={layer_decay} has no effect: the model says of all its "
            "parameters that they are equally deep in the net"
        )
    result = map_named(lambda name, _: layer_decay ** (deepest - depths[name]), params)
    for pattern, value in factors:
        chosen = matches(params, (pattern,), field="learning_rate_factors")
        result = jax.tree.map(
            lambda old, is_chosen, value=value: old * value if is_chosen else old,
            result,
            chosen,
        )
    return result


def matches(params: PyTree, patterns: tuple[str, ...], *, field: str) -> PyTree:
    """Whether a parameter's name begins with one of some regular expressions.

    Raises:
      SetupError: a pattern that no name begins with.
    """
    names = [*named_leaves(params)]
    for pattern in patterns:
        if not any(_begins(name, (pattern,)) for name in names):
            parts = {"/".join(n.split("/")[:i]) for n in names for i in range(1, 4)}
            near = nearest(pattern, parts)
            hint = f"; did you mean {near!r}?" if near else f", such as {names[0]!r}"
            raise SetupError(
                f"{field}: no parameter's name begins with {pattern!r}{hint}"
            )
    return map_named(lambda name, _: _begins(name, patterns), params)


def _begins(name: str, patterns: tuple[str, ...]) -> bool:
    return any(re.match(pattern, name) for pattern in patterns)
