"""Trained models, from wherever their parameters lie."""

import logging
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from focalnet_jax.convert.fit import Changes, fit
from focalnet_jax.convert.reading import read_model
from focalnet_jax.data import Preprocessing
from focalnet_jax.weights.description import Model

_log = logging.getLogger("focalnet_jax")


class Pretrained(NamedTuple):
    """A model with its parameters.

    Attributes:
      model: a `FocalNet`, or a `FocalNetBackbone`.
      params: for `model.apply({"params": params}, images)`, on the default device.
      preprocessing: makes an image file or PIL image `[size, size, 3]` for the model.
    """

    model: Model
    params: dict[str, Any]
    preprocessing: Preprocessing


def load_model(source: str | os.PathLike, **overrides) -> Pretrained:
    """Loads a trained model.

        model, params, preprocessing = load_model("runs/digits")
        logits, _ = model.apply({"params": params}, preprocessing("seven.png")[None])

    Args:
      source: a run's workdir or a checkpoint in it; a directory or file that
        `python -m focalnet_jax.convert` wrote; a file of PyTorch weights; `hf:OWNER/NAME`
        or `hf:OWNER/NAME@REVISION` on the Hugging Face Hub; or the name of an official
        release. The last two are downloaded once.
      **overrides: options of the model to change, such as `dtype="bfloat16"`, or
        `normalize_modulator=True` where weights can't say. For another head, other
        kernel sizes or more levels convert first.

    Raises:
      SetupError: nothing there, unreadable, or not fit for the model.
    """
    reading = read_model(source, options=overrides)
    fitted = fit(reading.source, reading.model, Changes())
    for note in reading.notes + fitted.notes + fitted.dtype_notes:
        _log.warning(note)
    params = jax.tree.map(jnp.array, fitted.params)
    return Pretrained(reading.model, params, reading.description.preprocessing)
