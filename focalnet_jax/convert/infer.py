"""Which model weights belong to, from their shapes."""

import itertools
import re
from typing import Any

from focalnet_jax.errors import SetupError
from focalnet_jax.models.variants import ENCODER_OPTIONS, VARIANTS

Shapes = dict[str, tuple[int, ...]]

# Options that leave no trace in the weights and change what is computed.
_UNSEEN = ("normalize_modulator", "use_postln", "stem_padding")
_DISPUTED = ("focalnet_large_fl4", "focalnet_xlarge_fl4")  # see `create_model`


def visible_settings(shapes: Shapes, *, use_postln: bool | None = None) -> dict[str, Any]:
    """The options of `create_model` or `create_backbone` that the weights show.

    Args:
      shapes: of the parameters in Flax's layout, by Flax path.
      use_postln: if the source's names show it.

    Raises:
      SetupError: too little is there to tell.
    """

    def shape_of(path):
        if path not in shapes:
            raise SetupError(
                f"the weights lack {path}, so their model can't be inferred: name it"
            )
        return shapes[path]

    def indices(pattern):
        matches = (re.match(pattern, path) for path in shapes)
        return sorted({int(match[1]) for match in matches if match})

    kernel_size, _, in_channels, embed_dim = shape_of("patch_embed/proj/kernel")
    depths, levels, windows, growths = [], [], [], set()
    for stage in indices(r"layers_(\d+)/"):
        blocks = f"layers_{stage}/blocks_"
        depths.append(len(indices(rf"{blocks}(\d+)/")))
        kernels = f"{blocks}0/modulation/focal_layers_"
        levels.append(len(indices(rf"{kernels}(\d+)/")))
        sizes = [shape_of(f"{kernels}{i}/kernel")[0] for i in range(max(levels[-1], 1))]
        windows.append(sizes[0])
        growths |= {after - before for before, after in itertools.pairwise(sizes)}
    downsample = shapes.get("layers_0/downsample/proj/kernel")
    overlaps = downsample[0] == 3 if downsample else kernel_size == 7
    mlps = [
        shape_of(f"layers_{stage}/blocks_0/mlp/fc1/kernel")
        for stage in range(len(depths))
    ]

    settings = dict(
        depths=tuple(depths),
        embed_dim=embed_dim,
        focal_levels=tuple(levels),
        focal_windows=tuple(windows),
        patch_size=4 if overlaps else kernel_size,
        use_conv_embed=overlaps,
        use_layerscale="layers_0/blocks_0/gamma_1" in shapes,
        use_postln_in_modulation="layers_0/blocks_0/modulation/ln/scale" in shapes,
        mlp_ratio=_mlp_ratio(mlps),
        in_channels=in_channels,
    )
    if len(growths) == 1:
        settings["focal_factor"] = growths.pop()
    if use_postln is not None:
        settings["use_postln"] = use_postln
    return settings | head_settings(shapes)


def _mlp_ratio(mlps: list[tuple[int, int]]) -> float:
    """A ratio that gives each width its hidden width, which is rounded down."""
    width, hidden_dim = max(mlps)
    ratios = hidden_dim / width, (hidden_dim + 0.5) / width
    fitting = (r for r in ratios if all(int(w * r) == hidden for w, hidden in mlps))
    return next(fitting, ratios[0])


def head_settings(shapes: Shapes) -> dict[str, Any]:
    """What the weights show of what comes after the encoder.

    A classifier's `num_classes`, or `out_stages` and `out_norm` of a backbone.
    """
    if any(re.match(r"(norm|head)/", path) for path in shapes):
        head = shapes.get("head/bias")
        return {"num_classes": head[0] if head else 0}
    stages = {int(m[1]) for path in shapes if (m := re.match(r"layers_(\d+)/", path))}
    normed = {int(m[1]) for path in shapes if (m := re.match(r"norm(\d+)/", path))}
    return {"out_stages": tuple(sorted(normed or stages)), "out_norm": bool(normed)}


def nearest_variant(settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The variant with the fewest differences, and what overrides it."""
    defaults = {name: field.default for name, field in ENCODER_OPTIONS.items()}
    head = dict(num_classes=1000, out_norm=True)

    def overrides(name):
        variant = head | defaults | VARIANTS[name]
        if "out_stages" in settings:
            variant["out_stages"] = tuple(range(len(settings["depths"])))
        differences = {k: v for k, v in settings.items() if variant[k] != v}
        if "out_stages" in settings:  # says that it is a backbone
            differences["out_stages"] = settings["out_stages"]
        return differences

    name = min(VARIANTS, key=lambda name: len(overrides(name)))
    return name, overrides(name)


def unseen_options(name: str, settings: dict[str, Any], overrides: dict[str, Any]) -> str:
    """Says what the weights can't show, and what is taken for it.

    Args:
      name: the variant.
      settings: from `visible_settings`.
      overrides: what was chosen beside the name, and needs no saying.
    """
    defaults = {option: ENCODER_OPTIONS[option].default for option in _UNSEEN}
    taken = {
        option: (defaults | VARIANTS[name])[option]
        for option in _UNSEEN
        if option not in settings and option not in overrides
    }
    if not settings.get("use_conv_embed"):
        taken.pop("stem_padding", None)  # there is none
    if not taken:
        return ""
    values = ", ".join(f"{option}={value}" for option, value in taken.items())
    note = f"not visible in the weights, so as in {name}: {values}"
    if "normalize_modulator" in taken and name in _DISPUTED:
        note += "; sources disagree about normalize_modulator of this variant"
    if "stem_padding" in taken and "out_stages" in settings:
        note += (
            "; backbones for dense prediction have stem_padding=3 in the official code, "
            "2 in FocalNet-DINO"
        )
    return note
