"""The model that weights belong to, found from the shapes of the weights."""

import itertools
import re
from typing import Any

from focalnet_jax.errors import SetupError
from focalnet_jax.models.variants import ENCODER_OPTIONS, VARIANTS

Shapes = dict[str, tuple[int, ...]]

# These options change what is computed and leave no trace in the weights.
_UNSEEN = ("normalize_modulator", "use_postln", "stem_padding")
_DISPUTED = ("focalnet_large_fl4", "focalnet_xlarge_fl4")  # See `create_model`.


def visible_settings(shapes: Shapes, *, use_postln: bool | None = None) -> dict[str, Any]:
    """The options of `create_model` or `create_backbone` that the weights show.

    Args:
      shapes: the parameters' shapes in Flax's layout, by Flax path.
      use_postln: whether norms come after the branches, if the names show it.

    Raises:
      SetupError: a parameter that is needed to tell is missing.
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
    """Finds a ratio such that `int(width * ratio)` is the hidden width in every stage.

    Args:
      mlps: width and hidden width of each stage.
    """
    width, hidden_dim = max(mlps)
    ratios = hidden_dim / width, (hidden_dim + 0.5) / width
    fitting = (r for r in ratios if all(int(w * r) == hidden for w, hidden in mlps))
    return next(fitting, ratios[0])


def head_settings(shapes: Shapes) -> dict[str, Any]:
    """The options that the weights show of what comes after the encoder.

    They are `num_classes` for a classifier, `out_stages` and `out_norm` for a backbone.
    """
    if any(re.match(r"(norm|head)/", path) for path in shapes):
        head = shapes.get("head/bias")
        return {"num_classes": head[0] if head else 0}
    stages = {int(m[1]) for path in shapes if (m := re.match(r"layers_(\d+)/", path))}
    normed = {int(m[1]) for path in shapes if (m := re.match(r"norm(\d+)/", path))}
    return {"out_stages": tuple(sorted(normed or stages)), "out_norm": bool(normed)}


def nearest_variant(settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The variant with the fewest differences from `settings`, and these differences."""
    defaults = {name: field.default for name, field in ENCODER_OPTIONS.items()}
    head = dict(num_classes=1000, out_norm=True)

    def overrides(name):
        variant = head | defaults | VARIANTS[name]
        if "out_stages" in settings:
            variant["out_stages"] = tuple(range(len(settings["depths"])))
        differences = {k: v for k, v in settings.items() if variant[k] != v}
        if "out_stages" in settings:  # This override says that it is a backbone.
            differences["out_stages"] = settings["out_stages"]
        return differences

    name = min(VARIANTS, key=lambda name: len(overrides(name)))
    return name, overrides(name)


def unseen_options(name: str, settings: dict[str, Any], overrides: dict[str, Any]) -> str:
    """Says which options the weights cannot show, and which values are taken for them.

    Args:
      name: the name of the variant.
      settings: the result of `visible_settings`.
      overrides: options that were chosen explicitly, which are not mentioned.

    Returns:
      A sentence, which is empty if there are no such options.
    """
    defaults = {option: ENCODER_OPTIONS[option].default for option in _UNSEEN}
    taken = {
        option: (defaults | VARIANTS[name])[option]
        for option in _UNSEEN
        if option not in settings and option not in overrides
    }
    if not settings.get("use_conv_embed"):
        taken.pop("stem_padding", None)  # Patches that do not overlap have no padding.
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
