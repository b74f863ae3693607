"""What is changed in the description of a model, as whoever reads its weights asks."""

import dataclasses
from collections.abc import Set
from typing import Any

from focalnet_jax.convert.reading import Reading
from focalnet_jax.errors import SetupError, argument, counted
from focalnet_jax.heads.segmenter import SEGMENTER_VALUES
from focalnet_jax.image_size import ImageSize
from focalnet_jax.weights.description import (
    BACKBONE_OPTIONS,
    DEFAULT_SCALE,
    FREE_OPTIONS,
    HEAD_OPTIONS,
    RECONSTRUCT,
    SEGMENT,
    ModelDescription,
    default_preprocessing,
)


def with_head(reading: Reading, options: dict[str, Any]) -> dict[str, Any]:
    """Adds what a new head says of the model, and checks that it says enough."""
    if reading.head == "in22k_to_in1k":
        return {"num_classes": 1000} | options
    if reading.head == "reset" and not HEAD_OPTIONS & options.keys():
        raise SetupError(
            f"{argument('head', 'reset')} needs {argument('num_classes')} for a "
            f"classifier, {argument('out_stages')} such as (0, 1, 2, 3) for a backbone, "
            f"{argument(RECONSTRUCT, True)} for masked image modelling, or "
            f"{argument(SEGMENT, True)} for segmentation"
        )
    return options


def with_changes(
    description: ModelDescription,
    name: str | None,
    options: dict[str, Any],
    image_size: ImageSize | None,
) -> tuple[ModelDescription, tuple[str, ...]]:
    """Changes a description as asked. A changed head loses the names of its classes."""
    overrides = _with_options(description.overrides, options)
    keeps_head = all(
        overrides.get(option) == description.overrides.get(option)
        for option in HEAD_OPTIONS - {*FREE_OPTIONS}
    )
    notes = ()
    if not keeps_head:
        if description.classes:
            notes = ("the names of the classes are left out, because the head changes",)
        description = dataclasses.replace(
            description, classes=None, colors=None, reduce_zero_label=None
        )
    is_segmenter = SEGMENT in overrides
    if is_segmenter != (SEGMENT in description.overrides):
        usual = default_preprocessing(description.name, segment=is_segmenter)
        statistics = {n: getattr(description.preprocessing, n) for n in ("mean", "std")}
        description = dataclasses.replace(
            description,
            preprocessing=dataclasses.replace(usual, **statistics),
            scale=DEFAULT_SCALE if is_segmenter else None,
        )
    preprocessing = description.preprocessing
    if image_size is not None:
        preprocessing = dataclasses.replace(preprocessing, image_size=image_size)
    changed = dataclasses.replace(
        description,
        name=name or description.name,
        overrides=overrides,
        preprocessing=preprocessing,
    )
    return changed, notes


def with_channels(
    description: ModelDescription, channels: int
) -> tuple[ModelDescription, tuple[str, ...]]:
    """Gives mean and std as many numbers as the model takes channels."""
    preprocessing = description.preprocessing.with_channels(channels)
    if preprocessing == description.preprocessing:
        return description, ()
    how = "averaged" if channels == 1 else "repeated"
    note = (
        f"the model takes {counted(channels, 'channel')}, so mean and std of the "
        f"preprocessing are {how}: mean={preprocessing.mean}, std={preprocessing.std}"
    )
    return dataclasses.replace(description, preprocessing=preprocessing), (note,)


def _with_options(overrides: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Adds options. Those of one kind of model replace those of the others."""
    of_classes: Set[str] = {"num_classes"}
    if SEGMENT in options or SEGMENT in overrides:  # It has classes, too.
        of_classes = {SEGMENT, *SEGMENTER_VALUES}
    kinds: tuple[Set[str], ...] = of_classes, BACKBONE_OPTIONS, {RECONSTRUCT}
    given = [kind for kind in kinds if kind & options.keys()]
    if len(given) > 1:
        raise SetupError(
            f"{argument('num_classes')} is for classifiers and segmenters, "
            f"{argument('out_stages')} for backbones, {argument(RECONSTRUCT)} for masked "
            "image modelling: give one of them"
        )
    replaced = HEAD_OPTIONS - given[0] if given else frozenset()
    return {k: v for k, v in overrides.items() if k not in replaced} | options
