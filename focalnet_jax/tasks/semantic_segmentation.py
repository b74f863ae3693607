"""Semantic segmentation: the class of each pixel.

UPerNet on a FocalNet, trained and evaluated as in the paper and its official code, which
is built on mmsegmentation 0.11.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from focalnet_jax.data import SegmentationSource, TrainSegmentationTransform
from focalnet_jax.data.mask_labels import MaskLabels
from focalnet_jax.errors import SetupError, counted
from focalnet_jax.evaluators import Overlap
from focalnet_jax.fields import Field, Fields
from focalnet_jax.heads import Segmenter, create_segmenter
from focalnet_jax.heads.segmenter import SEGMENTER_VALUES
from focalnet_jax.heads.views import Windows
from focalnet_jax.image_size import ImageSizes, height_and_width
from focalnet_jax.label_pictures import Labelled, Legend, side_by_side
from focalnet_jax.ops.canvas import zero_outside
from focalnet_jax.preprocessing import Preprocessing
from focalnet_jax.tasks.base import (
    Batch,
    BatchArray,
    Group,
    Keys,
    Loss,
    Metric,
    Split,
    Variables,
)
from focalnet_jax.tasks.classes import check_trainable, class_differences
from focalnet_jax.tasks.image_task import ImageTask
from focalnet_jax.tasks.images import (
    MODEL_FIELDS,
    OF_HEADS,
    attribute_meanings,
    model_of,
    model_overrides,
)
from focalnet_jax.tasks.losses import IGNORED, LOSS_OVER, segmentation_loss
from focalnet_jax.tasks.segmentation_data import (
    SEGMENTATION_DATA_FIELDS,
    segmentation_data_sets_of,
    segmentation_transform_of,
)
from focalnet_jax.tasks.segmentation_examples import EvalSegmentation, TrainSegmentation
from focalnet_jax.tasks.segmentation_groups import group_by_size, padding_of
from focalnet_jax.tasks.segmentation_views import Views, classes_of_images
from focalnet_jax.values import Flag, Number, Several, Text, Whole, distinct
from focalnet_jax.weights.description import (
    SEGMENT,
    SEMANTIC_SEGMENTATION,
    ModelDescription,
)

METRICS = {
    "miou": Metric("mIoU", "{:.2%}", higher_is_better=True, picture="overlap"),
    "macc": Metric("mAcc", "{:.2%}", higher_is_better=True, picture="overlap"),
    "aacc": Metric("aAcc", "{:.2%}", higher_is_better=True, picture="overlap"),
}
PADDINGS = ("seen", "masked")
EVAL_MODES = ("whole", "slide")
_SHOWN = 8  # records in the picture of an evaluation
_SIDE = 256  # of a picture in it

_HEAD_MEANINGS = attribute_meanings(Segmenter)

FIELDS: Fields = {
    "auxiliary_weight": Field(
        0.4, "What the loss of the auxiliary head is multiplied by.", Number(0, 1e3)
    ),
    "loss_over": Field(
        "all",
        'What the loss is a mean over: "all" pixels, to which those without a label add '
        'nothing, as in mmsegmentation; or "labelled" ones, as in torch.',
        Text(LOSS_OVER),
    ),
    "padding": Field(
        "seen",
        "What the net makes of training crops that reach beyond their image: with "
        '"seen" it sees zeros there, as in the official code; with "masked" it computes '
        "what it would of the image alone. In evaluation images are always alone.",
        Text(PADDINGS),
    ),
    "eval_mode": Field(
        "whole",
        'How evaluation sees images: "whole", or by "slide" in windows that overlap, '
        "whose logits are averaged.",
        Text(EVAL_MODES),
    ),
    "eval_window": Field(
        None,
        "The size of a window in pixels: a number for squares, or `(height, width)`. By "
        "default it is that of training crops.",
        ImageSizes(),
    ),
    "eval_stride": Field(
        None,
        "The pixels from one window to the next: a number, or one for the height and one "
        "for the width. By default it is two thirds of the window.",
        ImageSizes(),
    ),
    "eval_ratios": Field(
        (1.0,),
        "Evaluation takes the mean of the probabilities at these ratios to `data.scale`.",
        Several(Number(0.05, 20), least=1, most=32, check=distinct),
    ),
    "eval_flip": Field(
        False, "Whether it takes the mean with those of mirror images, too."
    ),
    "eval_canvases": Field(
        6,
        "Test images are divided into so many groups of similar sizes, or fewer. Each "
        "group has a canvas and a program of its own: fewer are compiled sooner, more "
        "compute less padding.",
        Whole(1, 1024),
    ),
    "published": Field(
        None,
        "What is published of this recipe: it is shown beside the results.",
        Text(),
    ),
    **MODEL_FIELDS,
    "model.num_classes": Field(
        150, "The number of classes.", SEGMENTER_VALUES["num_classes"]
    ),
    "model.pad_to_patch": dataclasses.replace(
        MODEL_FIELDS["model.pad_to_patch"], default=True, values=Flag()
    ),
    **{
        f"model.{option}": Field(None, _HEAD_MEANINGS.get(option, option), values)
        for option, values in SEGMENTER_VALUES.items()
        if option != "num_classes"
    },
    **SEGMENTATION_DATA_FIELDS,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SemanticSegmentation(
    ImageTask[SegmentationSource, TrainSegmentationTransform, Views]
):
    """Semantic segmentation as the trainer sees it: see `tasks.base.Task`.

    Attributes, beside those of `ImageTask`:
      model: with UPerNet's head.
      auxiliary_weight, loss_over: as of `segmentation_loss`.
      padding: what the model makes of training crops that reach beyond their image:
        `"seen"` or `"masked"`.
      published: is shown beside the results of evaluation.
    """

    model: Segmenter
    auxiliary_weight: float = 0.4
    loss_over: str = "all"
    padding: str = "seen"
    published: str | None = None

    name = SEMANTIC_SEGMENTATION
    metrics = METRICS
    random_streams = ("drop_path", "dropout")
    new = (*OF_HEADS, "norm/", "decode_head/conv_seg/", "auxiliary_head/conv_seg/")

    @property
    def title(self) -> str:
        return f"{super().title}, with UPerNet"

    @property
    def batch(self) -> dict[str, BatchArray]:
        sides = height_and_width(self.preprocessing.image_size)
        return super().batch | {
            "label": BatchArray(sides, np.uint8, ("height", "width")),
            "valid": BatchArray((2,), np.int32),
        }

    @property
    def may_lack(self) -> tuple[str, ...]:
        """What classifiers and masked models don't have, and segmenters do."""
        norms = (f"norm{stage}/" for stage in range(len(self.model.encoder.depths)))
        return (*norms, "decode_head/", "auxiliary_head/")

    # --- Data -----------------------------------------------------------------

    def _labels(self, source: SegmentationSource) -> MaskLabels:
        return source.mask_labels(self.model.num_classes)

    def train_example(self, source: SegmentationSource) -> TrainSegmentation:
        return TrainSegmentation(self.train_transform, self._labels(source))

    def test_split(self, source: SegmentationSource) -> tuple[Split, tuple[str, ...]]:
        scales = self.eval_transform.scales
        sizes = source.image_sizes()
        found = group_by_size(
            sizes, scales=scales, most=self.eval_transform.most_canvases
        )
        groups = []
        for indices, canvases, label_canvas in found:
            example = EvalSegmentation(
                self._labels(source),
                scales[0],
                canvases[0],
                label_canvas,
                more=(*zip(scales[1:], canvases[1:]),),
            )
            groups.append(Group(indices, example))
        shown = ", ".join("x".join(map(str, group.canvases[0])) for group in found)
        canvases = counted(len(groups), "canvas", "canvases")
        remark = (
            f"{counted(len(source), 'image')} are evaluated on {canvases} ({shown}), so "
            f"by {counted(len(groups), 'program')}; "
            f"{padding_of(found, sizes, scales[0]):.0%} of them is padding"
        )
        return Split(source, groups[0].example, tuple(groups)), (remark,)

    def check_data(
        self, train_source: SegmentationSource | None, test_source: SegmentationSource
    ) -> tuple[str, ...]:
        self.train_transform.load_operations()  # Evaluation needs them, too.
        num_classes = self.model.num_classes
        sources = [test_source] if train_source is None else [train_source, test_source]
        for source in sources:
            named = source.num_classes or 0
            if named > num_classes:
                raise SetupError(
                    f"model.num_classes={num_classes} is too few for {source.name}, "
                    f"which has {counted(named, 'class', 'classes')}"
                )
        if train_source is None:
            return ()
        check_trainable(train_source, test_source)
        if num_classes <= (train_source.num_classes or num_classes):
            return ()
        return (
            f"the model has {num_classes} classes, of which {train_source.name} names "
            f"{train_source.num_classes}",
        )

    # --- On the devices -------------------------------------------------------

    def prepare(self, batch: Batch, keys: Keys) -> Batch:
        """Normalises: float `image`, which is 0 beyond its own size; and `label`."""
        rows = {
            "image": zero_outside(self.normalize(batch["image"]), batch["valid"]),
            "label": batch["label"],
        }
        if self.padding == "masked":
            rows["valid"] = batch["valid"]
        return rows

    def loss(self, variables: Variables, batch: Batch, keys: Keys) -> Loss:
        valid = batch.get("valid")
        logits, batch_stats = self.apply_in_training(
            variables, keys, batch["image"], valid=valid
        )
        loss = segmentation_loss(
            logits,
            batch["label"],
            valid=valid,
            auxiliary_weight=self.auxiliary_weight,
            loss_over=self.loss_over,
        )
        return loss._replace(batch_stats=batch_stats)

    def predict(self, variables: Variables, batch: Batch) -> jax.Array:
        """The class of each pixel, int32 `[b, height, width]`, at the labels' size."""
        return classes_of_images(
            self.model,
            variables,
            batch,
            views=self.eval_transform,
            normalize=self.normalize,
            canvas=batch["label"].shape[1:],
        )

    # --- Results --------------------------------------------------------------

    def evaluator(
        self,
        predict: Callable[[Variables, Batch], jax.Array],
        make_batches: Callable[[], Iterable[Batch]],
        source: SegmentationSource,
    ) -> Overlap:
        legend = self.legend(source)
        return Overlap(
            predict,
            make_batches,
            class_names=legend.names,
            ignored=IGNORED,
            shown=sorted({*np.linspace(0, len(source) - 1, _SHOWN).astype(int).tolist()}),
            draw=functools.partial(_draw, source=source, legend=legend),
            remark=f"published: {self.published}" if self.published else "",
        )

    def legend(self, source: SegmentationSource) -> Legend:
        """Names and colours of the classes; those without a name are numbered."""
        count, names = self.model.num_classes, source.class_names
        others = [f"class {label}" for label in range(len(names), count)]
        return Legend([*names, *others], source.mask_classes.colors_of(count))

    def description(self, source: SegmentationSource) -> dict[str, Any]:
        return ModelDescription(
            name=self.model_name,
            overrides=self.model_overrides,
            preprocessing=self.preprocessing,
            classes=source.class_names,
            scale=self.eval_transform.scales[0],
            colors=self.legend(source).colors.tolist(),
            reduce_zero_label=source.mask_classes.reduce_zero_label,
        ).to_json()

    def differences(
        self, directory: epath.Path, source: SegmentationSource | None
    ) -> list[str]:
        lines = super().differences(directory, source)
        return lines if source is None else lines + class_differences(directory, source)


