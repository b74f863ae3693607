"""PyTorch weights to Flax parameters, and Flax parameters to PyTorch weights."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from focalnet_jax.convert.configs import Beside, read_beside
from focalnet_jax.convert.dialects import dialect_named
from focalnet_jax.convert.fit import fit_to_model
from focalnet_jax.convert.infer import contradictions, find_model
from focalnet_jax.convert.names import MatchedWeights, match_names
from focalnet_jax.convert.precision import cast
from focalnet_jax.convert.reading import Reading
from focalnet_jax.convert.weight_files import read_weights
from focalnet_jax.errors import SetupError, argument, shown, spelt
from focalnet_jax.models import abstract_variables
from focalnet_jax.models.size import Model
from focalnet_jax.paths import absolute_path
from focalnet_jax.trees import named_leaves

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
    variables: bool = False,
) -> dict[str, Any]:
    """Makes Flax parameters of PyTorch weights.

    Every tensor must have its place in the model, and every parameter its tensor. A model
    with other `in_channels` than 3 takes RGB weights: the stem's kernels are summed for a
    single channel, or repeated and rescaled for several, and a warning says so.

    Args:
      source: a safetensors file, a file of `torch.save` or the index of several files, or
        a state dict of torch tensors or numpy arrays.
      model: the result of `create_model`, `create_backbone`, `create_masked_model` or
        `create_segmenter`.
      dialect: whose names the weights have: `"microsoft"`, `"timm"`, `"transformers"` or
        `"mmsegmentation"`. With None the dialect is recognised.
      wrapper: the entry of the file that holds the weights. With None the entries
        `state_dict`, `model` and `teacher` are tried, then the only one with weights.
      prefix: take only the names with this prefix, such as `"backbone."` in a detector.
        With None all names are taken, and the usual prefixes are removed.
      ignore: shell-style patterns of names to leave out.
      head: `"reset"` makes a new head of the model's size, new norms for a backbone, a
        new decoder and a new mask token for a masked model, or new norms and heads for a
        segmenter. `"in22k_to_in1k"` keeps the ImageNet-1K part of a released
        ImageNet-22K head.
      resize_kernels: zero-pad or crop the depthwise kernels around their centre.
      add_levels: add focal levels. Their gates are zero and their kernels are new.
      allow_nan: take NaN and infinity as they are.
      seed: the seed of new parameters.
      variables: returns all variables, `{"params": ..., "batch_stats": ...}`, which a
        segmenter needs; else the parameters alone.

    Returns:
      The nested dict for `model.apply({"params": ...}, images)`, or with `variables` for
      `model.apply(..., images)`. Its arrays have the
      model's `param_dtype` (float64 needs `jax_enable_x64`) and share no memory with the
      source. A change of precision and parts that are left out are logged as warnings.

    Raises:
      SetupError: the file cannot be read, the weights are of another architecture, or
        names and shapes do not fit. One message counts the names and shapes that don't,
        and lists the first of them. Or the model has running averages, and parameters
        alone are asked for.
    """
    _check_is_model(model)
    reading = Reading(
        wrapper=wrapper,
        prefix=prefix,
        ignore=ignore,
        head=head,
        resize_kernels=resize_kernels,
        add_levels=add_levels,
        allow_nan=allow_nan,
        seed=seed,
    )
    fitted = fit_to_model(_matched(source, dialect, reading), model, reading)
    if fitted.batch_stats and not variables:
        raise SetupError(
            "the model has running averages beside its parameters: "
            f"{argument('variables', True)} returns both"
        )
    beside = _read_beside(source)
    _warn(beside.notes + contradictions(beside, model.encoder))
    _warn(fitted.notes + fitted.dtype_notes)
    return jax.tree.map(jnp.array, fitted.variables if variables else fitted.params)


def to_torch(
    params: Mapping[str, Any],
    model: Model,
    *,
    dialect: str,
    dtype: Any | Mapping[str, Any] = None,
    batch_stats: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Makes a PyTorch state dict of Flax parameters.

    A tree of gradients or of an optimiser's moments has the same shapes, and becomes
    what it would be in PyTorch.

    Args:
      params: the model's parameters, `variables["params"]`.
      model: the model of these parameters.
      dialect: whose names the result has: `"microsoft"`, `"timm"`, `"transformers"` or
        `"mmsegmentation"`. The norms of a backbone have names in the first one alone, the
        decoder and the mask token of a masked model in the third one, and the heads of a
        segmenter in the last one.
      dtype: the dtype of the result, either one for all tensors or a mapping from Flax
        paths. None keeps the dtypes of `params`.
      batch_stats: the running averages of a segmenter, `variables["batch_stats"]`.
        Without them the result has none, as that of gradients.

    Returns:
      Contiguous numpy arrays by name. After `torch.from_numpy` they are complete for a
      strict `load_state_dict`. (`torch.from_numpy` does not know the bfloat16 of
      ml_dtypes.)

    Raises:
      SetupError: the dialect is unknown or cannot express the model, the tree is not that
        of the model, or values are too large for `dtype`.
    """
    table = dialect_named(dialect)
    _check_is_model(model)
    expected = abstract_variables(model)
    named = _checked_leaves(params, expected["params"])
    if batch_stats:
        named |= _checked_leaves(batch_stats, expected.get("batch_stats", {}))
    table.check_can_be(model.encoder)
    dtypes = dtype if isinstance(dtype, Mapping) else dict.fromkeys(named, dtype)
    state_dict = {}
    for path, array in named.items():
        key = table.key_of(path, use_postln=model.encoder.use_postln)
        if key is None:
            raise SetupError(
                f"{dialect}'s FocalNet has no place for {path}; backbones for dense "
                f"prediction are written with {argument('dialect', 'microsoft')}, masked "
                f"models with {argument('dialect', 'transformers')}, segmenters with "
                f"{argument('dialect', 'mmsegmentation')}"
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

    Some options leave no trace in weights: whether the modulator is normalised, the
    padding of the stem and, except in timm's names, whether norms come after the
    branches. They are read from a `config.json` beside a file. Where there is none, the
    nearest variant's values are taken, and a warning is logged.

    Args:
      source: as for `from_torch`.
      dialect: as for `from_torch`.
      wrapper: as for `from_torch`.
      prefix: as for `from_torch`.
      ignore: as for `from_torch`.

    Returns:
      A name and overrides for `create_model`, or for `create_backbone` if `out_stages`
      is among the overrides. For a masked model `reconstruct` is among them, and for a
      segmenter `segment`: leave it out, and give the others to `create_masked_model` or
      `create_segmenter`.

    Raises:
      SetupError: the file cannot be read, the weights are of another architecture, or
        too few tensors are there to tell.
    """
    reading = Reading(wrapper=wrapper, prefix=prefix, ignore=ignore)
    matched = _matched(source, dialect, reading)
    beside = _read_beside(source)
    try:
        name, overrides, notes = find_model(matched, beside=beside)
    except SetupError as error:
        raise SetupError(
            f"{error.marked}: name it to create_model, and give the result to from_torch"
        ) from error
    _warn(beside.notes + notes)
    return name, overrides


def _matched(
    source: StateDict | str | os.PathLike, dialect: str | None, reading: Reading
) -> MatchedWeights:
    weights = read_weights(source, wrapper=reading.wrapper)
    return match_names(
        weights, dialect=dialect, prefix=reading.prefix, ignore=reading.ignore
    )


def _check_is_model(model: Any) -> None:
    if isinstance(model, type) or not hasattr(model, "encoder"):
        raise SetupError(
            f"{shown(model)} is no model: give what create_model, create_backbone, "
            "create_masked_model or create_segmenter returns"
        )


def _read_beside(source: StateDict | str | os.PathLike) -> Beside:
    if isinstance(source, Mapping):
        return Beside()
    return read_beside(absolute_path(source))


def _warn(notes: Sequence[str]) -> None:
    for note in filter(None, notes):
        _log.warning(spelt(note))


def _checked_leaves(tree: Mapping[str, Any], expected: Mapping[str, Any]):
    """The leaves by path of a tree that has the shapes of another one."""
    leaves = named_leaves(tree)
    shapes = {name: leaf.shape for name, leaf in named_leaves(expected).items()}
    given = {name: np.shape(array) for name, array in leaves.items()}
    if any(name.startswith("params/") for name in given):
        raise SetupError(
            'the parameters lie below "params": pass variables["params"], not variables'
        )
    problems = [
        f"{name}: {given.get(name, 'nothing')} given, {shapes.get(name, 'nothing')} in "
        "the model"
        for name in sorted(shapes.keys() | given.keys())
        if given.get(name) != shapes.get(name)
    ]
    if problems:
        lines = "\n  ".join(problems)
        raise SetupError(f"the tree is not that of the model:\n  {lines}")
    return leaves
