"""The names and layouts of FocalNet's parameters in PyTorch implementations.

A dialect is a table from the paths of the Flax modules to the names of the PyTorch
modules. The same table is used in both directions, so the names always come back as they
were. The layouts differ too: PyTorch has the output channels first, and some
implementations write a dense layer as a 1x1 convolution.

    dense          Flax [in, out]            PyTorch [out, in], or [out, in, 1, 1]
    convolution    Flax [h, w, in, out]      PyTorch [out, in, h, w]
    depthwise      Flax [h, w, 1, c]         PyTorch [c, 1, h, w]

The running averages of BatchNorm, which Flax keeps in a tree of their own, have paths of
their own beside those of the parameters: `decode_head/bottleneck/bn/mean`.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence

import numpy as np

from focalnet_jax.errors import SetupError, did_you_mean, shown
from focalnet_jax.models import FocalNetEncoder

# Fields in the tables: {s} is a stage, {next} the stage after it, {b} a block and {l} a
# level. {post} is "_post" in a net with norms after the branches, and empty in others.
_BLOCK = "layers_{s}/blocks_{b}"
_INTEGER_FIELDS = ("s", "next", "b", "l")
_CONVOLUTIONS = re.compile(
    r"(.*/)?((patch_embed|downsample)/proj|focal_layers_\d+)/kernel"
    r"|(decode|auxiliary)_head/.*/kernel"
)
# The leaves of Flax that PyTorch calls otherwise than `weight`.
_AVERAGES = {"mean": "running_mean", "var": "running_var", "count": "num_batches_tracked"}
_LEAVES = {"bias": "bias"} | _AVERAGES

# What a segmenter has beside its backbone.
SEGMENTER_HEADS = ("decode_head", "auxiliary_head")

# Ends messages about a dialect that can't express a model.
MICROSOFT_CAN = "The dialect microsoft can express every net for images"


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How one implementation names and lays out the parameters.

    Attributes:
      name: the name of the implementation.
      block: the template of a block's PyTorch name.
      in_block: templates of the modules in a block: Flax path to PyTorch name.
      outside: templates of the other modules: Flax path to PyTorch name.
      pointwise: the dense modules that are 1x1 convolutions in this implementation, by
        the last part of their Flax path.
      inner_prefix: a prefix that the names of a net without its head lack.
      wrapper: the entry of a `.pth` file in which the implementation's loader looks.
      patch_size, focal_factor, stem_padding: the only value that the implementation
        knows; None if it knows any.
    """

    name: str
    block: str
    in_block: dict[str, str]
    outside: dict[str, str]
    pointwise: frozenset[str]
    inner_prefix: str = ""
    wrapper: str | None = None
    patch_size: int | None = None
    focal_factor: int | None = None
    stem_padding: int | None = None

    @property
    def anchor(self) -> str:
        """The name of the stem's weight, by which a dialect is recognised."""
        return self.outside["patch_embed/proj"] + ".weight"

    def key_of(self, path: str, *, use_postln: bool) -> str | None:
        """The PyTorch name of the parameter at a Flax path; None if there is none."""
        for pattern, _, _, template in self._rows:
            if match := pattern.fullmatch(path):
                fields = {k: v for k, v in match.groupdict().items() if v is not None}
                leaf = fields.pop("leaf", None)
                if "s" in fields:
                    fields["next"] = str(int(fields["s"]) + 1)
                key = template.format(**fields, post="_post" if use_postln else "")
                return f"{key}.{_LEAVES.get(leaf, 'weight')}" if leaf else key
        return None

    def path_of(self, key: str) -> str | None:
        """The Flax path of a PyTorch name; None if this dialect lacks the name."""
        for _, pattern, flax, _ in self._rows:
            if match := pattern.fullmatch(key):
                fields = match.groupdict()
                leaf = fields.pop("leaf", None)
                if "next" in fields:
                    fields["s"] = str(int(fields["next"]) - 1)
                path = flax.format(**fields)
                if leaf is None:
                    return path
                is_norm = re.search(r"(^|/)(norm\d*|ln|bn)$", path)
                own = {torch: flax for flax, torch in _LEAVES.items()}
                own["weight"] = "scale" if is_norm else "kernel"
                return f"{path}/{own[leaf]}"
        return None

    def check_can_be(self, encoder: FocalNetEncoder) -> None:
        """Raises SetupError if the implementation cannot express the model."""
        if not encoder.has_focal_modulation:
            raise SetupError(
                f"{self.name}'s FocalNet has focal modulation; the model has another "
                f"operator, modulation={encoder.modulation!r}"
            )
        _check_is_a_net_for_images(self.name, encoder)
        for option in ("patch_size", "focal_factor", "stem_padding"):
            known, value = getattr(self, option), getattr(encoder, option)
            if option == "stem_padding" and not encoder.use_conv_embed:
                continue
            if known not in (None, value):
                raise SetupError(
                    f"{self.name}'s FocalNet always has {option}={known}; the model has "
                    f"{value}. {MICROSOFT_CAN}"
                )

    def to_torch(self, path: str, array: np.ndarray) -> np.ndarray:
        """Makes an array of PyTorch of a Flax array: a view, or of a count a copy."""
        if path == "mask_token":
            return array[None, None]
        if path.endswith("/count"):
            return array.astype(np.int64)
        if not path.endswith("/kernel"):
            return array
        array = np.moveaxis(array, (-1, -2), (0, 1))
        return array[..., None, None] if self._is_pointwise(path) else array

    def from_torch(self, path: str, array: np.ndarray) -> np.ndarray | None:
        """Makes a view of a PyTorch array in Flax's layout; None if it has another."""
        if path == "mask_token":
            is_one = array.ndim == 3 and array.shape[:2] == (1, 1)
            return array[0, 0] if is_one else None
        if not path.endswith("/kernel"):
            return array if array.ndim == (not path.endswith("/count")) else None
        if self._is_pointwise(path):
            return array[..., 0, 0].T if array.shape[2:] == (1, 1) else None
        if array.ndim != (4 if _CONVOLUTIONS.fullmatch(path) else 2):
            return None
        return np.moveaxis(array, (0, 1), (-1, -2))

    def _is_pointwise(self, path: str) -> bool:
        is_dense = not _CONVOLUTIONS.fullmatch(path)
        return is_dense and path.split("/")[-2] in self.pointwise

    @functools.cached_property
    def _rows(self) -> list[tuple[re.Pattern, re.Pattern, str, str]]:
        """Two patterns for the parameters of each module, and its two templates.

        The order is Flax pattern, PyTorch pattern, Flax template, PyTorch template.
        """
        in_block = {
            f"{_BLOCK}/{flax}": f"{self.block}.{torch}"
            for flax, torch in self.in_block.items()
        }
        return [
            (
                _compile(flax, "/", ["kernel", "scale", "bias"], [*_AVERAGES]),
                _compile(torch, r"\.", ["weight", "bias"], [*_AVERAGES.values()]),
                flax,
                torch,
            )
            for flax, torch in (self.outside | in_block).items()
        ]


