"""What graphs and programs are tried with."""

import pytest
from tiny import tiny_backbone, tiny_model

VIDEOS = dict(patch_size=(2, 4, 4), downsample_stride=(1, 2, 2))
# What both graphs and programs are tried with. The extended run has all.
MODELS = {
    "the usual one": tiny_model,
    "a backbone": tiny_backbone,
    "an overlapping stem, padded": lambda: tiny_model(
        use_conv_embed=True, pad_to_patch=True
    ),
    "causal videos": lambda: tiny_model(**VIDEOS, causal=True, causal_window=3),
    "padded videos": lambda: tiny_model(**VIDEOS, pad_to_patch=True),
    "means of rows": lambda: tiny_model(global_axes=(1,)),
    "patches of two sides": lambda: tiny_model(patch_size=(2, 4)),
    "kernels of one position": lambda: tiny_model(
        focal_windows=(1, 1), focal_factor=0, focal_levels=(1, 2)
    ),
    "a norm in the modulation": lambda: tiny_model(use_postln_in_modulation=True),
}


def parameters(models, *default):
    """The names of models, of which those that are no default are in the extended run."""
    extended = pytest.mark.extended
    return [
        pytest.param(name, marks=[] if name in default else extended) for name in models
    ]


def session_of(graph):
    runtime = pytest.importorskip("onnxruntime", reason="it runs the graph")
    return runtime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
