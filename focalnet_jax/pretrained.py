"""Trained models, loaded from wherever their parameters are stored."""

import logging
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from focalnet_jax.convert.fit import fit_to_model
from focalnet_jax.models.size import Model
from focalnet_jax.preprocessing import Preprocessing

_log = logging.getLogger("focalnet_jax")


class _Pretrained(NamedTuple):
    model: Model
    params: dict[str, Any]
    preprocessing: Preprocessing


class Pretrained(_Pretrained):
    """A model with its parameters and its preprocessing, which it can be unpacked to.

    Attributes:
      model: a `FocalNet` or a `FocalNetBackbone`.
      params: the parameters for `model.apply({"params": params}, images)`. They are on
        the default device.
      preprocessing: a function that makes `float32 [size, size, 3]` of an image file or
        a PIL image, as the model needs it.
      classes: the names of the classes in the order of the logits; None if they are not
        known.
    """

    classes: tuple[str, ...] | None = None


def load_model(source: str | os.PathLike, **overrides) -> Pretrained:
    """Loads a trained model.

        model, params, preprocessing = load_model("runs/digits")
        logits, _ = model.apply({"params": params}, preprocessing("seven.png")[None])

    Args:
      source: the workdir of a run or a checkpoint in it; a directory or file that
        `python -m focalnet_jax.convert` wrote; a file of PyTorch weights; `hf:OWNER/NAME`
        or `hf:OWNER/NAME@REVISION` on the Hugging Face Hub; or the name of an official
        release. Weights from the Hub and from a release are downloaded once.
        The files of timm and transformers beside weights are read with them; what they
        leave open or say in vain is logged as a warning.
      **overrides: options of the model to change, such as `dtype="bfloat16"`, or
        `normalize_modulator=True`, which weights cannot show. With another `in_channels`
        the stem of RGB weights is adapted. To change the head, the kernel sizes or the
        number of focal levels, convert the weights first.

    Raises:
      SetupError: there is nothing at `source`, it cannot be read, or it does not fit the
        model.
    """
    # This loads what reads files, which `import focalnet_jax` alone must not load.
    from focalnet_jax.convert.weights_and_model import read_weights_and_model

    found = read_weights_and_model(source, options=overrides)
    fitted = fit_to_model(found.weights, found.model)
    for note in found.notes + fitted.notes + fitted.dtype_notes:
        _log.warning(note)
    params = jax.tree.map(jnp.array, fitted.params)
    pretrained = Pretrained(found.model, params, found.description.preprocessing)
    if found.description.classes:
        pretrained.classes = tuple(found.description.classes)
    return pretrained