def _check_is_a_net_for_images(name: str, encoder: FocalNetEncoder) -> None:
    """Raises SetupError for options that no implementation in PyTorch has."""
    plain = dict(
        downsample_stride=2, use_depthwise_bias=False, causal=False, global_axes=()
    )
    changed = [
        f"{option}={getattr(encoder, option)!r}"
        for option, value in plain.items()
        if getattr(encoder, option) != value
    ]
    for option in ("patch_size", "focal_factor", "focal_windows"):
        value = getattr(encoder, option)
        numbers = value if option == "focal_windows" else [value]
        if any(isinstance(number, Sequence) for number in numbers):
            changed.append(f"{option}={value!r}")
    factor = encoder.focal_factor
    sizes = {
        window + level * factor
        for levels, window in zip(encoder.focal_levels, encoder.focal_windows)
        for level in range(levels)
        # Both are numbers where nothing is changed.
        if not changed and isinstance(window, int) and isinstance(factor, int)
    }
    if any(size % 2 == 0 for size in sizes):
        changed.append(f"kernels of even size ({min(s for s in sizes if s % 2 == 0)})")
    if changed:
        raise SetupError(
            f"{name}'s FocalNet is for images, with odd kernels of one size for both "
            f"axes and no bias in them; the model has {', '.join(changed)}"
        )


def _compile(
    template: str, separator: str, leaves: list[str], averages: list[str]
) -> re.Pattern:
    """The pattern of the names of a module's parameters.

    Args:
      template: of the module's name.
      separator: of the parts of a name.
      leaves: the names that parameters have in a module.
      averages: those of the running averages that a BatchNorm has beside them.
    """
    pattern = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    for field in _INTEGER_FIELDS:
        pattern = pattern.replace(f"{{{field}}}", rf"(?P<{field}>\d+)")
    pattern = pattern.replace("{post}", "(?:_post)?")
    if not re.search("gamma|mask_token", template):  # All others are modules.
        leaves = leaves + averages if template.endswith("bn") else leaves
        pattern += rf"{separator}(?P<leaf>{'|'.join(leaves)})"
    return re.compile(pattern)


# microsoft/FocalNet: `classification/focalnet.py`, and the backbones for detection and
# segmentation, which have a norm for each stage instead of the classifier's norm.
MICROSOFT = Dialect(
    name="microsoft",
    block="layers.{s}.blocks.{b}",
    in_block={
        "norm1": "norm1",
        "norm2": "norm2",
        "gamma_1": "gamma_1",
        "gamma_2": "gamma_2",
        "modulation/f": "modulation.f",
        "modulation/focal_layers_{l}": "modulation.focal_layers.{l}.0",
        "modulation/h": "modulation.h",
        "modulation/ln": "modulation.ln",
        "modulation/proj": "modulation.proj",
        "mlp/fc1": "mlp.fc1",
        "mlp/fc2": "mlp.fc2",
    },
    outside={
        "patch_embed/proj": "patch_embed.proj",
        "patch_embed/norm": "patch_embed.norm",
        "layers_{s}/downsample/proj": "layers.{s}.downsample.proj",
        "layers_{s}/downsample/norm": "layers.{s}.downsample.norm",
        "norm": "norm",
        "norm{s}": "norm{s}",
        "head": "head",
    },
    pointwise=frozenset({"h"}),
    wrapper="model",
)

