"""Data sets of images with masks: folders, data sets of TFDS, and the satellite tiles."""

import concurrent.futures
import dataclasses
import io
import pathlib
from typing import Any

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

from focalnet_jax.data.images.masks import decode_mask
from focalnet_jax.data.mask_labels import MaskLabels
from focalnet_jax.data.sources import satellite
from focalnet_jax.data.sources.builders import open_builder
from focalnet_jax.data.sources.layout import FOLDER
from focalnet_jax.data.sources.mask_classes import IGNORED, MaskClasses, read_mask_classes
from focalnet_jax.data.sources.mask_pairs import MaskPairs
from focalnet_jax.data.sources.opening import check_prepared, files_of, records_of
from focalnet_jax.data.sources.satellite import SatelliteTiles
from focalnet_jax.data.sources.source import Source
from focalnet_jax.errors import SetupError, argument, did_you_mean
from focalnet_jax.paths import is_remote, with_home, without_file_scheme

_LOOKED_AT = 8  # masks of a folder, before it is used
_THREADS = 16  # They mostly wait for a disk or a network.


@dataclasses.dataclass(frozen=True)
class SegmentationSource(Source):
    """One split of a data set of images with masks.

    Its records have `image` and `mask`, encoded bytes, and perhaps `file_name`.

    Attributes, beside those of `Source`:
      mask_classes: what the indices in masks mean.
      image_feature, mask_feature: what a record of TFDS calls its image and its mask.
    """

    mask_classes: MaskClasses = dataclasses.field(default_factory=MaskClasses)
    image_feature: str = "image"
    mask_feature: str = "mask"

    def mask_labels(self, num_classes: int) -> MaskLabels:
        """What masks can hold.

        Args:
          num_classes: of a model, which counts where the data set names no classes.
        """
        return MaskLabels(self.mask_classes, num_classes)

    def read(self, index: int) -> dict[str, Any]:
        """Returns a record; raises as `Source.read`."""
        record = super().read(index)
        for name in ("image", "mask"):
            record[name] = record[getattr(self, f"{name}_feature")]
        return record

    def describe(self, index: int) -> str:
        """Names a record for messages, with the files of its image and of its mask."""
        if not isinstance(self.records, MaskPairs):
            return super().describe(index)
        mask = self.records.mask_name(index)
        both = self.records.file_name(index) + (f", {mask}" if mask else "")
        return f"record {index} of {self.name} ({both})"

    def image_sizes(self) -> np.ndarray:
        """The height and width of each image by its header, int32 `[n, 2]`.

        They are 0 and 0 for an image that can't be read: it is a bad record.
        """
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            sizes = [*pool.map(self._image_size, range(len(self)), chunksize=64)]
        return np.array(sizes, np.int32).reshape(-1, 2)

    def _image_size(self, index: int) -> tuple[int, int]:
        try:
            file: pathlib.Path | io.BytesIO
            if isinstance(self.records, MaskPairs):
                file = self.records.path(index)
            else:
                file = io.BytesIO(self.records[index][self.image_feature])
            with PIL.Image.open(file) as image:
                return image.height, image.width
        except Exception:  # Each kind of storage and of image has its own.
            return 0, 0


def open_segmentation(
    name: str,
    *,
    split: str,
    data_dir: str | None = None,
    images: str | None = None,
    masks: str | None = None,
    classes: str | None = None,
    reduce_zero_label: bool | None = None,
    max_bad_records: int = 0,
) -> SegmentationSource:
    """Opens a split of a data set of images with masks.

    Args:
      name: `folder:DIR`; `"satellite"`; or a data set of TFDS, as TFDS spells it.
      split: of a folder, a directory; of TFDS, as TFDS spells it.
      data_dir: where data sets of TFDS lie; None for TFDS's own place.
      images: of a folder, the pattern of the images' paths: see `mask_layout`. Of a data
        set of TFDS, the name of the feature. None for the usual ones.
      masks: the same of masks.
      classes: what the indices in masks mean: see `read_mask_classes`.
      reduce_zero_label: whether 0 in masks is ignored, and 1 is the first class. None for
        what `classes` or the data set says.
      max_bad_records: how many images of a folder may lack a mask.

    Raises:
      SetupError: an unknown name or split, an empty split, a data set that isn't prepared
        or not as ArrayRecord, or one without images and masks.
    """
    mask_classes = read_mask_classes(classes)
    if name == satellite.NAME:
        others = dict(images=images, masks=masks, classes=classes)
        for field, given in (others | dict(reduce_zero_label=reduce_zero_label)).items():
            if given:
                raise SetupError(f"{argument(field)}={given!r} is not for {name}")
        return _source(name, split, SatelliteTiles(split), satellite.CLASSES)
    if name.startswith(FOLDER):
        records = _open_pairs(name, split, images, masks, max_bad_records)
        mask_classes = mask_classes.with_reduce_zero_label(reduce_zero_label)
        remarks = records.remarks + _remark_on_255(records, mask_classes)
        return _source(name, split, records, mask_classes, remarks=remarks)
    builder = open_builder(name, data_dir=data_dir)
    check_prepared(builder, name, data_dir)
    features = builder.info.features
    mask = _mask_feature(name, features, masks)
    image = _image_feature(name, features, images, mask)
    if classes is None:
        mask_classes = _classes_of_builder(builder, mask)
    return _source(
        name,
        split,
        records_of(builder, name, split, encoded=(image, mask)),
        mask_classes.with_reduce_zero_label(reduce_zero_label),
        files=files_of(builder, split),
        image_feature=image,
        mask_feature=mask,
    )


