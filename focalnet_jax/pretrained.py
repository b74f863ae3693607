"""Trained models, loaded from wherever their parameters are stored."""

import dataclasses
import logging
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from focalnet_jax.convert.fit import Reading, fit_to_model
from focalnet_jax.errors import SetupError, did_you_mean, spelt
from focalnet_jax.image_size import ImageSize
from focalnet_jax.models.size import Model
from focalnet_jax.models.variants import ENCODER_OPTIONS
from focalnet_jax.preprocessing import Preprocessing
from focalnet_jax.weights.description import HEAD_OPTIONS

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


def load_model(
    source: str | os.PathLike,
    *,
    name: str | None = None,
    image_size: ImageSize | None = None,
    wrapper: str | None = None,
    prefix: str | None = None,
    ignore: Sequence[str] = (),
    head: str | None = None,
    resize_kernels: bool = False,
    add_levels: bool = False,
    allow_nan: bool = False,
    seed: int = 0,
    **options,
) -> Pretrained:
    """Loads a trained model.

        model, params, preprocessing = load_model("runs/digits")
        logits, _ = model.apply({"params": params}, preprocessing("seven.png")[None])
        features = load_model("focalnet_tiny_srf", num_classes=0)
        stages = load_model("focalnet_tiny_srf", head="reset", out_stages=(0, 1, 2, 3))

    Args:
      source: the workdir of a run or a checkpoint in it; a directory or file that
        `python -m focalnet_jax.convert` wrote; a file of PyTorch weights, or the index
        of several; `hf:OWNER/NAME` or `hf:OWNER/NAME@REVISION` on the Hugging Face Hub;
        or the name of an official release. Weights from the Hub and from a release are
        downloaded once. The files of timm and transformers beside weights are read with
        them; what they leave open or say in vain is logged as a warning.
      name: the name of the variant. None takes the recorded one or the nearest one.
      image_size: of the images that `preprocessing` makes, in pixels: a number for
        squares, or height and width. None takes the recorded or the usual one.
      wrapper: the entry of the file that holds the weights, such as `"state_dict_ema"`.
      prefix: take only the names that begin so, such as `"backbone.0"`.
      ignore: shell-style patterns of names to leave out.
      head: `"reset"` makes a new head, or new norms for a backbone. `"in22k_to_in1k"`
        keeps the ImageNet-1K part of a released ImageNet-22K head.
      resize_kernels: zero-pad or crop the depthwise kernels around their centre.
      add_levels: add focal levels. Their gates are zero and their kernels are new.
      allow_nan: take NaN and infinity as they are.
      seed: the seed of new parameters.
      **options: options of the model to change, such as `dtype="bfloat16"`, or
        `normalize_modulator=True`, which weights cannot show. With another `in_channels`
        the stem of RGB weights is adapted.

    Raises:
      SetupError: there is nothing at `source`, it cannot be read, or it does not fit the
        model.
    """
    # This loads what reads files, which `import focalnet_jax` alone must not load.
    from focalnet_jax.convert.weights_and_model import read_weights_and_model

    _check_options(options)
    reading = Reading(
        name=name,
        image_size=image_size,
        wrapper=wrapper,
        prefix=prefix,
        ignore=ignore,
        head=head,
        resize_kernels=resize_kernels,
        add_levels=add_levels,
        allow_nan=allow_nan,
        seed=seed,
    )
    found = read_weights_and_model(source, reading, options)
    fitted = fit_to_model(found.weights, found.model, reading)
    for note in found.notes + fitted.notes + fitted.dtype_notes:
        _log.warning(spelt(note))
    params = jax.tree.map(jnp.array, fitted.params)
    pretrained = Pretrained(found.model, params, found.description.preprocessing)
    if found.description.classes:
        pretrained.classes = tuple(found.description.classes)
    return pretrained


def _check_options(options: dict[str, Any]) -> None:
    """Raises SetupError for what is an option neither of `load_model` nor of models."""
    own = {field.name for field in dataclasses.fields(Reading)}
    known = own | ENCODER_OPTIONS.keys() | HEAD_OPTIONS
    for option in options.keys() - known:
        raise SetupError(
            f"load_model has no option {option!r}{did_you_mean(option, known)}"
        )
