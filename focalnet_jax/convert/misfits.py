"""Why weights do not fit a model, and what would help."""

import re
from typing import Any

import jax
import numpy as np

from focalnet_jax.convert.infer import nearest_variant, visible_settings
from focalnet_jax.convert.names import MatchedWeights, Parameter
from focalnet_jax.errors import SetupError, argument
from focalnet_jax.models.size import Model
from focalnet_jax.weights.description import HEAD_OPTIONS

Expected = dict[str, jax.ShapeDtypeStruct]


def check_names_and_shapes(
    weights: MatchedWeights,
    model: Model,
    *,
    given: dict[str, Parameter],
    new: list[str],
    expected: Expected,
) -> None:
    """Checks that every parameter has its place and that none is missing.

    Args:
      weights: the weights before any change.
      model: the model that is to take them.
      given: the parameters after the changes, by Flax path.
      new: the Flax paths of parameters that are made anew.
      expected: the model's parameters, by Flax path.

    Raises:
      SetupError: listing all problems, their probable cause and what would help.
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

    problems = list(weights.problems)
    for path, parameter in given.items():
        shape = list(parameter.tensor.shape)
        if path not in expected:
            problems.append(f"{parameter.key} {shape} is not in the model")
        elif parameter.array.shape != expected[path].shape:
            problems.append(f"{parameter.key} is {shape}, the model has {shape_of(path)}")
        elif dialect and key_of(path) != parameter.dialect_key:
            problems.append(f"{parameter.key} would be called {key_of(path)}")
    problems += [
        f"{key_of(path)} {shape_of(path)} is missing"
        for path in expected
        if path not in given and path not in new
    ]
    if problems:
        lines = "\n  ".join([*_causes(weights, model, expected), *problems])
        raise SetupError(f"{weights.origin} does not fit the model:\n  {lines}")


def _causes(weights: MatchedWeights, model: Model, expected: Expected) -> list[str]:
    """Says what probably led to the problems, and what would help."""
    shapes = {path: leaf.shape for path, leaf in expected.items()}
    try:
        there = visible_settings(weights.shapes, use_postln=weights.use_postln)
        here = visible_settings(shapes, use_postln=model.encoder.use_postln)
    except SetupError:
        return []
    unlike = [option for option in there if here.get(option) != there[option]]
    if not unlike:
        return []
    name, overrides = nearest_variant(there)
    shown = "".join(f", {option}={value}" for option, value in overrides.items())
    maker = "create_backbone" if "out_stages" in there else "create_model"
    causes = [f'the weights look like {maker}("{name}"{shown})']
    causes += [
        f"{option} is {there[option]} there, {here.get(option, 'unset')} in the model"
        for option in unlike
    ]
    return causes + _remedies(weights, there, here, unlike)


def _remedies(
    weights: MatchedWeights,
    there: dict[str, Any],
    here: dict[str, Any],
    unlike: list[str],
) -> list[str]:
    """Says which arguments would help.

    Args:
      weights: the weights.
      there: the settings that the weights show.
      here: the settings of the model.
      unlike: the names of the settings that differ.
    """
    remedies = []
    if there.get("num_classes") == 21_842 and here.get("num_classes") == 1000:
        remedies.append(
            f'{argument("head")}="in22k_to_in1k" takes the part of an ImageNet-22K head '
            "that is for ImageNet-1K"
        )
    if set(here.get("out_stages", ())) < set(there.get("out_stages", ())):
        stage = min(set(there["out_stages"]) - set(here["out_stages"]))
        if norms := [
            parameter.key
            for path, parameter in weights.parameters.items()
            if path.startswith(f"norm{stage}/")
        ]:
            pattern = re.sub(r"\w+$", "*", norms[0])
            remedies.append(
                f'the pattern "{pattern}" in {argument("ignore")} leaves the '
                "norm of a stage out"
            )
    if HEAD_OPTIONS & set(unlike):
        remedies.append(f'{argument("head")}="reset" starts the model\'s head anew')
    if "focal_levels" in unlike:
        levels = zip(there["focal_levels"], here["focal_levels"])
        if all(weights_have <= model_has for weights_have, model_has in levels):
            remedies.append(
                "the weights have a smaller receptive field than the model (SRF for "
                f"LRF): {argument('add_levels')} adds the focal levels"
            )
        else:
            remedies.append(
                "the weights have a larger receptive field than the model (LRF for SRF)"
            )
    if "focal_windows" in unlike:
        remedies.append(f"{argument('resize_kernels')} zero-pads or crops the kernels")
    return remedies
