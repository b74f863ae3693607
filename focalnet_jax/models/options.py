"""What values the options of a model take; `FocalNetEncoder` says what they mean."""

from typing import Any

from focalnet_jax.errors import OptionError, shown
from focalnet_jax.models.blocks import REMAT_POLICIES
from focalnet_jax.ops import IMPLEMENTATIONS
from focalnet_jax.values import (
    Either,
    Flag,
    NotAllowed,
    Number,
    Several,
    Text,
    Values,
    Whole,
)

_MOST_STAGES = 16
_MOST_AXES = 4
RATE = Number(0, 1, excludes_most=True)

# Those of 8 bits are formats of storage: nothing here computes with them.
FLOAT_TYPES = ("float32", "bfloat16", "float16", "float64")

NUM_CLASSES = Whole(0, 2**31 - 1)
OUT_STAGES = Several(Whole(0, _MOST_STAGES - 1), most=_MOST_STAGES)


def _per_axis(values: Values) -> Values:
    return Either((values, Several(values, least=1, most=_MOST_AXES)))


# Those of `modulation` and of both types aren't told by a value alone.
OPTION_VALUES: dict[str, Values] = {
    "depths": Several(Whole(1, 1000), least=1, most=_MOST_STAGES),
    "embed_dim": Whole(1, 2**16),
    "focal_levels": Several(Whole(1, 64), least=1, most=_MOST_STAGES),
    "focal_windows": Several(_per_axis(Whole(1, 4096)), least=1, most=_MOST_STAGES),
    "focal_factor": _per_axis(Whole(0, 1024)),
    "mlp_ratio": Number(0, 1e3, excludes_least=True),
    "patch_size": _per_axis(Whole(1, 1024)),
    "downsample_stride": _per_axis(Whole(1, 1024)),
    "use_conv_embed": Flag(),
    "stem_padding": Whole(0, 1024),
    "use_layerscale": Flag(),
    "layerscale_value": Number(-1e3, 1e3),
    "use_postln": Flag(),
    "use_postln_in_modulation": Flag(),
    "normalize_modulator": Flag(),
    "use_depthwise_bias": Flag(),
    "causal": Flag(),
    "causal_window": Whole(1, 2**16),
    "global_axes": Several(Whole(0, _MOST_AXES - 1), most=_MOST_AXES),
    "drop_rate": RATE,
    "drop_path_rate": RATE,
    "in_channels": Whole(1, 2**16),
    "pad_to_patch": Flag(),
    "remat": Text(REMAT_POLICIES),
    "scan": Flag(),
    "implementation": Text(IMPLEMENTATIONS),
}


def convert_option(option: str, value: Any, values: Values | None = None) -> Any:
    """The value of an option as its one Python type.

    Args:
      option: its name.
      value: what was given.
      values: what the option takes; by default as `OPTION_VALUES` has it, where it does.

    Raises:
      OptionError: the value is not allowed.
    """
    values = values or OPTION_VALUES.get(option)
    if values is None:
        return value
    try:
        return values.convert(value)
    except NotAllowed as problem:
        raise OptionError(option, f"={shown(value)} {problem}") from problem
