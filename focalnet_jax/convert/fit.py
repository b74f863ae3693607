"""Parameters fitted to a model, either strictly or with changes that are asked for."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from focalnet_jax.convert.infer import gated_levels
from focalnet_jax.convert.misfits import check_names_and_shapes
from focalnet_jax.convert.names import MatchedWeights, Parameter
from focalnet_jax.convert.precision import cast, dtype_notes
from focalnet_jax.errors import SetupError, argument, counted, shown
from focalnet_jax.image_size import ImageSize, parse_image_size
from focalnet_jax.models import (
    FocalNet,
    FocalNetBackbone,
    FocalNetEncoder,
    MaskedFocalNet,
    abstract_params,
)
from focalnet_jax.models.size import Model
from focalnet_jax.trees import named_leaves, nested
from focalnet_jax.values import SEED, Flag, NotAllowed, Several, Text

HEADS = ("reset", "in22k_to_in1k")
_STEM = "patch_embed/proj/kernel"
# The names of what a classifier or a masked model has beside encoder and norm, and of all
# parameters that are not the encoder's.
_HEAD = re.compile(r"(head|decoder)/.*|mask_token")
_AFTER_ENCODER = re.compile(rf"norm\d*/.*|{_HEAD.pattern}")


@dataclasses.dataclass(frozen=True)
class _Name(Text):
    """A name in a file, or a pattern of names; they may have any letters, or none."""

    def _convert(self, value: Any) -> str:
        if not isinstance(value, str):
            raise self._refuse()
        return str(value)


def _is_given(value: str) -> str | None:
    return None if value else "is empty: leave it out to take all names"


# What the attributes of `Changes` and `Reading` take. The variants know their own names,
# and `image_size` is read by `parse_image_size`.
_VALUES = {
    "head": Text(HEADS),
    "resize_kernels": Flag(),
    "add_levels": Flag(),
    "allow_nan": Flag(),
    "seed": SEED,
    "name": Text(),
    "wrapper": _Name(noun="name"),
    "prefix": _Name(noun="name", check=_is_given),
    "ignore": Several(_Name(noun="pattern"), most=10**6),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Changes:
    """What may differ between the weights and the model. The default allows nothing.

    Another number of channels needs no permission: a model with other `in_channels` than
    3 gets the stem of RGB weights adapted, and a note says how.

    Attributes:
      head: `"reset"` makes what stands after the encoder anew: the head of a classifier,
        for any number of classes, the norms of a backbone, or the decoder and the mask
        token of a masked model. `"in22k_to_in1k"` keeps the first 1,000 of the 21,842
        rows of the released ImageNet-22K heads, which are the classes of ImageNet-1K.
      resize_kernels: zero-pad or crop depthwise kernels around their centre, as the
        official recipes for dense prediction do; those of causal nets at their start.
      add_levels: keep the focal levels of the weights and add those that the model has
        beyond them. The gates of added levels are zero, and their kernels are those of
        a new model. The result of the model changes nevertheless, because the global
        level averages the last level, and because a normalised modulator is divided by
        the number of levels.
      allow_nan: allow NaN and infinity.
      seed: the seed of all new parameters.
    """

    head: str | None = None
    resize_kernels: bool = False
    add_levels: bool = False
    allow_nan: bool = False
    seed: int = 0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in _VALUES or (value is None and field.default is None):
                continue
            try:
                value = _VALUES[field.name].convert(value)
            except NotAllowed as problem:
                raise SetupError(
                    f"{argument(field.name)}={shown(value)} {problem}"
                ) from problem
            object.__setattr__(self, field.name, value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading(Changes):
    """All that may be said of how weights are read, into a model that is found for them.

    `load_model` and the command lines take these, so that each of them takes what an
    error names. Attributes, beside those of `Changes`:
      name: the name of the variant. None takes the recorded one or the nearest one.
      image_size: size in pixels of the images that the model is for: a number for
        squares, or height and width. None takes the recorded or the usual one.
      wrapper: the entry of a file that holds the weights.
      prefix: take only the names that begin so.
      ignore: shell-style patterns of names to leave out.
    """

    name: str | None = None
    image_size: ImageSize | None = None
    wrapper: str | None = None
    prefix: str | None = None
    ignore: Sequence[str] = ()

    def __post_init__(self):
        super().__post_init__()
        if self.image_size is None:
            return
        try:
            size = parse_image_size(self.image_size)
        except ValueError as error:
            raise SetupError(
                f"{argument('image_size')}={shown(self.image_size)} {error}"
            ) from error
        object.__setattr__(self, "image_size", size)


@dataclasses.dataclass(frozen=True)
class FittedParams:
    """Parameters that fit a model.

    Attributes:
      params: nested dict of numpy arrays.
      notes: sentences for the user about what was changed or left out.
      dtype_notes: sentences for the user about changes of precision.
    """

    params: dict[str, Any]
    notes: tuple[str, ...]
    dtype_notes: tuple[str, ...]


def fit_to_model(
    weights: MatchedWeights,
    model: Model,
    changes: Changes | None = None,
    *,
    keep_dtypes: bool = False,
) -> FittedParams:
    """Checks that weights fit a model and gives them the model's `param_dtype`.

    Args:
      weights: the weights.
      model: the model that is to take them.
      changes: what may differ between both; None allows nothing.
      keep_dtypes: leave the weights in their own precision.

    Raises:
      SetupError: names or shapes do not fit, or a parameter is not floating point or not
        finite. One message counts the names that are unknown, missing or doubled, and
        the shapes that are wrong, lists the first of them and, if it can be told, the
        cause.
    """
    changes = changes or Changes()
    expected = named_leaves(abstract_params(model))
    given, new, notes = _changed(weights, model, expected, changes)
    check_names_and_shapes(
        weights,
        model,
        given=given,
        new=new,
        expected=expected,
        allowed=dataclasses.asdict(changes),
    )
    _check_values(given, allow_nan=changes.allow_nan)

    before = {path: parameter.array.dtype for path, parameter in given.items()}
    after = before if keep_dtypes else {path: expected[path].dtype for path in given}
    named = {
        path: cast(parameter.key, parameter.array, after[path])
        for path, parameter in given.items()
    }
    if new:
        named |= _new_params(model, new, changes.seed)
    return FittedParams(nested(named), notes, dtype_notes(before, after))


def _changed(
    weights: MatchedWeights,
    model: Model,
    expected: dict[str, jax.ShapeDtypeStruct],
    changes: Changes,
) -> tuple[dict[str, Parameter], list[str], tuple[str, ...]]:
    """Returns the changed parameters, the paths of new parameters, and notes."""
    given, notes = _without_head(weights, model)
    new = []

    def replace(path, array):
        given[path] = dataclasses.replace(given[path], array=array)

    if changes.head == "reset":
        has_norm = any(path.startswith("norm/") for path in given)
        keeps_norm = not isinstance(model, FocalNetBackbone) and has_norm
        reset = _HEAD if keeps_norm else _AFTER_ENCODER
        given = {path: p for path, p in given.items() if not reset.fullmatch(path)}
        new += [path for path in expected if reset.fullmatch(path)]
        notes += (f"new: {', '.join(new)}",) if new else ()
    elif changes.head == "in22k_to_in1k":
        num_classes = len(given["head/bias"].array) if "head/bias" in given else 0
        if num_classes != 21_842:
            raise SetupError(
                f'{argument("head")}="in22k_to_in1k" is for the released heads of 21,842 '
                f"classes; {weights.origin} has {num_classes:,}"
            )
        for path in {"head/kernel", "head/bias"} & given.keys():
            replace(path, given[path].array[..., :1000])

    if adapted := _adapted_stem(given, expected):
        given[_STEM], note = adapted
        notes += (note,)
    if changes.add_levels:
        given = _with_global_levels_last(given, model.encoder)
        levels = [path for path in expected if _is_added(path, given, model.encoder)]
        new += levels
        count = sum(path.endswith("/kernel") for path in levels)
        notes += (f"new: {counted(count, 'kernel')} of added focal levels",)
        if levels:
            verb = "convolves" if model.encoder.causal else "averages"
            notes += (f"the global level now {verb} the last added one",)
            if model.encoder.normalize_modulator:
                notes += ("the modulator is now divided by more levels",)
    for path in expected.keys() & given.keys():
        array, shape = given[path].array, expected[path].shape
        is_focal = re.search(r"/focal_layers_\d+/kernel$", path)
        if changes.resize_kernels and is_focal and array.ndim == len(shape):
            replace(path, _resize(array, shape[:-2], causal=model.encoder.causal))
        elif changes.add_levels and "/modulation/f/" in path:
            replace(path, _add_gates(array, shape[-1]))
    return given, new, notes


def _adapted_stem(
    given: dict[str, Parameter], expected: dict[str, jax.ShapeDtypeStruct]
) -> tuple[Parameter, str] | None:
    """The stem of RGB weights for a model of other channels, as timm makes it, if needed.

    A single channel gets the sum of the three, so that an image in shades of grey gives
    what its copy in RGB gives. Several channels repeat red, green and blue, scaled such
    that their sum stays of the same size.
    """
    if _STEM not in given or _STEM not in expected:
        return None
    kernel, wanted = given[_STEM].array, expected[_STEM].shape
    channels = wanted[-2]
    if kernel.shape[-2] != 3 or channels == 3:
        return None
    exact = kernel.astype(np.float64)
    if channels == 1:
        adapted, how = exact.sum(axis=-2, keepdims=True), "summed for one channel"
    else:
        adapted = exact[..., np.arange(channels) % 3, :] * (3 / channels)
        how = f"repeated for {channels} channels and multiplied by 3/{channels}"
    parameter = dataclasses.replace(given[_STEM], array=adapted.astype(kernel.dtype))
    return parameter, f"the stem's kernels of red, green and blue are {how}"


def _without_head(
    weights: MatchedWeights, model: Model
) -> tuple[dict[str, Parameter], tuple[str, ...]]:
    """Leaves a head out where the model has nothing in its place."""
    given, notes = dict(weights.parameters), weights.notes
    if isinstance(model, MaskedFocalNet):
        return given, notes
    is_classifier = isinstance(model, FocalNet)
    if model.num_classes if is_classifier else model.out_norm:
        return given, notes
    head = _HEAD if is_classifier else re.compile(f"norm/.*|{_HEAD.pattern}")
    left_out = [path for path in given if head.fullmatch(path)]
    if left_out:
        keys = ", ".join(given.pop(path).key for path in left_out)
        notes += (f"the model has no head: {keys} are left out",)
    return given, notes


def _level_at(path: str, given: dict[str, Parameter]) -> tuple[int, int, int] | None:
    """Says of a depthwise parameter's path its stage, its level, and the levels given.

    Levels count from 0; the last number is how many the given block has gates for. None
    is for all other paths, and for blocks that lack what tells.
    """
    found = re.fullmatch(r"(layers_(\d+)/.*)/focal_layers_(\d+)/(kernel|bias)", path)
    if not found:
        return None
    ends = {f"{found[1]}/{name}/bias" for name in "fh"} & given.keys()
    shapes = {end: given[end].array.shape for end in ends}
    count = gated_levels(shapes, found[1])
    return None if count is None else (int(found[2]), int(found[3]), count)


def _with_global_levels_last(
    given: dict[str, Parameter], encoder: FocalNetEncoder
) -> dict[str, Parameter]:
    """Gives the kernels of causal global levels the place after the model's levels."""
    moved = {}
    for path, parameter in given.items():
        place = _level_at(path, given) if encoder.causal else None
        if place and place[1] == place[2] and place[0] < len(encoder.focal_levels):
            last = f"/focal_layers_{encoder.focal_levels[place[0]]}/"
            path = re.sub(r"/focal_layers_\d+/", last, path)
        moved[path] = parameter
    return moved


