"""The four files of MNIST, or of a data set in its format, as ArrayRecord files."""

import hashlib
import io
from collections.abc import Iterator
from functools import partial

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

from focalnet_jax.data.prepare.examples import serializer, write_examples
from focalnet_jax.data.prepare.idx import SPLITS, read_split
from focalnet_jax.data.prepare.writing import Prepared, ShardFile
from focalnet_jax.data.sources.builders import (
    default_data_dir,
    open_builder,
    path_on_disk,
)
from focalnet_jax.errors import SetupError


def prepare_idx(root: str, *, name: str, data_dir: str | None = None) -> Prepared:
    """Makes the data set that TFDS makes of the same files, but without TensorFlow.

    The images keep the order that they have in the files. The data set's directory is
    `DATA_DIR/NAME/VERSION`.

    Args:
      root: the directory with `train-images-idx3-ubyte.gz` and the other three files.
      name: the data set's name in TFDS: `mnist`, `fashion_mnist` or `kmnist`.
      data_dir: the directory of all data sets; None for TFDS's own place.

    Raises:
      SetupError: TFDS knows no data set of this name; a file is missing or damaged; the
        images or labels are not those of the data set; or the disk is full.
    """
    data_dir = path_on_disk(data_dir or default_data_dir())
    builder = open_builder(name, data_dir=str(data_dir))
    info = builder.info
    fingerprint = hashlib.sha256()
    files = {}
    for split in SPLITS:
        images, labels = read_split(path_on_disk(root), split)
        _check_fits(info, images, labels, root)
        fingerprint.update(images.data)
        fingerprint.update(labels.data)
        file = ShardFile(
            file_name=f"{info.name}-{split}.array_record-00000-of-00001",
            num_records=len(labels),
            num_bytes=images.nbytes,
            payloads=partial(_examples, images, labels, info.features),
        )
        files[split] = [file]
    if not builder.is_prepared():  # TFDS refuses to change the format of what exists.
        info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD, override=True)
    directory = path_on_disk(builder.data_dir)
    existed = write_examples(directory, files, info, fingerprint=fingerprint.hexdigest())
    return Prepared(name, data_dir, existed)


def _check_fits(
    info: tfds.core.DatasetInfo, images: np.ndarray, labels: np.ndarray, root: str
) -> None:
    """Raises SetupError unless images and labels are such as TFDS describes."""
    features = info.features
    if {*features} != {"image", "label"} or (
        features["image"].shape != (*images.shape[1:], 1)
        or features["label"].num_classes <= labels.max()
    ):
        raise SetupError(
            f"{root} doesn't hold {info.name}: {images.shape[1]} x {images.shape[2]} "
            f"pixels and labels to {labels.max()}, but TFDS says {features}"
        )


def _examples(
    images: np.ndarray, labels: np.ndarray, features: tfds.features.FeaturesDict
) -> Iterator[bytes]:
    """Yields images `[n, h, w]`, as PNG, and labels `[n]` as serialised examples."""
    serialize = serializer(features)
    for image, label in zip(images, labels):
        stream = io.BytesIO()
        PIL.Image.fromarray(image).save(stream, format="png")
        yield serialize({"image": stream.getvalue(), "label": int(label)})
