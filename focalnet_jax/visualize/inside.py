"""From what a model returns beside its logits to arrays that can be drawn.

The paper shows gates by level, the norm of the modulator, and learnt kernels (arXiv
2203.11926, section 5 and appendix). The effective receptive field is that of Luo et al.,
"Understanding the Effective Receptive Field", arXiv 1701.04128.
"""

import dataclasses
import functools
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from focalnet_jax.convert.infer import gated_levels
from focalnet_jax.errors import SetupError, argument, counted, shown
from focalnet_jax.models import FocalNet
from focalnet_jax.models.modulation import per_axis
from focalnet_jax.models.size import Model
from focalnet_jax.preprocessing import Preprocessing
from focalnet_jax.pretrained import Prediction, Pretrained
from focalnet_jax.trees import named_leaves

_BLOCK = re.compile(r"(stage\d+/block\d+)/modulator")
_KERNEL = re.compile(r"(layers_(\d+)/blocks_(\d+)/modulation)/focal_layers_(\d+)/kernel")


class BlockMaps(NamedTuple):
    """What the operator of a block does with an image, as float32.

    Attributes:
      name: of the block, such as `stage0/block1`.
      gates: `[h, w, levels + 1]`; the last one is that of the global level.
      modulator: `[h, w, c]`, which scales the query of each position.
    """

    name: str
    gates: np.ndarray
    modulator: np.ndarray

    @property
    def stage(self) -> int:
        """The number of its stage."""
        return int(self.name.partition("/")[0].removeprefix("stage"))

    @property
    def level_names(self) -> list[str]:
        """What the levels of the gates are called, in their order."""
        count = self.gates.shape[-1]
        return [_level_name(level, count=count) for level in range(count)]

    @property
    def norm(self) -> np.ndarray:
        """The length of the modulator at each position, `[h, w]`."""
        return np.linalg.norm(self.modulator, axis=-1)

    def similarity(self, row: int, column: int) -> np.ndarray:
        """The cosine between the modulator of a position and all others, `[h, w]`."""
        lengths = np.maximum(self.norm, np.finfo(np.float32).tiny)
        directions = self.modulator / lengths[..., None]
        return directions @ directions[row, column]


def _level_name(level: int, *, count: int) -> str:
    """The name of one of `count` levels, which are counted from 0."""
    return "global" if level == count - 1 else f"level {level + 1}"


@dataclasses.dataclass(frozen=True)
class Inside:
    """A model that has looked at an image.

    Attributes:
      pixels: the image as the model was given it, `uint8 [height, width, 3]`.
      blocks: the maps of each block.
      strides: the height and width in pixels of a position, for each stage.
      predictions: the most probable classes; empty if the model has no head.
    """

    pixels: np.ndarray
    blocks: tuple[BlockMaps, ...]
    strides: tuple[tuple[int, int], ...]
    predictions: tuple[Prediction, ...] = ()

    def last_blocks(self) -> tuple[BlockMaps, ...]:
        """The last block of each stage."""
        return tuple({block.stage: block for block in self.blocks}.values())


def look_inside(net: Pretrained, image: Any, *, topk: int = 5) -> Inside:
    """Has a model look at an image.

        inside = look_inside(load_model("runs/digits"), "seven.png")
        inside.blocks[-1].gates  # [h, w, levels + 1]

    Args:
      net: from `load_model`.
      image: as `net.preprocessing` takes it.
      topk: how many classes are predicted.

    Raises:
      OSError, BadRecordError: the image can't be read.
      SetupError: the model is not for images, its operator has no gates, or it returns
        NaN or infinity.
    """
    check_can_look(net.model)
    prepared = net.preprocessing(image)
    predictions = []
    if isinstance(net.model, FocalNet) and net.model.num_classes:
        [predictions] = net.predict_prepared(prepared[None], topk=topk)
    outputs = _outputs(net.model, net.params, prepared[None])
    _check_is_finite(outputs)
    return Inside(
        pixels=_pixels(prepared, net.preprocessing),
        blocks=block_maps(outputs),
        strides=stage_strides(net.model),
        predictions=tuple(predictions),
    )


def check_can_look(model: Model) -> None:
    """Raises SetupError for a model whose blocks this can't show."""
    _check_rank(model.encoder.spatial_rank)


def _check_rank(spatial_rank: int) -> None:
    if spatial_rank != 2:
        raise SetupError(
            "only nets for images can be looked into, and the model takes inputs of "
            f"{counted(spatial_rank, 'spatial axis', 'spatial axes')}"
        )


def _check_is_finite(tree: Any) -> None:
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)):
        raise SetupError(
            "the net returns NaN or infinity for this image, so there is nothing to draw"
        )


def block_maps(
    outputs: Mapping[str, jax.Array], *, image: int = 0
) -> tuple[BlockMaps, ...]:
    """The maps of the blocks, from the outputs of a model.

        _, outputs = model.apply({"params": params}, images)
        blocks = block_maps(outputs)

    Args:
      outputs: what a model for images returns beside its logits.
      image: which one of the batch.

    Returns:
      A `BlockMaps` for each block, from the first one on.

    Raises:
      SetupError: the blocks have another operator, which returns no gates.
    """
    names = [match[1] for match in map(_BLOCK.fullmatch, outputs) if match]
    if not names or not {f"{name}/gates" for name in names} <= outputs.keys():
        raise SetupError(
            "the operator of the blocks returns no gates and modulators, which are what "
            "can be shown: those of `FocalModulation` does"
        )
    return tuple(
        BlockMaps(
            name,
            np.asarray(outputs[f"{name}/gates"][image], np.float32),
            np.asarray(outputs[f"{name}/modulator"][image], np.float32),
        )
        for name in sorted(names, key=lambda name: [*map(int, re.findall(r"\d+", name))])
    )


