"""Image classification: one label an image, cross entropy, top-1 and top-5.

The recipe of the paper (section 4.1 of arXiv 2203.11926): RandAugment on the host;
random erasing, mixup, cutmix and label smoothing on the devices.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from focalnet_jax.data import EvalTransform, Source, TrainTransform
from focalnet_jax.errors import SetupError
from focalnet_jax.evaluators import Accuracy
from focalnet_jax.fields import Field, Fields
from focalnet_jax.models import FocalNet, create_model
from focalnet_jax.tasks.augment import ERASING_MODES, Mixing, RandomErasing
from focalnet_jax.tasks.base import (
    Batch,
    BatchArray,
    Keys,
    Loss,
    Metric,
    Split,
    Variables,
)
from focalnet_jax.tasks.classes import (
    check_labels_fit,
    check_trainable,
    class_differences,
)
from focalnet_jax.tasks.examples import EvalExample, TrainExample
from focalnet_jax.tasks.image_task import ImageTask, image_task_arguments
from focalnet_jax.tasks.images import IMAGE_FIELDS, MODEL_FIELDS, model_of
from focalnet_jax.tasks.losses import cross_entropy
from focalnet_jax.values import SHARE, Number, Text
from focalnet_jax.weights.description import CLASSIFICATION

METRICS = {
    "top1": Metric("top-1", "{:.2%}", higher_is_better=True, picture="accuracy"),
    "top5": Metric("top-5", "{:.2%}", higher_is_better=True, picture="accuracy"),
    "loss": Metric("loss", "{:.3f}", higher_is_better=False, picture="loss"),
}

# Smaller ones are 0 in float32, for which there is no distribution.
_ALPHA = Number(1e-6, 1e3, or_zero=True)

FIELDS: Fields = {
    "label_smoothing": Field(
        0.1,
        "The share of the target that is spread evenly over all classes.",
        Number(0, 1, excludes_most=True),
    ),
    "random_erasing": Field(
        0.0, "The share of the images in which a random rectangle is replaced.", SHARE
    ),
    "random_erasing_mode": Field(
        "pixel",
        'What is put in the place of the rectangle: "pixel" for noise, "rand" for one '
        'colour, "const" for the mean.',
        Text(ERASING_MODES),
    ),
    "mixup_alpha": Field(
        0.0,
        "Mixup draws its shares from Beta(alpha, alpha); 0 for no mixup.",
        _ALPHA,
    ),
    "cutmix_alpha": Field(
        0.0,
        "Cutmix draws its shares from Beta(alpha, alpha); 0 for no cutmix.",
        _ALPHA,
    ),
    "mix_probability": Field(1.0, "The share of the batches that are mixed.", SHARE),
    "mix_switch_probability": Field(
        0.5,
        "Where there are mixup and cutmix: the share of cutmix in the mixed batches.",
        SHARE,
    ),
    **MODEL_FIELDS,
    **IMAGE_FIELDS,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(ImageTask[Source, TrainTransform, EvalTransform]):
    """Classification as the trainer sees it: see `tasks.base.Task`.

    Attributes, beside those of `ImageTask`:
      model: with a head.
      label_smoothing: as in `cross_entropy`.
      erasing: applied to the normalised images in training, if given.
      mixing: applied after it to images and labels, if given.
    """

    model: FocalNet
    label_smoothing: float = 0.0
    erasing: RandomErasing | None = None
    mixing: Mixing | None = None

    name = CLASSIFICATION
    metrics = METRICS
    random_streams = ("drop_path", "dropout", "erasing", "mixing")

    @property
    def batch(self) -> dict[str, BatchArray]:
        return super().batch | {"label": BatchArray((), np.int32)}

    def train_example(self, source: Source) -> TrainExample:
        return TrainExample(self.train_transform, source.labels(self.model.num_classes))

    def test_split(self, source: Source) -> tuple[Split, tuple[str, ...]]:
        labels = source.labels(self.model.num_classes)
        return Split(source, EvalExample(self.eval_transform, labels)), ()

    def check_data(
        self, train_source: Source | None, test_source: Source
    ) -> tuple[str, ...]:
        num_classes = self.model.num_classes
        check_labels_fit(test_source, num_classes)
        if train_source is None:
            return ()
        check_trainable(train_source, test_source)
        check_labels_fit(train_source, num_classes)
        if num_classes <= (train_source.num_classes or num_classes):
            return ()
        return (
            f"the model has {num_classes:,} classes, of which {train_source.name} has "
            f"{train_source.num_classes:,}",
        )

    def prepare(self, batch: Batch, keys: Keys) -> Batch:
        """Normalises, erases and mixes: float `image`, and `target` for the loss."""
        images, targets = self.normalize(batch["image"]), batch["label"]
        if self.erasing is not None:
            images = self.erasing(images, keys["erasing"])
        if self.mixing is not None:
            targets = jax.nn.one_hot(targets, self.model.num_classes)
            images, targets = self.mixing(images, targets, keys["mixing"])
        return {"image": images, "target": targets}

    def loss(self, variables: Variables, batch: Batch, keys: Keys) -> Loss:
        logits, batch_stats = self.apply_in_training(variables, keys, batch["image"])
        losses = cross_entropy(
            logits, batch["target"], label_smoothing=self.label_smoothing
        )
        return Loss(losses.sum(), weight=losses.size, batch_stats=batch_stats)

    def predict(self, variables: Variables, batch: Batch) -> jax.Array:
        """Logits `[b, num_classes]`."""
        images = self.normalize(batch["image"])
        logits, _ = self.model.apply(variables, images, train=False)
        return logits

    def evaluator(
        self,
        predict: Callable[[Variables, Batch], jax.Array],
        make_batches: Callable[[], Iterable[Batch]],
        source: Source,
    ) -> Accuracy:
        return Accuracy(predict, make_batches, subset=source.subset)

    def description(self, source: Source) -> dict[str, Any]:
        return super().description(source) | {"classes": source.class_names}

    def differences(self, directory: epath.Path, source: Source | None) -> list[str]:
        lines = super().differences(directory, source)
        return lines if source is None else lines + class_differences(directory, source)


def make(config: ConfigDict) -> Classification:
    """The task that a configuration describes, whose fields are checked one by one.

    Raises:
      SetupError: values that don't go together.
    """
    model = model_of(config, create_model)
    if not model.num_classes:
        raise SetupError("model.num_classes=0 makes no classifier: nothing to train")
    return Classification(
        model=model,
        **image_task_arguments(config),
        label_smoothing=config.label_smoothing,
        erasing=_erasing_of(config),
        mixing=_mixing_of(config),
    )


def _erasing_of(config: ConfigDict) -> RandomErasing | None:
    erasing = RandomErasing(config.random_erasing, mode=config.random_erasing_mode)
    return erasing if erasing.probability else None


def _mixing_of(config: ConfigDict) -> Mixing | None:
    mixing = Mixing(
        mixup_alpha=config.mixup_alpha,
        cutmix_alpha=config.cutmix_alpha,
        probability=config.mix_probability,
        switch_probability=config.mix_switch_probability,
    )
    is_on = mixing.probability and (mixing.mixup_alpha or mixing.cutmix_alpha)
    return mixing if is_on else None
