"""What a FocalNet looks at: its gates, modulators, kernels and receptive fields."""

from focalnet_jax.visualize.figures import (
    draw_gates,
    draw_kernels,
    draw_modulators,
    draw_receptive_fields,
)
from focalnet_jax.visualize.inside import (
    BlockMaps,
    Inside,
    block_maps,
    check_can_look,
    depthwise_kernels,
    look_inside,
    receptive_fields,
    stage_strides,
)

__all__ = [
    "BlockMaps",
    "Inside",
    "block_maps",
    "check_can_look",
    "depthwise_kernels",
    "draw_gates",
    "draw_kernels",
    "draw_modulators",
    "draw_receptive_fields",
    "look_inside",
    "receptive_fields",
    "stage_strides",
]