def _draw(
    rows: list[dict[str, np.ndarray]], *, source: SegmentationSource, legend: Legend
) -> bytes:
    """A picture of the rows of evaluated records."""
    shown = []
    for row in rows:
        height, width = row["valid"]
        label_height, label_width = row["size"]
        shown.append(
            Labelled(
                row["image"][:height, :width],
                row["predicted"][:label_height, :label_width],
                row["label"][:label_height, :label_width],
                title=source.describe(int(row["id"])),
            )
        )
    return side_by_side(shown, legend, side=_SIDE)


def make(config: ConfigDict) -> SemanticSegmentation:
    """The task that a configuration describes, whose fields are checked one by one.

    Raises:
      SetupError: values that don't go together.
    """
    rows = config.batch_size // config.accumulate_steps
    if rows < 2:
        raise SetupError(
            f"batch_size={config.batch_size} with accumulate_steps="
            f"{config.accumulate_steps} takes {rows} image at a time, of which "
            "BatchNorm has no statistics: 2 are the least"
        )
    return SemanticSegmentation(
        model=model_of(config, create_segmenter, size="crop_size"),
        model_name=config.model.name,
        model_overrides=model_overrides(config) | {SEGMENT: True},
        preprocessing=Preprocessing(
            image_size=config.data.crop_size,
            mean=config.data.mean,
            std=config.data.std,
            interpolation="bilinear",
            crop=1.0,
        ),
        train_transform=segmentation_transform_of(config),
        eval_transform=_views_of(config),
        data_sets=segmentation_data_sets_of(config),
        auxiliary_weight=config.auxiliary_weight,
        loss_over=config.loss_over,
        padding=config.padding,
        published=config.published,
    )


def _views_of(config: ConfigDict) -> Views:
    long, short = config.data.scale
    return Views(
        scales=tuple(
            (max(1, int(long * ratio)), max(1, int(short * ratio)))
            for ratio in config.eval_ratios
        ),
        mirror=config.eval_flip,
        windows=_windows_of(config),
        most_canvases=config.eval_canvases,
    )


def _windows_of(config: ConfigDict) -> Windows | None:
    window = height_and_width(config.eval_window or config.data.crop_size)
    stride = max(1, 2 * window[0] // 3), max(1, 2 * window[1] // 3)
    if config.eval_stride is not None:
        stride = height_and_width(config.eval_stride)
    if config.eval_mode == "whole":
        return None
    if any(step > side for step, side in zip(stride, window)):
        raise SetupError(
            f"eval_stride={config.eval_stride} is larger than the windows of "
            f"{window[0]} x {window[1]} pixels, so that pixels between them are not seen"
        )
    return Windows(window, stride)
