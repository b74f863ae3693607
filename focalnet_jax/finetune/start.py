"""What a run starts from: weights of any kind, whose head begins anew, or none."""

import dataclasses
import os
from typing import Any, NamedTuple

from focalnet_jax.convert.fit import fit_to_model
from focalnet_jax.convert.reading import Reading
from focalnet_jax.convert.weights_and_model import read_weights_and_model
from focalnet_jax.errors import SetupError
from focalnet_jax.weights.description import ModelDescription


class Start(NamedTuple):
    """Weights that are read and fit their model, with a new head.

    Attributes:
      description: of the model, with the number of classes of the new head.
      variables: `params`, and `batch_stats` of a model that has running averages, as
        nested dicts of numpy arrays.
      notes: sentences for the user, whose arguments are not spelt yet.
    """

    description: ModelDescription
    variables: dict[str, Any]
    notes: tuple[str, ...]


def read_start(
    source: str | os.PathLike,
    reading: Reading,
    options: dict[str, Any],
    *,
    num_classes: int,
) -> Start:
    """Reads weights as `load_model` does, and makes a new head for them.

    Args:
      source: as for `load_model`.
      reading: how they are read; the head is a new one whatever it says.
      options: of the model, which replace those of the weights.
      num_classes: of the new head.

    Raises:
      SetupError: there is nothing at `source`, it can't be read, it is of another net, or
        its model is not one of images in red, green and blue.
    """
    reading = dataclasses.replace(reading, head="reset")
    # Whatever precision they have, they are trained in this one.
    options = {**options, "num_classes": num_classes, "param_dtype": "float32"}
    found = read_weights_and_model(source, reading, options)
    channels = found.model.encoder.in_channels
    if channels != 3:
        raise SetupError(
            f"{source} takes images of {channels} channels, and photographs have three"
        )
    fitted = fit_to_model(found.weights, found.model, reading)
    notes = found.notes + fitted.notes + fitted.dtype_notes
    return Start(found.description, fitted.variables, _worth_saying(notes))


def _worth_saying(notes: tuple[str, ...]) -> tuple[str, ...]:
    """Leaves out what is always so here."""
    usual = ("new: head/", "the names of the classes are left out")
    return tuple(note for note in notes if not note.startswith(usual))
