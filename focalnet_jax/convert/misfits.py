"""Why weights do not fit a model, and what would help."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from focalnet_jax.convert.infer import nearest_variant, visible_settings
from focalnet_jax.convert.names import MatchedWeights, Parameter, is_ignored
from focalnet_jax.errors import SetupError, argument, counted
from focalnet_jax.models.size import Model
from focalnet_jax.weights.description import HEAD_OPTIONS
from focalnet_jax.weights.kernel_sizes import is_focal_kernel

Expected = dict[str, jax.ShapeDtypeStruct]
# How many problems of one kind a message lists.
_SHOWN = 8


def check_names_and_shapes(
    weights: MatchedWeights,
    model: Model,
    *,
    given: dict[str, Parameter],
    new: list[str],
    expected: Expected,
    allowed: Mapping[str, Any],
) -> None:
    """Checks that every parameter has its place and that none is missing.

    Args:
      weights: the weights before any change.
      model: the model that is to take them.
      given: the parameters after the changes, by Flax path.
      new: the Flax paths of parameters that are made anew.
      expected: the model's parameters, by Flax path.
      allowed: the attributes of `Changes`. What is allowed already is no way out.

    Raises:
      SetupError: counting the problems, with the first of each kind, their probable
        cause and what would help.
    """
    dialect, use_postln = weights.dialect, model.encoder.use_postln

    def key_of(path):
        key = dialect and dialect.key_of(path, use_postln=use_postln)
        return key or path

    def shape_of(path):
        shape = expected[path].shape
        if dialect is None:
            return list(shape)
        return list(dialect.to_torch(path, np.broadcast_to(0, shape)).shape)

    unknown, shapes, names = [], [], []
    for path, parameter in given.items():
        shape = list(parameter.tensor.shape)
        if path not in expected:
            unknown.append(f"{parameter.key} {shape} is not in the model")
        elif parameter.array.shape != expected[path].shape:
            shapes.append(f"{parameter.key} is {shape}, the model has {shape_of(path)}")
        elif dialect and key_of(path) != parameter.dialect_key:
            names.append(f"{parameter.key} would be called {key_of(path)}")
    foreign = [
        f"{key} {list(shape)} is no parameter of a FocalNet"
        for key, shape in weights.foreign.items()
    ]
    missing = [
        f"{key_of(path)} {shape_of(path)} is missing"
        for path in expected
        if path not in given and path not in new
    ]
    kinds = (foreign, weights.problems, unknown, shapes, names, missing)
    if any(kinds):
        problems = [line for lines in kinds for line in _shortened(lines)]
        causes = _causes(weights, model, expected, allowed) + _ways_around(weights)
        lines = "\n  ".join([*causes, *problems])
        raise SetupError(f"{weights.origin} does not fit the model:\n  {lines}")


def _shortened(lines: Sequence[str]) -> list[str]:
    """Counts what is beyond the first lines of one kind."""
    more = len(lines) - _SHOWN
    if more <= 1:
        return [*lines]
    return [*lines[:_SHOWN], f"and {more:,} more like the last of these"]


def _ways_around(weights: MatchedWeights) -> list[str]:
    """Says which arguments leave foreign tensors out."""
    if not weights.foreign:
        return []
    number = len(weights.foreign)
    are = "1 tensor is" if number == 1 else f"{number:,} tensors are"
    outside = [key for key in weights.foreign if not key.startswith(weights.prefix)]
    if len(outside) == len(weights.foreign):
        prefix = argument("prefix", weights.prefix.removesuffix("."))
        return [f"{are} not of the FocalNet: {prefix} takes those that are"]
    patterns = argument("ignore", _patterns(weights))
    out = "it" if number == 1 else "them"
    return [f"{are} not of the FocalNet: {patterns} leaves {out} out"]


def _patterns(weights: MatchedWeights) -> list[str]:
    """The fewest patterns that match all foreign tensors and no parameter."""
    keys = [parameter.key for parameter in weights.parameters.values()]
    patterns = {}
    for key in weights.foreign:
        first, dot, _ = key.partition(".")
        wide = (f"{first}.*", f"*.{key.rpartition('.')[2]}") if dot else ()
        fitting = (p for p in wide if not any(is_ignored(k, [p]) for k in keys))
        patterns[next(fitting, _literal(key))] = None
    return list(patterns)


def _literal(key: str) -> str:
    """The pattern that matches this name alone."""
    return re.sub(r"([*?[])", r"[\1]", key)


def _causes(
    weights: MatchedWeights, model: Model, expected: Expected, allowed: Mapping[str, Any]
) -> list[str]:
    """Says what probably led to the problems, and what would help."""
    shapes = {path: leaf.shape for path, leaf in expected.items()}
    try:
        there = visible_settings(weights.shapes, use_postln=weights.use_postln)
        here = visible_settings(shapes, use_postln=model.encoder.use_postln)
    except SetupError:
        return []
    # Weights of other models show nothing of what a segmenter has.
    options = [*there, *({"segment"} & here.keys() - there.keys())]
    unlike = [option for option in options if here.get(option) != there.get(option)]
    if not unlike:
        return []
    name, overrides = nearest_variant(there)
    maker = "create_backbone" if "out_stages" in there else "create_model"
    if overrides.pop("reconstruct", False):
        maker = "create_masked_model"
    if overrides.pop("segment", False):
        maker = "create_segmenter"
    shown = "".join(f", {option}={value}" for option, value in overrides.items())
    causes = [f'the weights look like {maker}("{name}"{shown})']
    causes += [
        f"{option} is {there.get(option, 'unset')} there, "
        f"{here.get(option, 'unset')} in the model"
        for option in unlike
    ]
    ranks = [_spatial_rank(settings) for settings in (there, here)]
    if ranks[0] != ranks[1]:
        return [
            f"{causes[0]}, which takes maps with "
            f"{counted(ranks[0], 'spatial axis', 'spatial axes')}, and the model "
            f"those with {ranks[1]}: one with {argument('patch_size')}="
            f"{there['patch_size']} takes the weights"
        ]
    return causes + _remedies(weights, there, here, unlike, shapes, allowed)


def _after_encoder(settings: Mapping[str, Any]) -> str:
    """What a model of these settings has after its encoder."""
    if "reconstruct" in settings:
        return "the model's decoder and mask token"
    if "segment" in settings:
        return "the heads of the segmenter"
    return "the model's norms" if "out_stages" in settings else "the model's head"


def _spatial_rank(settings: Mapping[str, Any]) -> int:
    patch_size = settings["patch_size"]
    return len(patch_size) if isinstance(patch_size, tuple) else 2


def _remedies(
    weights: MatchedWeights,
    there: dict[str, Any],
    here: dict[str, Any],
    unlike: list[str],
    expected: Mapping[str, tuple[int, ...]],
    allowed: Mapping[str, Any],
) -> list[str]:
    """Says which arguments would help.

    Args:
      weights: the weights.
      there: the settings that the weights show.
      here: the settings of the model.
      unlike: the names of the settings that differ.
      expected: the shapes of the model's parameters.
      allowed: as for `check_names_and_shapes`.
    """
    remedies = []

    def offer(name, value, before="", after=""):
        if allowed[name] != value:
            remedies.append(f"{before}{argument(name, value)} {after}")

    if there.get("num_classes") == 21_842 and here.get("num_classes") == 1000:
        after = "takes the part of an ImageNet-22K head that is for ImageNet-1K"
        offer("head", "in22k_to_in1k", after=after)
    if set(here.get("out_stages", ())) < set(there.get("out_stages", ())):
        stage = min(set(there["out_stages"]) - set(here["out_stages"]))
        if norms := [
            parameter.key
            for path, parameter in weights.parameters.items()
            if path.startswith(f"norm{stage}/")
        ]:
            pattern = re.sub(r"\w+$", "*", norms[0])
            remedies.append(
                f"{argument('ignore', [pattern])} leaves the norm of a stage out"
            )
    if HEAD_OPTIONS & set(unlike):
        offer("head", "reset", after=f"starts {_after_encoder(here)} anew")
    if there["causal"] != here["causal"]:
        lack = "the weights lack" if here["causal"] else "the model has no place for"
        remedies.append(
            f"the global level of a causal net has kernels of its own, which {lack}: "
            f"a model with {argument('causal')}={there['causal']} takes the weights"
        )
    if "focal_levels" in unlike:
        levels = zip(there["focal_levels"], here["focal_levels"])
        if all(weights_have <= model_has for weights_have, model_has in levels):
            smaller = (
                "the weights have a smaller receptive field than the model (SRF for LRF):"
            )
            offer("add_levels", True, f"{smaller} ", "adds the focal levels")
        else:
            remedies.append(
                "the weights have a larger receptive field than the model (LRF for SRF)"
            )
    if any(
        is_focal_kernel(path) and shape != expected.get(path, shape)
        for path, shape in weights.shapes.items()
    ):
        offer("resize_kernels", True, after="zero-pads or crops the kernels")
    return remedies