# huggingface/pytorch-image-models: `timm/models/focalnet.py`. There a downsampling is the
# first module of the later stage; here it is the last module of the earlier stage.
TIMM = Dialect(
    name="timm",
    block="layers.{s}.blocks.{b}",
    in_block={
        "norm1": "norm1{post}",
        "norm2": "norm2{post}",
        "gamma_1": "ls1.gamma",
        "gamma_2": "ls2.gamma",
        "modulation/f": "modulation.f",
        "modulation/focal_layers_{l}": "modulation.focal_layers.{l}.0",
        "modulation/h": "modulation.h",
        "modulation/ln": "modulation.norm",
        "modulation/proj": "modulation.proj",
        "mlp/fc1": "mlp.fc1",
        "mlp/fc2": "mlp.fc2",
    },
    outside={
        "patch_embed/proj": "stem.proj",
        "patch_embed/norm": "stem.norm",
        "layers_{s}/downsample/proj": "layers.{next}.downsample.proj",
        "layers_{s}/downsample/norm": "layers.{next}.downsample.norm",
        "norm": "norm",
        "head": "head.fc",
    },
    pointwise=frozenset({"f", "h", "proj", "fc1", "fc2"}),
    patch_size=4,
    focal_factor=2,
    stem_padding=2,
)

# huggingface/transformers: `FocalNetForImageClassification`. `FocalNetModel` lacks the
# inner prefix and the classifier. In the place of the classifier,
# `FocalNetForMaskedImageModeling` has a decoder and a mask token.
TRANSFORMERS = Dialect(
    name="transformers",
    block="focalnet.encoder.stages.{s}.layers.{b}",
    in_block={
        "norm1": "norm1",
        "norm2": "norm2",
        "gamma_1": "gamma_1",
        "gamma_2": "gamma_2",
        "modulation/f": "modulation.projection_in",
        "modulation/focal_layers_{l}": "modulation.focal_layers.{l}.0",
        "modulation/h": "modulation.projection_context",
        "modulation/ln": "modulation.layernorm",
        "modulation/proj": "modulation.projection_out",
        "mlp/fc1": "mlp.fc1",
        "mlp/fc2": "mlp.fc2",
    },
    outside={
        "patch_embed/proj": "focalnet.embeddings.patch_embeddings.projection",
        "patch_embed/norm": "focalnet.embeddings.norm",
        "layers_{s}/downsample/proj": "focalnet.encoder.stages.{s}.downsample.projection",
        "layers_{s}/downsample/norm": "focalnet.encoder.stages.{s}.downsample.norm",
        "norm": "focalnet.layernorm",
        "head": "classifier",
        "decoder": "decoder.0",
        "mask_token": "focalnet.embeddings.mask_token",
    },
    pointwise=frozenset({"h", "decoder"}),
    inner_prefix="focalnet.",
    focal_factor=2,
    stem_padding=2,
)

# open-mmlab/mmsegmentation, 0.x and 1.x: microsoft/FocalNet's backbone, `UPerHead` and an
# `FCNHead` with one convolution. They have the names that Flax has here, but for numbers.
_HEAD_MODULES = {
    f"{name}/{layer}": f"{torch}.{layer}"
    for name, torch in {
        "decode_head/psp_modules_{l}": "decode_head.psp_modules.{l}.1",
        "decode_head/bottleneck": "decode_head.bottleneck",
        "decode_head/lateral_convs_{l}": "decode_head.lateral_convs.{l}",
        "decode_head/fpn_convs_{l}": "decode_head.fpn_convs.{l}",
        "decode_head/fpn_bottleneck": "decode_head.fpn_bottleneck",
        "auxiliary_head/convs_{l}": "auxiliary_head.convs.{l}",
    }.items()
    for layer in ("conv", "bn")
}
MMSEGMENTATION = Dialect(
    name="mmsegmentation",
    block=f"backbone.{MICROSOFT.block}",
    in_block=MICROSOFT.in_block,
    outside={
        flax: f"backbone.{torch}"
        for flax, torch in MICROSOFT.outside.items()
        if flax not in ("norm", "head")
    }
    | {f"{head}/conv_seg": f"{head}.conv_seg" for head in SEGMENTER_HEADS}
    | _HEAD_MODULES,
    pointwise=MICROSOFT.pointwise,
    wrapper="state_dict",
)

# Those that have names for classifiers.
CLASSIFIER_DIALECTS = {
    dialect.name: dialect for dialect in (MICROSOFT, TIMM, TRANSFORMERS)
}
DIALECTS = CLASSIFIER_DIALECTS | {MMSEGMENTATION.name: MMSEGMENTATION}


def dialect_named(name: str) -> Dialect:
    """The dialect of this name; raises SetupError if there is none."""
    if not isinstance(name, str) or name not in DIALECTS:
        hint = did_you_mean(shown(name), DIALECTS)
        raise SetupError(f"no dialect is named {shown(name)}{hint}")
    return DIALECTS[name]
