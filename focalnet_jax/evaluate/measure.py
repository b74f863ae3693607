"""Measures accuracies, with the batches and the sharding of the trainer."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from focalnet_jax.data import Source
from focalnet_jax.errors import SetupError
from focalnet_jax.evaluators import Accuracy
from focalnet_jax.image_size import height_and_width
from focalnet_jax.pretrained import Pretrained
from focalnet_jax.tasks.base import BatchArray, Split, Variables
from focalnet_jax.tasks.classes import difference_of_classes
from focalnet_jax.tasks.examples import EvalExample
from focalnet_jax.tasks.images import normalize
from focalnet_jax.train import default_config, sharding
from focalnet_jax.train.batches import bad_records_of, evaluation_batches
from focalnet_jax.train.step import make_predict

_CLASSES = 1000


class Loading(NamedTuple):
    """How images are loaded.

    Attributes:
      batch_size: how many images are computed at a time.
      workers: processes that decode images; 0 for threads of this one.
      max_bad_records: how many images may be damaged, and are left out.
    """

    batch_size: int
    workers: int = 0
    max_bad_records: int = 0


class Measured(NamedTuple):
    """An accuracy that was measured.

    Attributes:
      top1, top5: shares of the images.
      images: that count.
      damaged: that could not be read.
    """

    top1: float
    top5: float
    images: int
    damaged: int


@dataclasses.dataclass(frozen=True)
class _Task:
    """What the trainer's functions ask of a task to evaluate a model."""

    net: Pretrained

    @property
    def batch(self) -> dict[str, BatchArray]:
        sides = height_and_width(self.net.preprocessing.image_size)
        return {"image": BatchArray((*sides, 3), np.uint8, ("height", "width", None))}

    def predict(self, variables: Variables, batch: dict[str, jax.Array]) -> jax.Array:
        preprocessing = self.net.preprocessing
        images = normalize(batch["image"], mean=preprocessing.mean, std=preprocessing.std)
        return self.net.model.apply(variables, images)[0]


def check_counts_imagenet(net: Pretrained) -> None:
    """Raises SetupError unless a model predicts the classes of ImageNet-1K."""
    net.check_predicts()
    rows, channels = net.model.num_classes, net.model.encoder.in_channels
    if rows != _CLASSES:
        hint = ""
        if rows == 21_842:
            hint = "; --head=in22k_to_in1k takes those of ImageNet-1K"
        raise SetupError(
            "the evaluation sets have the 1,000 classes of ImageNet-1K, and the model "
            f"has {rows:,}{hint}"
        )
    if channels != 3:
        raise SetupError(
            f"the evaluation sets have images in colours, of 3 channels, and the model "
            f"takes {channels}"
        )


def check_classes(net: Pretrained, source: Source) -> None:
    """Raises SetupError if the classes of a model are not those of a data set."""
    if difference := difference_of_classes(net.classes, source):
        raise SetupError(f"the model has other classes than {source.name}: {difference}")


def measure(
    net: Pretrained,
    source: Source,
    loading: Loading,
    *,
    before_batch: Callable[[int], None] = lambda images: None,
) -> Measured:
    """Measures a model on a data set, on all devices.

    Args:
      net: predicts the classes of ImageNet-1K.
      source: has labels of them, in the same order; see `check_classes`.
      loading: how images are loaded.
      before_batch: called with the size of a batch before each.

    Raises:
      SetupError: more images are damaged than are allowed, or none counts.
    """
    task = _Task(net)
    labels = source.labels(net.model.num_classes)
    split = Split(source, EvalExample(net.preprocessing.transform(), labels))
    mesh = sharding.make_mesh()
    config = default_config()
    config.batch_size = -(-loading.batch_size // mesh.size) * mesh.size
    config.data.workers = loading.workers
    config.data.max_bad_records = loading.max_bad_records
    bad_records = bad_records_of(config, source)
    places = jax.tree.map(lambda _: sharding.replicated(mesh), net.variables)
    accuracy = Accuracy(
        make_predict(task, layout=sharding.Layout(mesh, places["params"])),
        functools.partial(
            evaluation_batches, config, task, split, mesh, bad_records=bad_records
        ),
        subset=source.subset,
    )
    variables = jax.device_put(net.variables, places)
    metrics = dict(
        accuracy.run(
            variables, name="", before_batch=lambda: before_batch(config.batch_size)
        )
    )
    images = int(metrics["/examples"])
    if not images:
        raise SetupError(f"no image of {source.name} counts")
    return Measured(metrics["/top1"], metrics["/top5"], images, len(bad_records))
