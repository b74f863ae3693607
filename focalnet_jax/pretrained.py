"""Trained models, loaded from wherever their parameters are stored."""

import dataclasses
import functools
import logging
import os
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from focalnet_jax.convert.fit import FittedParams, fit_to_model
from focalnet_jax.convert.reading import Reading
from focalnet_jax.errors import SetupError, did_you_mean, spelt
from focalnet_jax.heads import Segmenter
from focalnet_jax.image_size import ImageSize
from focalnet_jax.models import FocalNet
from focalnet_jax.models.size import Model
from focalnet_jax.models.variants import ENCODER_OPTIONS
from focalnet_jax.preprocessing import Preprocessing
from focalnet_jax.weights.description import HEAD_OPTIONS
from focalnet_jax.weights.imagenet_classes import imagenet_classes

if TYPE_CHECKING:  # It loads what reads files.
    from focalnet_jax.convert.weights_and_model import WeightsAndModel

_log = logging.getLogger("focalnet_jax")


class Prediction(NamedTuple):
    """A class that a model predicts for an image.

    Attributes:
      name: of the class; `"class 7"` where the names are not known.
      probability: that the model gives it.
      index: of its logit.
    """

    name: str
    probability: float
    index: int  # type: ignore[assignment]  # It hides the method of tuples.


class _Pretrained(NamedTuple):
    model: Model
    params: dict[str, Any]
    preprocessing: Preprocessing


class Pretrained(_Pretrained):
    """A model with its parameters and its preprocessing, which it can be unpacked to.

    Attributes:
      model: a `FocalNet`, a `FocalNetBackbone`, a `MaskedFocalNet` or a `Segmenter`.
      params: the parameters for `model.apply({"params": params}, images)`. They are on
        the default device.
      preprocessing: a function that makes `float32 [size, size, 3]` of an image file or
        a PIL image, as the model needs it.
      classes: the names of the classes in the order of the logits; None if they are not
        known. Where nothing is recorded and a head that is not new has a row for each
        class of ImageNet-1K or ImageNet-22K, they are theirs.
      batch_stats: the running averages of a segmenter; empty for other models.
    """

    classes: tuple[str, ...] | None = None
    batch_stats: Mapping[str, Any] = types.MappingProxyType({})

    @property
    def variables(self) -> dict[str, Any]:
        """What the model is applied with: `params` and, if it has any, `batch_stats`."""
        averages = {"batch_stats": self.batch_stats} if self.batch_stats else {}
        return {"params": self.params} | averages

    def _replace(self, **changes) -> "Pretrained":
        replaced = super()._replace(**changes)
        replaced.classes, replaced.batch_stats = self.classes, self.batch_stats
        return replaced

    def predict(
        self, images: Any, *, topk: int = 5, batch_size: int = 32
    ) -> list[list[Prediction]]:
        """Predicts the classes of images.

            net = load_model("runs/digits")
            for prediction in net.predict("seven.png")[0]:
                print(prediction.name, prediction.probability)

        Args:
          images: one image as `preprocessing` takes it, or several in a list.
          topk: how many classes are returned for each image, or all if there are fewer.
          batch_size: how many images are computed at a time.

        Returns:
          For each image, the most probable classes; the most probable one is the first.

        Raises:
          OSError, BadRecordError: an image can't be read.
          SetupError: the model has no head.
          ValueError: `topk` or `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} is below 1")
        self.check_predicts()
        if not isinstance(images, Iterable) or isinstance(
            images, (str, bytes, np.ndarray)
        ):
            images = [images]
        predictions, batch = [], []
        for image in images:
            batch.append(self.preprocessing(image))
            if len(batch) == batch_size:
                predictions += self.predict_prepared(np.stack(batch), topk=topk)
                batch = []
        if batch:
            # A batch as large as the others needs no program of its own.
            rows = batch_size if predictions else len(batch)
            predictions += self.predict_prepared(np.stack(batch), topk=topk, rows=rows)
        return predictions

    def predict_prepared(
        self, images: np.ndarray, *, topk: int = 5, rows: int | None = None
    ) -> list[list[Prediction]]:
        """As `predict`, but of images that `preprocessing` has made.

        Args:
          images: `float32 [images, height, width, channels]`.
          topk: as for `predict`.
          rows: the size of the batch that is computed, if there are fewer images; images
            of zeros fill it. Each size needs a program of its own, which is compiled when
            it is first met.
        """
        if topk < 1:
            raise ValueError(f"topk={topk} is below 1")
        self.check_predicts()
        missing = max((rows or 0) - len(images), 0)
        padded = np.pad(images, [(0, missing), *[(0, 0)] * (images.ndim - 1)])
        given = np.asarray(_probabilities(self.model, self.variables, padded))
        return [self._best(row, topk) for row in given[: len(images)]]

    def check_predicts(self) -> None:
        """Raises SetupError for a model that doesn't classify images."""
        if isinstance(self.model, Segmenter):
            raise SetupError(
                "the model says of each pixel what it shows, and not of the image: load "
                "the weights of a classifier"
            )
        if not getattr(self.model, "num_classes", 0):
            raise SetupError(
                "the model has no head, so it predicts no classes: load the weights of a "
                "classifier"
            )

    def _best(self, probabilities: np.ndarray, topk: int) -> list[Prediction]:
        best = np.argsort(-probabilities, kind="stable")[:topk]
        return [
            Prediction(self.class_name(index), float(probabilities[index]), int(index))
            for index in best
        ]

    def class_name(self, index: int) -> str:
        """The name of the class of a logit."""
        names = self.classes or ()
        return names[index] if index < len(names) else f"class {index}"


