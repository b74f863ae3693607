"""Image classification: one label an image, cross entropy, top-1 and top-5.

The recipe of the paper (section 4.1 of arXiv 2203.11926): RandAugment on the host;
random erasing, mixup, cutmix and label smoothing on the devices.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from focalnet_jax.data import (
    EvalTransform,
    Source,
    TrainTransform,
    image_operations,
)
from focalnet_jax.errors import SetupError
from focalnet_jax.evaluators import Accuracy
from focalnet_jax.fields import Field, Fields
from focalnet_jax.image_size import height_and_width
from focalnet_jax.models import FocalNet, count_multiply_adds, create_model
from focalnet_jax.preprocessing import Preprocessing
from focalnet_jax.tasks.augment import ERASING_MODES, Mixing, RandomErasing
from focalnet_jax.tasks.base import (
    Batch,
    BatchArray,
    Keys,
    Loss,
    Metric,
    Split,
    Splits,
    Variables,
)
from focalnet_jax.tasks.classes import (
    check_labels_fit,
    check_trainable,
    class_differences,
)
from focalnet_jax.tasks.examples import EvalExample, TrainExample
from focalnet_jax.tasks.images import (
    IMAGE_FIELDS,
    MODEL_FIELDS,
    OF_HEADS,
    DataSets,
    data_sets_of,
    eval_transform_of,
    model_of,
    model_overrides,
    normalize,
    preprocessing_of,
    train_transform_of,
)
from focalnet_jax.tasks.losses import cross_entropy
from focalnet_jax.values import SHARE, Number, Text
from focalnet_jax.weights.description import (
    HEAD_OPTIONS,
    ModelDescription,
    model_differences,
)

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


@dataclasses.dataclass(frozen=True)
class Classification:
    """Classification as the trainer sees it: see `tasks.base.Task`.

    Attributes:
      model: with a head.
      model_name, model_overrides: what `create_model` makes it of.
      preprocessing: of images for evaluation; training has its statistics and size.
      train_transform, eval_transform: of images on the host.
      data_sets: what it is trained and tested on; None where no data is needed.
      label_smoothing: as in `cross_entropy`.
      erasing: applied to the normalised images in training, if given.
      mixing: applied after it to images and labels, if given.
    """

    model: FocalNet
    model_name: str
    model_overrides: dict[str, Any]
    preprocessing: Preprocessing
    train_transform: TrainTransform
    eval_transform: EvalTransform
    data_sets: DataSets | None = None
    label_smoothing: float = 0.0
    erasing: RandomErasing | None = None
    mixing: Mixing | None = None

    name = "classification"
    unit = "images"
    metrics = METRICS
    random_streams = ("drop_path", "dropout", "erasing", "mixing")
    new = OF_HEADS

    @property
    def title(self) -> str:
        return self.model_name

    @property
    def batch(self) -> dict[str, BatchArray]:
        sides = height_and_width(self.preprocessing.image_size)
        return {
            "image": BatchArray((*sides, 3), np.uint8, ("height", "width", None)),
            "label": BatchArray((), np.int32),
        }

    @property
    def multiply_adds(self) -> int:
        return count_multiply_adds(self.model, self.preprocessing.image_size)

    def open(self, *, train: bool) -> Splits:
        num_classes = self.model.num_classes
        assert self.data_sets is not None  # It is where there is data to open.
        if train:
            image_operations(self.train_transform.pixels)  # Are its libraries there?
            train_source = self.data_sets.open("train_split")
        test_source = self.data_sets.open("test_split")
        check_labels_fit(test_source, num_classes)
        example = EvalExample(self.eval_transform, test_source.labels(num_classes))
        test = Split(test_source, example)
        if not train:
            return Splits(None, test, test_source.remarks)
        check_trainable(train_source, test_source)
        check_labels_fit(train_source, num_classes)
        # A folder may be the one and the other.
        remarks = tuple(dict.fromkeys(train_source.remarks + test_source.remarks))
        if num_classes > (train_source.num_classes or num_classes):
            remarks += (
                f"the model has {num_classes:,} classes, of which {train_source.name} "
                f"has {train_source.num_classes:,}",
            )
        example = TrainExample(self.train_transform, train_source.labels(num_classes))
        return Splits(Split(train_source, example), test, remarks)

    def init(self, key: jax.Array) -> Variables:
        sides = height_and_width(self.preprocessing.image_size)
        channels = self.model.encoder.in_channels
        return self.model.init(key, jnp.zeros((1, *sides, channels)))

    def prepare(self, batch: Batch, keys: Keys) -> Batch:
        """Normalises, erases and mixes: float `image`, and `target` for the loss."""
        images, targets = self._normalize(batch["image"]), batch["label"]
        if self.erasing is not None:
            images = self.erasing(images, keys["erasing"])
        if self.mixing is not None:
            targets = jax.nn.one_hot(targets, self.model.num_classes)
            images, targets = self.mixing(images, targets, keys["mixing"])
        return {"image": images, "target": targets}

    def loss(self, variables: Variables, batch: Batch, keys: Keys) -> Loss:
        rngs = {name: keys[name] for name in ("drop_path", "dropout")}
        # A FocalNet has no running averages, but an operator of one's own may.
        averages = ["batch_stats"] if "batch_stats" in variables else []
        (logits, _), new = self.model.apply(
            variables, batch["image"], train=True, rngs=rngs, mutable=averages
        )
        losses = cross_entropy(
            logits, batch["target"], label_smoothing=self.label_smoothing
        )
        return Loss(losses.sum(), weight=losses.size, batch_stats=new.get("batch_stats"))

    def predict(self, variables: Variables, batch: Batch) -> jax.Array:
        """Logits `[b, num_classes]`."""
        images = self._normalize(batch["image"])
        logits, _ = self.model.apply(variables, images, train=False)
        return logits

    def evaluator(
        self,
        predict: Callable[[Variables, Batch], jax.Array],
        make_batches: Callable[[], Iterable[Batch]],
        source: Source,
    ) -> Accuracy:
        return Accuracy(predict, make_batches, subset=source.subset)

    def depth_of(self, name: str) -> int:
        return self.model.encoder.depth_of(name)

    def description(self, source: Source) -> dict[str, Any]:
        return ModelDescription(
            name=self.model_name,
            overrides=self.model_overrides,
            preprocessing=self.preprocessing,
            classes=source.class_names,
        ).to_json()

    def differences(self, directory: epath.Path, source: Source | None) -> list[str]:
        differences = model_differences(directory, self.model)
        if source is None:
            for option in HEAD_OPTIONS:
                differences.pop(option, None)
        lines = [f"model.{option}: {text}" for option, text in differences.items()]
        return lines if source is None else lines + class_differences(directory, source)

    def _normalize(self, images: jax.Array) -> jax.Array:
        mean, std = self.preprocessing.mean, self.preprocessing.std
        return normalize(images, mean=mean, std=std)


def make(config: ConfigDict) -> Classification:
    """The task that a configuration describes, whose fields are checked one by one.

    Raises:
      SetupError: values that don't go together.
    """
    model = model_of(config, create_model)
    if not model.num_classes:
        raise SetupError("model.num_classes=0 makes no classifier: nothing to train")
    preprocessing = preprocessing_of(config)
    return Classification(
        model=model,
        model_name=config.model.name,
        model_overrides=model_overrides(config),
        preprocessing=preprocessing,
        train_transform=train_transform_of(config),
        eval_transform=eval_transform_of(config),
        data_sets=data_sets_of(config),
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
