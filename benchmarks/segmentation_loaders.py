"""Contenders of `input.py` for segmentation: batches of crops of 512 x 512 with labels.

Both do what the recipe for ADE20K does on the host: they decode the image and its mask,
resize both, crop with the rule of shares, flip, and distort the colours.
"""

import dataclasses
import sys
import types
import warnings

SIDE = 512


class Repeated:
    """The records of a source again and again."""

    def __init__(self, records, repeats):
        self._records, self._repeats = records, repeats

    def __len__(self):
        return len(self._records) * self._repeats

    def __getitem__(self, index):
        return self._records[index % len(self._records)]


def ours(batch_size, workers, folder, repeats):
    """Batches of this pipeline."""
    from focalnet_jax.data import (
        TrainSegmentationTransform,
        open_segmentation,
        train_batches,
    )
    from focalnet_jax.tasks.segmentation_examples import TrainSegmentation

    source = open_segmentation(f"folder:{folder}", split="training", classes="ade20k")
    source = dataclasses.replace(source, records=Repeated(source.records, repeats))
    transform = TrainSegmentationTransform(SIDE)
    batches = train_batches(
        source,
        TrainSegmentation(transform, source.mask_labels(150)),
        batch_size=batch_size,
        seed=0,
        threads=1,
        workers=workers,
    )
    for batch in batches:
        assert batch["image"].shape == (batch_size, SIDE, SIDE, 3)
        assert batch["label"].shape == (batch_size, SIDE, SIDE)
        yield batch


def mmsegmentations(batch_size, workers, folder, repeats):
    """Batches of mmsegmentation's data set, as its recipe for ADE20K configures it.

    They are lists of crops, which it pads and stacks on the device.
    """
    del repeats  # Its sampler has no end.
    warnings.simplefilter("ignore")  # of libraries that are as old as it is

    class Absent(types.ModuleType):
        """The compiled operators of mmcv, none of which is called here."""

        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)

    sys.modules["mmcv._ext"] = Absent("mmcv._ext")
    import cv2
    from mmengine.dataset import InfiniteSampler, pseudo_collate
    from mmengine.registry import init_default_scope
    from mmseg.datasets import ADE20KDataset
    from torch.utils.data import DataLoader

    init_default_scope("mmseg")  # Its transforms are found by name.
    cv2.setNumThreads(0)  # As its runner does; workers are forks of this process.
    data = ADE20KDataset(
        data_root=str(folder),
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations", reduce_zero_label=True),
            dict(
                type="RandomResize",
                scale=(2048, 512),
                ratio_range=(0.5, 2.0),
                keep_ratio=True,
            ),
            dict(type="RandomCrop", crop_size=(SIDE, SIDE), cat_max_ratio=0.75),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PhotoMetricDistortion"),
            dict(type="PackSegInputs"),
        ],
    )
    loader = DataLoader(
        data,
        batch_size,
        sampler=InfiniteSampler(data, shuffle=True),
        num_workers=workers,
        collate_fn=pseudo_collate,
        persistent_workers=True,
    )
    for batch in loader:
        assert len(batch["inputs"]) == len(batch["data_samples"]) == batch_size
        for image, sample in zip(batch["inputs"], batch["data_samples"]):
            assert max(image.shape[1:]) <= SIDE
            assert sample.gt_sem_seg.data.shape[1:] == image.shape[1:]
        yield batch