def _source(
    name: str, split: str, records: Any, mask_classes: MaskClasses, **more: Any
) -> SegmentationSource:
    names = mask_classes.names
    return SegmentationSource(
        name=f"{name}, split {split!r}",
        records=records,
        class_names=names,
        num_classes=len(names) or None,
        mask_classes=mask_classes,
        **more,
    )


def _open_pairs(
    name: str, split: str, images: str | None, masks: str | None, allowed: int
) -> MaskPairs:
    given = without_file_scheme(name.removeprefix(FOLDER))
    if is_remote(given):
        raise SetupError(
            f"{argument('name')}={name!r}: a folder has to be on a disk. In a bucket "
            "data sets lie as ArrayRecord files: see python -m focalnet_jax.data.prepare"
        )
    return MaskPairs(
        with_home(given), split=split, images=images, masks=masks, allowed=allowed
    )


def _remark_on_255(records: MaskPairs, classes: MaskClasses) -> tuple[str, ...]:
    """Says so if masks look as if 255 were a class, as it is in pictures to look at."""
    if classes.table(1)[IGNORED] != IGNORED:
        return ()
    found: set[int] = set()
    for index in range(0, len(records), max(1, len(records) // _LOOKED_AT)):
        try:
            mask = decode_mask(records[index]["mask"])
        except Exception:  # It is named when its turn comes.
            continue
        found |= {*np.unique(mask).tolist()}
    if len(found) != 2 or IGNORED not in found:
        return ()
    other = min(found)
    return (
        f"masks of {records.root} hold the indices {other} and {IGNORED} alone, and "
        f"{IGNORED} is ignored. If it is a class, name both in a file, and give it as "
        f"data.classes: index,class | {other},NAME | {IGNORED},NAME (a line for each)",
    )


# --- Data sets of TFDS ---------------------------------------------------------


def _images_in(features: tfds.features.FeaturesDict) -> dict[str, Any]:
    """The features that are images, by their names."""
    return {
        name: feature
        for name, feature in features.items()
        if isinstance(feature, tfds.features.Image)
    }


def _mask_feature(
    name: str, features: tfds.features.FeaturesDict, given: str | None
) -> str:
    """The name of the feature with the masks: an image of one channel."""
    there = _images_in(features)
    found = [key for key, feature in there.items() if feature.shape[-1] == 1]
    return _chosen(name, "masks", given, found, there)


def _image_feature(
    name: str, features: tfds.features.FeaturesDict, given: str | None, mask: str
) -> str:
    """The name of the feature with the images: an image that is no mask."""
    there = _images_in(features)
    found = [key for key, feature in there.items() if feature.shape[-1] != 1]
    if "image" in found and given is None:
        return "image"
    return _chosen(name, "images", given, [key for key in found if key != mask], there)


def _chosen(
    name: str, field: str, given: str | None, found: list[str], there: dict[str, Any]
) -> str:
    if given is not None:
        if given not in there:
            raise SetupError(
                f"{argument(field)}={given!r} is no feature of {name} that has images"
                f"{did_you_mean(given, there)}"
            )
        return given
    if len(found) == 1:
        return found[0]
    names = ", ".join(sorted(found or there)) or "no images at all"
    raise SetupError(
        f"{argument('name')}={name!r} needs images and masks for segmentation, and has "
        f"{names}: {argument(field)}=NAME says which feature holds the {field}"
    )


def _classes_of_builder(builder: tfds.core.DatasetBuilder, mask: str) -> MaskClasses:
    """What a data set of TFDS says of its classes."""
    metadata = builder.info.metadata or {}
    if kept := dict(metadata).get("mask_classes"):
        return MaskClasses.from_json(kept)
    feature = builder.info.features[mask]
    names = getattr(feature, "names", None) or ()
    return MaskClasses(names=tuple(names))
