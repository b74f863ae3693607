"""The model that weights belong to, found from their shapes and what lies beside them.

Shapes come first, because weights of other shapes do not fit. What they do not show is
taken from the caller, then from the files beside the weights, then from the nearest
variant. The last is a guess, and a note says so.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

from focalnet_jax.convert.configs import Beside
from focalnet_jax.convert.names import MatchedWeights
from focalnet_jax.errors import SetupError
from focalnet_jax.heads import Segmenter
from focalnet_jax.heads.segmenter import SEGMENTER_VALUES
from focalnet_jax.models import FocalNetEncoder
from focalnet_jax.models.variants import ENCODER_OPTIONS, VARIANTS

Shapes = dict[str, tuple[int, ...]]

# These options change what is computed and leave no trace in the weights.
_UNSEEN = ("normalize_modulator", "use_postln", "stem_padding")
_DISPUTED = ("focalnet_large_fl4", "focalnet_xlarge_fl4")  # See `create_model`.


def find_model(
    weights: MatchedWeights,
    *,
    name: str | None = None,
    beside: Beside | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """Finds the model of weights.

    Args:
      weights: the weights.
      name: the name of the variant, if the caller gives it.
      beside: what the files beside the weights say.
      options: options that the caller gives. They decide what shapes leave open; they
        are not part of the result.

    Returns:
      A name; overrides for `create_model`, for `create_backbone` if `out_stages` is
      among them, beside `reconstruct=True` for `create_masked_model`, or beside
      `segment=True` for `create_segmenter`; and notes about guesses and about what
      contradicts each other.

    Raises:
      SetupError: too few tensors are there to tell.
    """
    beside, options = beside or Beside(), options or {}
    given = {**beside.implied, **beside.stated}
    if "patch_size" in options:  # The overlapping stem has patch_size=4.
        given["use_conv_embed"] = options["patch_size"] == 4
    given |= options
    try:
        shown = visible_settings(
            weights.shapes, use_postln=weights.use_postln, given=given
        )
    except SetupError:
        if name is None:
            raise
        # The name says what is missing, and `fit_to_model` lists it.
        shown = head_settings(weights.shapes)
    stated, notes = _unshown(beside, shown, options)
    if name is None:
        name, overrides = nearest_variant(shown | stated)
    else:
        # A name says nothing about the head, so the weights decide about it. If the
        # rest does not fit the name, `fit_to_model` says so.
        variant = _options_of(name)
        differences = {k: v for k, v in stated.items() if variant.get(k) != v}
        overrides = head_settings(weights.shapes) | differences
    settled = (beside.implied.keys() | beside.stated.keys()) - {"num_classes"}
    guesses = _guesses(weights, name, shown, settled=settled | options.keys())
    return name, overrides, (*notes, *guesses)


def contradictions(beside: Beside, encoder: FocalNetEncoder) -> tuple[str, ...]:
    """Says where a model differs from what the files say and weights do not show."""
    said = {**beside.implied, **beside.stated}
    options = [
        option
        for option in ("normalize_modulator", "use_postln")
        if option in said and said[option] != getattr(encoder, option)
    ]
    if not options:
        return ()
    here = _listed({option: getattr(encoder, option) for option in options})
    there = _listed({option: said[option] for option in options})
    return (f"{beside.origin} beside the weights says {there}; the model has {here}",)


def _unshown(
    beside: Beside, shown: dict[str, Any], options: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the files beside weights say and shapes do not show, and contradictions."""
    stated, against_shapes, against_options = {}, {}, {}
    for option, value in {**beside.implied, **beside.stated}.items():
        if option in shown:
            if option in beside.stated and shown[option] != value:
                against_shapes[option] = shown[option]
        elif option not in ENCODER_OPTIONS:
            pass  # It is `num_classes`, and the weights have no head.
        elif option in options and options[option] != value:
            if option in beside.stated:
                against_options[option] = options[option]
        else:
            stated[option] = value
    notes = [
        f"{beside.origin} beside the weights says "
        f"{_listed({option: beside.stated[option] for option in taken})}; {verb} "
        f"{_listed(taken)}, and this is taken"
        for verb, taken in (
            ("the weights have", against_shapes),
            ("the caller gives", against_options),
        )
        if taken
    ]
    return stated, tuple(notes)


