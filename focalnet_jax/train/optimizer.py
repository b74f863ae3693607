"""AdamW as in the recipe: clipped gradients, a schedule, and a weight-decay mask.

And what fine-tuning adds: rates that decay from the head down, parameters that stay as
they are, factors for groups of parameters.
"""

import re
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from focalnet_jax.errors import SetupError, did_you_mean
from focalnet_jax.train.config import steps_of_epochs, total_steps
from focalnet_jax.train.schedule import warmup_cosine
from focalnet_jax.weights.params import named_leaves

PyTree = Any


def make_schedule(config: ConfigDict, num_examples: int) -> optax.Schedule:
    """The config's learning rate by step, for an epoch of `num_examples`."""
    reference = config.learning_rate_batch_size
    scale = config.batch_size / reference if reference else 1
    return warmup_cosine(
        peak=config.learning_rate * scale,
        start=config.warmup_learning_rate * scale,
        final=config.final_learning_rate * scale,
        warmup_steps=steps_of_epochs(config, config.warmup_epochs, num_examples),
        total_steps=total_steps(config, num_examples),
        warmup_prefix=config.warmup_prefix,
    )


def make_optimizer(
    config: ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """AdamW with decoupled weight decay scaled by the learning rate, as torch's.

    Parameters that `config.frozen` names have no part in the gradient's norm, no
    moments and no updates.

    Raises:
      SetupError: when it is initialised, a pattern that matches no parameter.
    """
    masks = {"nominal": decay_matrices, "none": decay_nothing}
    clip = optax.clip_by_global_norm(config.clip_norm)
    optimizer = optax.chain(
        clip if config.clip_norm else optax.identity(),
        optax.adamw(
            schedule,
            b1=config.adam_b1,
            b2=config.adam_b2,
            eps=config.adam_eps,
            weight_decay=config.weight_decay,
            mask=masks[config.weight_decay_mask],
        ),
    )

    def label(params):
        frozen = matches(params, config.frozen, field="frozen")
        return jax.tree.map(
            lambda is_frozen: "frozen" if is_frozen else "trained", frozen
        )

    if config.frozen:
        transforms = {"trained": optimizer, "frozen": optax.set_to_zero()}
        optimizer = optax.partition(transforms, label)

    def apply_factors(updates, params):
        factors = rate_factors(params, config.layer_decay, config.learning_rate_factors)
        return jax.tree.map(lambda update, factor: factor * update, updates, factors)

    if config.layer_decay != 1 or config.learning_rate_factors:
        optimizer = optax.chain(optimizer, optax.stateless(apply_factors))
    return optimizer


def decay_matrices(params: PyTree) -> PyTree:
    """What the recipe states: weights decay; biases, norms and layer scales don't."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def decay_nothing(params: PyTree) -> PyTree:
    """What the official code does: its list of exceptions matches every parameter.

    `no_weight_decay_keywords()` returns `{''}` there, and `'' in name` is always true.
    """
    return jax.tree.map(lambda leaf: False, params)


def rate_factors(
    params: PyTree, layer_decay: float, factors: tuple[tuple[str, float], ...]
) -> PyTree:
    """By what each parameter's learning rate is multiplied.

    Args:
      params: of a FocalNet.
      layer_decay: the rate of a block over that of the next one: Bao et al., arXiv
        2106.08254, as in timm. Norm and head have the whole rate; a downsampling that of
        the block before it; the stem that of a block before the first.
      factors: patterns of names, and what comes on top for the parameters that they
        match; of several that match, all.
    """
    names = [*named_leaves(params)]
    blocks = sorted(
        {tuple(map(int, found.groups())) for name in names if (found := _in_block(name))}
    )

    def depth(name: str) -> int:
        """The number of blocks before a parameter takes part, itself included."""
        if found := _in_block(name):
            return 1 + blocks.index(tuple(map(int, found.groups())))
        if found := re.match(r"layers_(\d+)/downsample/", name):
            return sum(stage <= int(found[1]) for stage, _ in blocks)
        return 0 if name.startswith("patch_embed/") else len(blocks) + 1

    def factor(path, _) -> float:
        name = _name(path)
        return layer_decay ** (len(blocks) + 1 - depth(name))

    result = jax.tree_util.tree_map_with_path(factor, params)
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
        if not any(re.match(pattern, name) for name in names):
            parts = {"/".join(n.split("/")[:i]) for n in names for i in range(1, 4)}
            hint = did_you_mean(pattern, parts)
            hint = hint if "did you mean" in hint else ", such as 'layers_0/blocks_0/mlp'"
            raise SetupError(
                f"{field}: no parameter's name begins with {pattern!r}{hint}"
            )
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(re.match(pattern, _name(path)) for pattern in patterns),
        params,
    )


def _in_block(name: str) -> re.Match | None:
    return re.match(r"layers_(\d+)/blocks_(\d+)/", name)


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
