"""PyTorch weights to Flax parameters and back."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from focalnet_jax.convert.dialects import DIALECTS
from focalnet_jax.convert.fit import Changes, abstract_params, cast, fit
from focalnet_jax.convert.infer import nearest_variant, unseen_options, visible_settings
from focalnet_jax.convert.names import understand
from focalnet_jax.convert.weight_files import read_weights
from focalnet_jax.errors import SetupError, did_you_mean
from focalnet_jax.weights.description import Model

_log = logging.getLogger("focalnet_jax.convert")

StateDict = Mapping[str, Any]


def from_torch(
    source: StateDict | str | os.PathLike,
    model: Model,
    *,
    dialect: str | None = None,
    wrapper: str | None = None,
    prefix: str | None = None,
    ignore: Sequence[str] = (),
    head: str | None = None,
    resize_kernels: bool = False,
    add_levels: bool = False,
    allow_nan: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Makes Flax parameters of PyTorch weights: all of them, each in its place.

    Args:
      source: a file (`.safetensors`, `.pth`, `.pt` or `.bin`), or a state dict of torch
        tensors or numpy arrays.
      model: from `create_model` or `create_backbone`.
      dialect: `"microsoft"`, `"timm"` or `"transformers"`; None recognises it.
      wrapper: the entry of the file that holds the weights; None finds `state_dict`,
        `model` or `teacher`.
      prefix: of the names to take, such as `"backbone."` in a detector; None takes all
        names and sees through the usual prefixes.
      ignore: shell-style patterns of names to leave out.
      head: `"reset"` for a new head of the model's size (for a backbone, new norms),
        `"in22k_to_in1k"` for the ImageNet-1K part of a released 22K head.
      resize_kernels: zero-pad or crop depthwise kernels around their centre.
      add_levels: add focal levels, their gates zero, their kernels new.
      allow_nan: take NaN and infinity as they are.
      seed: of what is new.

    Returns:
      The tree for `model.apply({"params": ...}, images)`: new arrays of the model's
      `param_dtype` (float64 needs `jax_enable_x64`) that share no memory with the
      source. What a reader should know (other precisions, parts left out) is logged as
      a warning.

    Raises:
      SetupError: an unreadable file, another architecture, or names and shapes that
        don't fit, in one message that lists them all.
    """
    weights = read_weights(source, wrapper=wrapper)
    named = understand(weights, dialect=dialect, prefix=prefix, ignore=ignore)
    changes = Changes(head, resize_kernels, add_levels, allow_nan, seed)
    fitted = fit(named, model, changes)
    _say(fitted.notes + fitted.dtype_notes)
    return jax.tree.map(jnp.array, fitted.params)


def to_torch(
    params: Mapping[str, Any],
    model: Model,
    *,
    dialect: str,
    dtype: Any | Mapping[str, Any] = None,
) -> dict[str, np.ndarray]:
    """Makes a PyTorch state dict of Flax parameters, or of a tree shaped like them.

    Gradients and moments of an optimiser become what they would be in PyTorch.

    Args:
      params: the model's parameters, `variables["params"]`.
      model: that they belong to.
      dialect: `"microsoft"`, `"timm"` or `"transformers"`.
      dtype: of the result, for all or by Flax path; None keeps that of `params`.

    Returns:
      Contiguous numpy arrays by name, complete for a strict `load_state_dict` once
      `torch.from_numpy` has made tensors of them. (bfloat16 is that of ml_dtypes, which
      `torch.from_numpy` doesn't know.)

    Raises:
      SetupError: an unknown dialect, one that can't express the model, a tree that is not
        the model's, or values too large for `dtype`.
    """
    if dialect not in DIALECTS:
        raise SetupError(
            f"no dialect is named {dialect!r}{did_you_mean(dialect, DIALECTS)}"
        )
    table = DIALECTS[dialect]
    flat = traverse_util.flatten_dict(params, sep="/")
    _check_tree(flat, model)
    table.check_can_be(model.encoder)
    dtypes = dtype if isinstance(dtype, Mapping) else dict.fromkeys(flat, dtype)
    state_dict = {}
    for path, array in flat.items():
        key = table.key_of(path, use_postln=model.encoder.use_postln)
        if key is None:
            raise SetupError(
                f"{dialect}'s FocalNet has no place for {path}; backbones for dense "
                'prediction are written with dialect="microsoft"'
            )
        array = table.to_torch(path, np.asarray(array))
        state_dict[key] = cast(key, array, dtypes.get(path))
    return state_dict


def infer_model(
    source: StateDict | str | os.PathLike,
    *,
    dialect: str | None = None,
    wrapper: str | None = None,
    prefix: str | None = None,
    ignore: Sequence[str] = (),
) -> tuple[str, dict[str, Any]]:
    """Finds the model that PyTorch weights belong to.

    Options that leave no trace in weights are the nearest variant's: whether the
    modulator is normalised, the stem's padding and, but in timm's names, whether norms
    come after the branches. A logged warning says so.

    Args:
      source, dialect, wrapper, prefix, ignore: as for `from_torch`.

    Returns:
      A name and overrides for `create_model`; if `out_stages` is among the overrides,
      for `create_backbone`.

    Raises:
      SetupError: an unreadable file, another architecture, or too little to tell.
    """
    weights = read_weights(source, wrapper=wrapper)
    named = understand(weights, dialect=dialect, prefix=prefix, ignore=ignore)
    settings = visible_settings(named.shapes, use_postln=named.use_postln)
    name, overrides = nearest_variant(settings)
    _say([unseen_options(name, settings, overrides)])
    return name, overrides


def _say(notes: Sequence[str]) -> None:
    for note in filter(None, notes):
        _log.warning(note)


def _check_tree(flat: Mapping[str, Any], model: Model) -> None:
    expected = {path: leaf.shape for path, leaf in abstract_params(model).items()}
    given = {path: np.shape(array) for path, array in flat.items()}
    if any(path.startswith("params/") for path in given):
        raise SetupError('the tree has its parameters below "params": pass what is there')
    problems = [
        f"{path}: {given.get(path, 'nothing')} given, {expected.get(path, 'nothing')} in "
        "the model"
        for path in sorted(expected.keys() | given.keys())
        if given.get(path) != expected.get(path)
    ]
    if problems:
        lines = "\n  ".join(problems)
        raise SetupError(f"the tree is not that of the model:\n  {lines}")