def visible_settings(
    shapes: Shapes,
    *,
    use_postln: bool | None = None,
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The options that the weights show, for the function that makes their kind of model.

    Args:
      shapes: the parameters' shapes in Flax's layout, by Flax path.
      use_postln: whether norms come after the branches, if the names show it.
      given: options that decide where shapes fit several values.

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

    given = given or {}
    *stem, in_channels, embed_dim = shape_of("patch_embed/proj/kernel")
    depths, levels, windows, growths, global_windows = [], [], [], set(), []
    for stage in indices(r"layers_(\d+)/"):
        blocks = f"layers_{stage}/blocks_"
        depths.append(len(indices(rf"{blocks}(\d+)/")))
        kernels = f"{blocks}0/modulation/focal_layers_"
        count = len(indices(rf"{kernels}(\d+)/"))
        sizes = [shape_of(f"{kernels}{i}/kernel")[:-2] for i in range(max(count, 1))]
        # A causal net has one for the global level, too: a row along the first axis.
        is_causal = count - 1 == gated_levels(shapes, f"{blocks}0/modulation")
        if is_causal and set(sizes[-1][1:]) <= {1}:
            global_windows.append(sizes.pop()[0])
            count -= 1
        levels.append(count)
        windows.append(_one_if_same(sizes[0]))
        growths |= {
            _one_if_same([b - a for a, b in zip(before, after)])
            for before, after in itertools.pairwise(sizes)
        }
    downsample = shapes.get("layers_0/downsample/proj/kernel")
    overlaps = 3 in downsample[:-2] if downsample else 7 in stem
    if stem_is_ambiguous(shapes):
        overlaps = given.get("use_conv_embed", True)
    mlps = [
        shape_of(f"layers_{stage}/blocks_0/mlp/fc1/kernel")
        for stage in range(len(depths))
    ]

    patch = tuple(min(size, 4) for size in stem) if overlaps else tuple(stem)
    settings = dict(
        depths=tuple(depths),
        embed_dim=embed_dim,
        focal_levels=tuple(levels),
        focal_windows=tuple(windows),
        # A single number is for images.
        patch_size=_one_if_same(patch) if len(stem) == 2 else patch,
        use_conv_embed=overlaps,
        use_layerscale="layers_0/blocks_0/gamma_1" in shapes,
        use_postln_in_modulation="layers_0/blocks_0/modulation/ln/scale" in shapes,
        mlp_ratio=_mlp_ratio(mlps, given.get("mlp_ratio")),
        in_channels=in_channels,
        use_depthwise_bias=("layers_0/blocks_0/modulation/focal_layers_0/bias" in shapes),
        causal=bool(global_windows),
    )
    if global_windows:
        settings["causal_window"] = global_windows[0]
    if len(growths) == 1:
        settings["focal_factor"] = growths.pop()
    if use_postln is not None:
        settings["use_postln"] = use_postln
    return settings | head_settings(shapes)


def gated_levels(shapes: Shapes, modulation: str) -> int | None:
    """How many focal levels an operator at a Flax path has gates for; None if unknown."""
    f, h = (shapes.get(f"{modulation}/{name}/bias") for name in "fh")
    # The outputs of `f` are query, context, a gate for each level and the global gate.
    return f[0] - 2 * h[0] - 1 if f and h else None


def _one_if_same(sizes: Sequence[int]) -> int | tuple[int, ...]:
    """Sizes of each axis as options have them: one number if all are the same."""
    return sizes[0] if len(set(sizes)) == 1 else tuple(sizes)


def stem_is_ambiguous(shapes: Shapes) -> bool:
    """Whether a stem of 7x7 may be an overlapping convolution as well as patches.

    With several stages, the kernel of the downsampling tells them apart.
    """
    stem = shapes.get("patch_embed/proj/kernel", ())
    return 7 in stem[:-2] and "layers_0/downsample/proj/kernel" not in shapes


def _mlp_ratio(mlps: list[tuple[int, int]], given: Any) -> float:
    """Finds a ratio such that `int(width * ratio)` is the hidden width in every stage.

    Args:
      mlps: width and hidden width of each stage.
      given: a ratio that is preferred if it fits.
    """
    width, hidden_dim = max(mlps)
    ratios = hidden_dim / width, (hidden_dim + 0.5) / width
    if isinstance(given, int | float):
        ratios = given, *ratios
    fitting = (r for r in ratios if all(int(w * r) == hidden for w, hidden in mlps))
    return next(fitting, ratios[0])


def head_settings(shapes: Shapes) -> dict[str, Any]:
    """The options that the weights show of what comes after the encoder.

    They are `num_classes` for a classifier, `out_stages` and `out_norm` for a backbone,
    `reconstruct` for a masked model, and `segment`, `num_classes`, `head_channels` and
    `auxiliary_channels` for a segmenter.
    """
    if "mask_token" in shapes:
        return {"reconstruct": True}
    if "decode_head/conv_seg/kernel" in shapes:
        *_, channels, num_classes = shapes["decode_head/conv_seg/kernel"]
        auxiliary = shapes.get("auxiliary_head/conv_seg/kernel", (0, 0))
        return dict(
            segment=True,
            num_classes=num_classes,
            head_channels=channels,
            auxiliary_channels=auxiliary[-2],
        )
    if any(re.match(r"(norm|head)/", path) for path in shapes):
        head = shapes.get("head/bias")
        return {"num_classes": head[0] if head else 0}
    stages = {int(m[1]) for path in shapes if (m := re.match(r"layers_(\d+)/", path))}
    normed = {int(m[1]) for path in shapes if (m := re.match(r"norm(\d+)/", path))}
    return {"out_stages": tuple(sorted(normed or stages)), "out_norm": bool(normed)}


def nearest_variant(settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The variant with the fewest differences from `settings`, and these differences."""
    head: dict[str, Any] = dict(num_classes=1000, out_norm=True)
    head |= dict(reconstruct=False, segment=False)
    if "segment" in settings:
        fields = dataclasses.fields(Segmenter)
        head |= {f.name: f.default for f in fields if f.name in SEGMENTER_VALUES}

    def overrides(name):
        variant = head | _options_of(name)
        if "out_stages" in settings:
            variant["out_stages"] = tuple(range(len(settings["depths"])))
        differences = {k: v for k, v in settings.items() if variant[k] != v}
        if "out_stages" in settings:  # This override says that it is a backbone.
            differences["out_stages"] = settings["out_stages"]
        return differences

    name = min(VARIANTS, key=lambda name: len(overrides(name)))
    return name, overrides(name)


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{option}={value}" for option, value in options.items())


def _options_of(name: str) -> dict[str, Any]:
    """All options of a variant that has this name; the defaults if there is none."""
    defaults = {option: field.default for option, field in ENCODER_OPTIONS.items()}
    return defaults | VARIANTS.get(name, {})


def _guesses(
    weights: MatchedWeights, name: str, shown: dict[str, Any], *, settled: Set[str]
) -> tuple[str, ...]:
    """Says which options nothing shows or states, and which values are taken for them.

    Args:
      weights: the weights.
      name: the name of the variant.
      shown: the result of `visible_settings`.
      settled: the options that the caller or a file beside the weights states.
    """
    if name not in VARIANTS:  # An error follows when the model is made.
        return ()
    variant = _options_of(name)
    dialect = weights.dialect
    assert dialect is not None  # Flax paths come with a description of their model.
    open_options = [o for o in _UNSEEN if o not in settled and o not in shown]
    taken = {option: variant[option] for option in open_options}
    has_stem = shown.get("use_conv_embed", variant["use_conv_embed"])
    if not has_stem or dialect.stem_padding is not None:
        taken.pop("stem_padding", None)  # There is no padding, or only one is known.
    is_open = not {"focal_factor"} & (settled | shown.keys()) and not dialect.focal_factor
    if is_open and max(shown.get("focal_levels", (2,))) == 1:
        taken["focal_factor"] = variant["focal_factor"]  # for levels that are added
    notes = []
    if taken:
        note = f"not visible in the weights, so as in {name}: {_listed(taken)}"
        if "normalize_modulator" in taken and name in _DISPUTED:
            note += "; sources disagree about normalize_modulator of this variant"
        if "stem_padding" in taken and {"out_stages", "segment"} & shown.keys():
            note += (
                "; backbones for dense prediction have stem_padding=3 in the official "
                "code, 2 in FocalNet-DINO"
            )
        notes.append(note)
    is_open = not settled & {"use_conv_embed", "patch_size"} and not dialect.patch_size
    if is_open and stem_is_ambiguous(weights.shapes):
        notes.append(
            "not visible in the weights: whether the stem of 7x7 overlaps "
            "(use_conv_embed=True, which is taken) or makes patches (patch_size=7)"
        )
    if shown.get("out_norm") is False and not settled & {"num_classes", "out_stages"}:
        notes.append(
            "the weights have neither norms of outputs nor a head, so they are taken for "
            f"a backbone with out_stages={shown['out_stages']}, out_norm=False"
        )
    return tuple(notes)
