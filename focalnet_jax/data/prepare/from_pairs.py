"""Folders of images and masks as data sets of ArrayRecord files."""

import hashlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from focalnet_jax.data.prepare.examples import write_examples
from focalnet_jax.data.prepare.files import (
    VERSION,
    check_name,
    check_split_names,
    file_sizes,
    order_keys,
    shard_files,
)
from focalnet_jax.data.prepare.writing import Prepared
from focalnet_jax.data.sources.builders import default_data_dir, path_on_disk
from focalnet_jax.data.sources.mask_classes import MaskClasses, read_mask_classes
from focalnet_jax.data.sources.mask_layout import splits_of
from focalnet_jax.data.sources.mask_pairs import MaskPairs


def prepare_pairs(
    root: str,
    *,
    name: str,
    data_dir: str | None = None,
    shards: int | None = None,
    images: str | None = None,
    masks: str | None = None,
    classes: str | None = None,
) -> Prepared:
    """Makes a data set of a folder of images and masks, in a fixed random order.

    A record has the features `image` and `mask`, encoded as in the files, and
    `file_name`, the path of the image. What the indices in masks mean is kept beside the
    records. The data set's directory is `DATA_DIR/NAME/1.0.0`.

    Args:
      root: the folder.
      name: the name that the data set gets. It is of lower-case letters, digits and `_`,
        and not the name of a data set of TFDS.
      data_dir: the directory of all data sets; None for TFDS's own place.
      shards: the number of files for each split; None for files of about 512 MiB.
      images: as for `open_segmentation`.
      masks: as for `open_segmentation`.
      classes: as for `open_segmentation`.

    Raises:
      SetupError: an image lacks its mask, a file is empty, the name is not allowed, or
        the disk is full.
    """
    check_name(name)
    data_dir = path_on_disk(data_dir or default_data_dir())
    root = path_on_disk(root)
    mask_classes = read_mask_classes(classes)
    splits = splits_of(root, images)
    check_split_names(splits, root)
    info = _dataset_info(name, mask_classes, description=f"The folder {root}.")
    fingerprint = hashlib.sha256(repr((mask_classes, shards)).encode())
    files = {}
    for split in splits:
        pairs = MaskPairs(root, split=split, images=images, masks=masks, allowed=None)
        for line in pairs.remarks:
            print(f"note: {line}")
        sizes = file_sizes(len(pairs), pairs.path, root=pairs.root)
        sizes += file_sizes(len(pairs), pairs.mask_path, root=pairs.root)
        keys = order_keys(pairs)
        for part in (split.encode(), sizes.data, keys.data):
            fingerprint.update(part)
        files[split] = shard_files(
            pairs,
            sizes,
            np.argsort(keys, kind="stable"),
            prefix=f"{name}-{split}",
            features=info.features,
            shards=shards,
        )
    existed = write_examples(
        data_dir / name / VERSION, files, info, fingerprint=fingerprint.hexdigest()
    )
    return Prepared(name, data_dir, existed)


def _dataset_info(
    name: str, mask_classes: MaskClasses, *, description: str
) -> tfds.core.DatasetInfo:
    metadata: dict[str, Any] = {"mask_classes": mask_classes.to_json()}
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=name,
            version=tfds.core.Version(VERSION),
            data_dir="",  # TFDS needs a directory only for reading.
            module_name="focalnet_jax.data.prepare",
        ),
        description=description,
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(),
                "mask": tfds.features.Image(shape=(None, None, 1)),
                "file_name": tfds.features.Text(),
            }
        ),
        metadata=tfds.core.MetadataDict(metadata),
    )
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    return info