def depthwise_kernels(params: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """The learnt kernels of each block.

        depthwise_kernels(net.params)["stage0/block1"]["level 1"]  # [k, k, c]

    Args:
      params: of a model for images.

    Returns:
      `float32 [height, width, c]` by the name of the block and that of the level. The
      levels are `level 1` and so on; in a causal net there is `global`, too.

    Raises:
      SetupError: the kernels are not those of a model for images.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    leaves = named_leaves(params)
    shapes = {path: np.shape(leaf) for path, leaf in leaves.items()}
    matches = filter(None, map(_KERNEL.fullmatch, leaves))
    for match in sorted(matches, key=lambda match: [*map(int, match.group(2, 3, 4))]):
        modulation, stage, block, level = match.groups()
        kernel = np.asarray(leaves[match[0]], np.float32)
        _check_rank(kernel.ndim - 2)
        # The mean of the global level has no kernel, but in causal nets it is none.
        gated = gated_levels(shapes, modulation)
        count = int(level) + 2 if gated is None else gated + 1
        kernels = found.setdefault(f"stage{stage}/block{block}", {})
        kernels[_level_name(int(level), count=count)] = kernel[:, :, 0]
    return found


def receptive_fields(
    net: Pretrained, image: Any, *, at: Sequence[int] | None = None
) -> dict[str, np.ndarray]:
    """What each stage sees at a place: its effective receptive field for an image.

    That is the absolute gradient of a position of the stage's map, summed over its
    channels, with respect to the pixels, summed over the colours.

    Args:
      net: from `load_model`.
      image: as `net.preprocessing` takes it.
      at: row and column of a pixel of the prepared image; None for the middle.

    Returns:
      `float32 [height, width]` by the name of the stage, such as `stage0`.

    Raises:
      SetupError: the model is not for images, `at` is no pair of whole numbers, there is
        no such pixel, or the gradients are NaN or infinity.
    """
    check_can_look(net.model)
    prepared = net.preprocessing(image)
    row, column = place(prepared.shape[:2], at)
    positions = np.array([row, column]) // np.array(stage_strides(net.model))
    fields = _gradients(net.model, net.params, prepared[None], positions)
    _check_is_finite(fields)
    return {f"stage{s}": np.asarray(f, np.float32) for s, f in enumerate(fields)}


def place(size: Sequence[int], at: Sequence[int] | None) -> tuple[int, int]:
    """A pixel of an image of that height and width; the middle if `at` is None.

    Raises:
      SetupError: `at` is no pair of whole numbers, or there is no such pixel.
    """
    height, width = size
    try:
        row, column = (height // 2, width // 2) if at is None else map(operator.index, at)
    except (TypeError, ValueError) as error:
        raise SetupError(
            f"{argument('at')}={shown(at)} is no place in an image: give the row and the "
            "column of a pixel, two whole numbers such as (60, 120)"
        ) from error
    if not (0 <= row < height and 0 <= column < width):
        raise SetupError(
            f"the place {row},{column} is outside of the image as the model is given it: "
            f"its rows are 0 to {height - 1}, and its columns 0 to {width - 1}"
        )
    return row, column


@functools.partial(jax.jit, static_argnames="model")
def _outputs(model: Model, params: dict[str, Any], images: jax.Array):
    def encode(model, images):
        return model.encoder(images)[1]

    return model.apply({"params": params}, images, method=encode)


@functools.partial(jax.jit, static_argnames="model")
def _gradients(
    model: Model, params: dict[str, Any], images: jax.Array, positions: jax.Array
) -> list[jax.Array]:
    """As `receptive_fields`; `positions` has a row and a column for each stage."""

    def at_positions(images):
        """The sum of the channels at the position of each stage."""
        outputs = _outputs(model, params, images)
        sums = []
        for stage, position in enumerate(positions):
            x = outputs[f"stage{stage}"][0]
            # Pixels that are left out at the ends belong to the last positions.
            row, column = jnp.minimum(position, jnp.array(x.shape[:2]) - 1)
            sums.append(x[row, column].sum())
        return jnp.stack(sums)

    sums, pull_back = jax.vjp(at_positions, images)
    one_hot = jnp.eye(len(sums), dtype=sums.dtype)
    return [jnp.abs(pull_back(stage)[0][0]).sum(-1) for stage in one_hot]


def stage_strides(model: Model) -> tuple[tuple[int, int], ...]:
    """The height and width in pixels of a position of each stage, in a net for images."""
    encoder = model.encoder
    stem, step = (per_axis(s, 2) for s in (encoder.patch_size, encoder.downsample_stride))
    return tuple(
        (stem[0] * step[0] ** stage, stem[1] * step[1] ** stage)
        for stage in range(len(encoder.depths))
    )


def _pixels(prepared: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """The colours of a prepared image."""
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    pixels = np.clip(np.rint((prepared * std + mean) * 255), 0, 255).astype(np.uint8)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
