"""The heads of mmsegmentation, with the weights of ours."""

import re

import numpy as np
import torch

from focalnet_jax.trees import named_leaves

CLASSES = 5
NAMES = ("decode_head", "auxiliary_head")
# What mmsegmentation adds to the number of pixels before it divides by it.
ADDED = float(np.finfo(np.float32).eps)


def build(mmseg, channels, *, head_channels=8, auxiliary_channels=6, **loss):
    """UPerHead and FCNHead for maps of these channels, with BatchNorm, in float64."""
    same = dict(
        num_classes=CLASSES,
        dropout_ratio=0.0,
        norm_cfg=dict(type="BN", requires_grad=True),
        align_corners=False,
    )
    loss = dict(type="CrossEntropyLoss", use_sigmoid=False, **loss)
    decode = mmseg.models.UPerHead(
        in_channels=list(channels),
        in_index=list(range(len(channels))),
        pool_scales=(1, 2, 3, 6),
        channels=head_channels,
        loss_decode=loss | dict(loss_weight=1.0),
        **same,
    )
    auxiliary = mmseg.models.FCNHead(
        in_channels=channels[-2],
        in_index=len(channels) - 2,
        channels=auxiliary_channels,
        num_convs=1,
        concat_input=False,
        loss_decode=loss | dict(loss_weight=0.4),
        **same,
    )
    return decode.double(), auxiliary.double()


LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
LEAVES |= {"mean": "running_mean", "var": "running_var", "count": "num_batches_tracked"}


def state_dict(variables):
    """The variables of one head by the names that mmsegmentation has for them.

    Gradients and averages have the same names as what they belong to.
    """
    result = {}
    for collection in variables.values():
        for path, leaf in named_leaves(collection).items():
            *modules, leaf_name = path.split("/")
            name = ".".join(modules)
            name = re.sub(r"psp_modules_(\d)", r"psp_modules.\1.1", name)
            name = re.sub(r"(convs)_(\d)", r"\1.\2", name)
            array = np.asarray(leaf)
            if leaf_name == "kernel":
                array = array.transpose(3, 2, 0, 1)
            result[f"{name}.{LEAVES[leaf_name]}"] = torch.tensor(array)
    return result


def samples(labels):
    """Labels `[b, h, w]` as the losses of mmsegmentation take them."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    return [
        SegDataSample(gt_sem_seg=PixelData(data=torch.tensor(own[None]).long()))
        for own in labels
    ]
