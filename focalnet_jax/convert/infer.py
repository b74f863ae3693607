"""Which model weights belong to, from their shapes."""

import itertools
import re
from typing import Any

from focalnet_jax.errors import SetupError
from focalnet_jax.models.variants import ENCODER_OPTIONS, VARIANTS

Shapes = dict[str, tuple[int, ...]]

# Options that leave no trace in the weights and change what is computed.
_UNSEEN = ("normalize_modulator", "use_postln", "stem_padding")


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
            raise SetupError(f"the weights lack {path}, so their model can't be inferred")
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
        sizes = [shape_of(f"{kernels}{i}/kernel")[0] for i in range(levels[-1])]
        windows.append(sizes[0] if sizes else 0)
        growths |= {after - before for before, after in itertools.pairwise(sizes)}
    downsample = shapes.get("layers_0/downsample/proj/kernel")
    overlaps = downsample[0] == 3 if downsample else kernel_size == 7
    width, hidden_dim = shape_of("layers_0/blocks_0/mlp/fc1/kernel")

    settings = dict(
        depths=tuple(depths),
        embed_dim=embed_dim,
        focal_levels=tuple(levels),
        focal_windows=tuple(windows),
        patch_size=4 if overlaps else kernel_size,
        use_conv_embed=overlaps,
        use_layerscale="layers_0/blocks_0/gamma_1" in shapes,
        use_postln_in_modulation="layers_0/blocks_0/modulation/ln/scale" in shapes,
        mlp_ratio=hidden_dim / width,
        in_channels=in_channels,
    )
    if len(growths) == 1:
        settings["focal_factor"] = growths.pop()
    if use_postln is not None:
        settings["use_postln"] = use_postln
    if "norm/scale" in shapes:
        head = shapes.get("head/kernel")
        settings["num_classes"] = head[1] if head else 0
    else:
        out_stages = tuple(indices(r"norm(\d+)/"))
        settings["out_stages"] = out_stages or tuple(range(len(depths)))
        settings["out_norm"] = bool(out_stages)
    return settings


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
    chosen = set(settings) | set(overrides)
    if not settings["use_conv_embed"]:
        chosen.add("stem_padding")  # there is none
    values = ", ".join(
        f"{option}={(defaults | VARIANTS[name])[option]}"
        for option in _UNSEEN
        if option not in chosen
    )
    return f"the weights do not show {values}: taken from {name}" if values else ""