@functools.partial(jax.jit, static_argnames="model")
def _probabilities(model: FocalNet, variables: dict[str, Any], images: jax.Array):
    logits, _ = model.apply(variables, images)
    return jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))


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
    **options: Any,
) -> Pretrained:
    """Loads a trained model.

        model, params, preprocessing = load_model("runs/digits")
        logits, _ = model.apply({"params": params}, preprocessing("seven.png")[None])
        features = load_model("focalnet_tiny_srf", num_classes=0)
        stages = load_model("focalnet_tiny_srf", head="reset", out_stages=(0, 1, 2, 3))

    Args:
      source: the workdir of a run, for its newest checkpoint, or for its best one if the
        run has a `checkpoint.best_metric`; a checkpoint in it; a directory or file that
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
      head: `"reset"` makes a new head, new norms for a backbone, a new decoder and a new
        mask token for a masked model, or new norms and heads for a segmenter.
        `"in22k_to_in1k"` keeps the ImageNet-1K part of a released ImageNet-22K head.
      resize_kernels: zero-pad or crop the depthwise kernels around their centre.
      add_levels: add focal levels. Their gates are zero and their kernels are new.
      allow_nan: take NaN and infinity as they are.
      seed: the seed of new parameters.
      **options: options of the model to change, such as `dtype="bfloat16"`, or
        `normalize_modulator=True`, which weights cannot show. With another `in_channels`
        the stem of RGB weights is adapted. `reconstruct=True` makes a masked model, and
        `segment=True` a segmenter, whose running averages are in `batch_stats`.

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
    return with_parameters(found, fitted, head=head)


def with_parameters(
    found: "WeightsAndModel", fitted: FittedParams, *, head: str | None
) -> Pretrained:
    """The model that weights were read as, with the parameters that they were fitted to.

    Args:
      found: the weights as they were read.
      fitted: what they were fitted to.
      head: as for `load_model`.
    """
    params = jax.tree.map(jnp.array, fitted.params)
    pretrained = Pretrained(found.model, params, found.description.preprocessing)
    pretrained.batch_stats = jax.tree.map(jnp.array, fitted.batch_stats)
    if found.description.classes:
        pretrained.classes = tuple(found.description.classes)
    elif head != "reset" and not isinstance(found.model, Segmenter):
        pretrained.classes = imagenet_classes(getattr(found.model, "num_classes", 0))
    return pretrained


def _check_options(options: dict[str, Any]) -> None:
    """Raises SetupError for what is an option neither of `load_model` nor of models."""
    own = {field.name for field in dataclasses.fields(Reading)}
    known = own | ENCODER_OPTIONS.keys() | HEAD_OPTIONS
    for option in options.keys() - known:
        raise SetupError(
            f"load_model has no option {option!r}{did_you_mean(option, known)}"
        )
