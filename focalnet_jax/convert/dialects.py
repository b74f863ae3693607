"""The names and layouts of FocalNet's parameters in PyTorch implementations.

A dialect is a table from the paths of the Flax modules to the names of the PyTorch
modules. It is read both ways, so what goes in comes out again. Beside the names, the
dialects differ in layout: PyTorch has output channels first, and some write a dense layer
as a 1x1 convolution.

    dense          Flax [in, out]            PyTorch [out, in], or [out, in, 1, 1]
    convolution    Flax [h, w, in, out]      PyTorch [out, in, h, w]
    depthwise      Flax [h, w, 1, c]         PyTorch [c, 1, h, w]
"""

import dataclasses
import functools
import re

import numpy as np

from focalnet_jax.errors import SetupError
from focalnet_jax.models import FocalNetEncoder

# Fields in the tables: {s} a stage, {next} the stage after it, {b} a block, {l} a level,
# {post} "_post" in a net with norms after the branches, else nothing.
_BLOCK = "layers_{s}/blocks_{b}"
_INTEGER_FIELDS = ("s", "next", "b", "l")
_CONVOLUTIONS = re.compile(
    r"(.*/)?((patch_embed|downsample)/proj|focal_layers_\d+)/kernel"
)


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How one implementation names and lays out the parameters.

    Attributes:
      name: of the implementation.
      block: the name of a block.
      in_block: modules in a block, from Flax path to PyTorch name, templates.
      outside: the other modules.
      pointwise: last names of the dense modules that are 1x1 convolutions there.
      inner_prefix: what the names of a net without its head lack.
      wrapper: the entry of a `.pth` file that its own loader reads.
      patch_size, focal_factor, stem_padding: the only ones it knows; None for any.
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
        """The name of the stem's weight, which tells the dialects apart."""
        return self.outside["patch_embed/proj"] + ".weight"

    def key_of(self, path: str, *, use_postln: bool) -> str | None:
        """The PyTorch name of the parameter at a Flax path; None if it has no place."""
        for pattern, _, _, template in self._rows:
            if match := pattern.fullmatch(path):
                fields = {k: v for k, v in match.groupdict().items() if v is not None}
                leaf = fields.pop("leaf", None)
                if "s" in fields:
                    fields["next"] = str(int(fields["s"]) + 1)
                key = template.format(**fields, post="_post" if use_postln else "")
                return key + {None: "", "bias": ".bias"}.get(leaf, ".weight")
        return None

    def path_of(self, key: str) -> str | None:
        """The Flax path of a PyTorch name; None for a name that this table lacks."""
        for _, pattern, flax, _ in self._rows:
            if match := pattern.fullmatch(key):
                fields = match.groupdict()
                leaf = fields.pop("leaf", None)
                if "next" in fields:
                    fields["s"] = str(int(fields["next"]) - 1)
                path = flax.format(**fields)
                if leaf is None:
                    return path
                if leaf == "weight":
                    is_norm = re.search(r"(^|/)(norm\d*|ln)$", path)
                    leaf = "scale" if is_norm else "kernel"
                return f"{path}/{leaf}"
        return None

    def check_can_be(self, encoder: FocalNetEncoder) -> None:
        """Raises SetupError for a net that the implementation can't be."""
        for option in ("patch_size", "focal_factor", "stem_padding"):
            known, value = getattr(self, option), getattr(encoder, option)
            if option == "stem_padding" and not encoder.use_conv_embed:
                continue
            if known not in (None, value):
                raise SetupError(
                    f"{self.name}'s FocalNet always has {option}={known}; the model has "
                    f"{value}: microsoft's can be any (--dialect=microsoft)"
                )

    def to_torch(self, path: str, array: np.ndarray) -> np.ndarray:
        """Lays out a Flax array as PyTorch has it; a view."""
        if not path.endswith("/kernel"):
            return array
        array = np.moveaxis(array, (-1, -2), (0, 1))
        return array[..., None, None] if self._is_pointwise(path) else array

    def from_torch(self, path: str, array: np.ndarray) -> np.ndarray | None:
        """Lays out a PyTorch array as Flax has it, a view; None for another layout."""
        if not path.endswith("/kernel"):
            return array if array.ndim == 1 else None
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
        """Both templates of each module, first as patterns for its parameters."""
        in_block = {
            f"{_BLOCK}/{flax}": f"{self.block}.{torch}"
            for flax, torch in self.in_block.items()
        }
        return [
            (
                _compile(flax, separator="/", leaves="kernel|bias|scale"),
                _compile(torch, separator=r"\.", leaves="weight|bias"),
                flax,
                torch,
            )
            for flax, torch in (self.outside | in_block).items()
        ]


def _compile(template: str, *, separator: str, leaves: str) -> re.Pattern:
    pattern = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    for field in _INTEGER_FIELDS:
        pattern = pattern.replace(f"{{{field}}}", rf"(?P<{field}>\d+)")
    pattern = pattern.replace("{post}", "(?:_post)?")
    if "gamma" not in template:  # else it is a parameter, not a module
        pattern += rf"{separator}(?P<leaf>{leaves})"
    return re.compile(pattern)


# microsoft/FocalNet: `classification/focalnet.py`, and its backbones for detection and
# segmentation, which have a norm for each stage in place of the classifier's.
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

# huggingface/pytorch-image-models: `timm/models/focalnet.py`. The downsampling stands at
# the start of the stage it leads to.
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

# huggingface/transformers: `FocalNetForImageClassification`; `FocalNetModel` lacks the
# inner prefix and the classifier.
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
    },
    pointwise=frozenset({"h"}),
    inner_prefix="focalnet.",
    focal_factor=2,
    stem_padding=2,
)

DIALECTS = {dialect.name: dialect for dialect in (MICROSOFT, TIMM, TRANSFORMERS)}