def _is_added(path: str, given: dict[str, Parameter], encoder: FocalNetEncoder) -> bool:
    """Whether a path of the model is that of a level which the given block lacks."""
    place = _level_at(path, given)
    if not place:
        return False
    stage, level, count = place
    # In a causal net the global level, which is none of these, has a kernel of its own.
    return count <= level < encoder.focal_levels[stage]


def _resize(kernel: np.ndarray, size: tuple[int, ...], *, causal: bool) -> np.ndarray:
    """Zero-pads or crops the spatial axes, which come first, around the centre.

    The centre is where the operator has it: of an even size, the first of both in the
    middle, and on the first axis of a causal net the last.
    """
    for axis, wanted in enumerate(size):
        have = kernel.shape[axis]
        before = (wanted - 1) // 2 - (have - 1) // 2
        if causal and axis == 0:
            before = wanted - have
        margins = [(0, 0)] * kernel.ndim
        margins[axis] = (max(before, 0), max(wanted - have - before, 0))
        start = max(-before, 0)
        kernel = np.take(np.pad(kernel, margins), range(start, start + wanted), axis)
    return kernel


def _add_gates(array: np.ndarray, outputs: int) -> np.ndarray:
    """Puts zeros before the last output of `f`, which is the global level's gate."""
    added = outputs - array.shape[-1]
    if added <= 0:
        return array
    zeros = np.zeros((*array.shape[:-1], added), array.dtype)
    return np.concatenate([array[..., :-1], zeros, array[..., -1:]], axis=-1)


def _new_params(model: Model, paths: list[str], seed: int) -> dict[str, np.ndarray]:
    """The initial parameters at some paths. Under jit, no others are computed."""
    spatial = model.encoder.total_stride
    images = jnp.zeros((1, *spatial, model.encoder.in_channels))

    @jax.jit
    def initialize():
        named = named_leaves(model.init(jax.random.key(seed), images)["params"])
        return {path: named[path] for path in paths}

    return {path: np.array(array) for path, array in initialize().items()}


def _check_values(given: dict[str, Parameter], *, allow_nan: bool) -> None:
    for parameter in given.values():
        if not jnp.issubdtype(parameter.array.dtype, jnp.floating):
            raise SetupError(
                f"{parameter.key} is {parameter.array.dtype}, not floating point"
            )
    if allow_nan:
        return
    counts = {p.key: int(np.sum(~np.isfinite(p.array))) for p in given.values()}
    bad = {key: count for key, count in counts.items() if count}
    if bad:
        first = next(iter(bad))
        raise SetupError(
            f"{len(bad)} of {len(given)} tensors hold NaN or infinity, the first "
            f"{first} with {bad[first]:,}; {argument('allow_nan', True)} takes them "
            "as they are"
        )
