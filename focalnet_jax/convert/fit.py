"""Parameters fitted to a model, either strictly or with changes that are asked for."""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from focalnet_jax.convert.dialects import SEGMENTER_HEADS
from focalnet_jax.convert.infer import gated_levels
from focalnet_jax.convert.misfits import check_names_and_shapes
from focalnet_jax.convert.names import MatchedWeights, Parameter
from focalnet_jax.convert.precision import cast, dtype_notes
from focalnet_jax.convert.reading import Changes
from focalnet_jax.errors import SetupError, argument, counted
from focalnet_jax.heads import Segmenter
from focalnet_jax.models import (
    FocalNet,
    FocalNetBackbone,
    FocalNetEncoder,
    abstract_variables,
)
from focalnet_jax.models.size import Model
from focalnet_jax.trees import named_leaves, nested
from focalnet_jax.weights.kernel_sizes import is_focal_kernel, resized_kernel

_STEM = "patch_embed/proj/kernel"
# The most paths that a note lists one by one.
_LISTED = 16
# The paths of a segmenter's heads, and of their layers that depend on the classes; of
# what a model has beside encoder and norms; and of all that is not the encoder's.
_SEGMENTER_HEAD = re.compile(rf"({'|'.join(SEGMENTER_HEADS)})/.*")
_CONV_SEG = re.compile(rf"({'|'.join(SEGMENTER_HEADS)})/conv_seg/.*")
_HEAD = re.compile(rf"(head|decoder)/.*|mask_token|{_SEGMENTER_HEAD.pattern}")
_NORM_OR_HEAD = re.compile(rf"norm/.*|{_HEAD.pattern}")
_AFTER_ENCODER = re.compile(rf"norm\d*/.*|{_HEAD.pattern}")


@dataclasses.dataclass(frozen=True)
class FittedParams:
    """Parameters that fit a model.

    Attributes:
      params: nested dict of numpy arrays.
      batch_stats: the same of running averages; empty for a model that has none.
      notes: sentences for the user about what was changed or left out.
      dtype_notes: sentences for the user about changes of precision.
    """

    params: dict[str, Any]
    batch_stats: dict[str, Any]
    notes: tuple[str, ...]
    dtype_notes: tuple[str, ...]

    @property
    def variables(self) -> dict[str, Any]:
        """What the model is applied with."""
        averages = {"batch_stats": self.batch_stats} if self.batch_stats else {}
        return {"params": self.params} | averages


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
    variables = abstract_variables(model)
    expected = named_variables(variables)
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
    params, batch_stats = (
        nested({path: named[path] for path in named_leaves(variables.get(name, {}))})
        for name in ("params", "batch_stats")
    )
    return FittedParams(params, batch_stats, notes, dtype_notes(before, after))


def named_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of all collections of variables by path.

    No path is in two collections: BatchNorm has `scale` in one, `mean` in the other.
    """
    trees = (variables[name] for name in ("params", "batch_stats") if name in variables)
    return {path: leaf for tree in trees for path, leaf in named_leaves(tree).items()}


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
        reset = _of_new_head(given, expected, model)
        given = {path: p for path, p in given.items() if not reset.fullmatch(path)}
        new += [path for path in expected if reset.fullmatch(path)]
        notes += (f"new: {_listed(new)}",) if new else ()
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
        if changes.resize_kernels and is_focal_kernel(path) and array.ndim == len(shape):
            causal = model.encoder.causal
            replace(path, resized_kernel(array, shape[:-2], causal=causal))
        elif changes.add_levels and "/modulation/f/" in path:
            replace(path, _add_gates(array, shape[-1]))
    return given, new, notes


def _listed(paths: Sequence[str]) -> str:
    """Paths of parameters, or of many paths the modules in which they lie."""
    if len(paths) <= _LISTED:
        return ", ".join(paths)
    modules = dict.fromkeys(path.partition("/")[0] for path in paths)
    return f"{', '.join(modules)} ({len(paths)} arrays)"


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
    head = None
    if isinstance(model, FocalNet) and not model.num_classes:
        head = _HEAD
    elif isinstance(model, FocalNetBackbone):
        head = _SEGMENTER_HEAD if model.out_norm else _NORM_OR_HEAD
    left_out = [path for path in given if head and head.fullmatch(path)]
    if left_out:
        keys = [given.pop(path).key for path in left_out]
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        notes += (f"the model has no head: {', '.join(keys[:3])}{more} are left out",)
    return given, notes


def _of_new_head(
    given: Collection[str], expected: Collection[str], model: Model
) -> re.Pattern:
    """The paths of what a new head replaces, or makes."""
    is_segmenter = any(_SEGMENTER_HEAD.fullmatch(path) for path in given)
    if isinstance(model, Segmenter) and is_segmenter:
        return _CONV_SEG
    norms = [path for path in expected if re.match(r"norm\d*/", path)]
    keeps_norms = all(path in given for path in norms)
    is_backbone = isinstance(model, FocalNetBackbone)
    return _HEAD if keeps_norms and not is_backbone else _AFTER_ENCODER


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


def _add_gates(array: np.ndarray, outputs: int) -> np.ndarray:
    """Puts zeros before the last output of `f`, which is the global level's gate."""
    added = outputs - array.shape[-1]
    if added <= 0:
        return array
    zeros = np.zeros((*array.shape[:-1], added), array.dtype)
    return np.concatenate([array[..., :-1], zeros, array[..., -1:]], axis=-1)


def _new_params(model: Model, paths: list[str], seed: int) -> dict[str, np.ndarray]:
    """The initial variables at some paths. Under jit, no others are computed."""
    spatial = model.encoder.total_stride
    images = jnp.zeros((1, *spatial, model.encoder.in_channels))

    @jax.jit
    def initialize():
        named = named_variables(model.init(jax.random.key(seed), images))
        return {path: named[path] for path in paths}

    return {path: np.array(array) for path, array in initialize().items()}


def _check_values(given: dict[str, Parameter], *, allow_nan: bool) -> None:
    for path, parameter in given.items():
        # The count of BatchNorm's batches, which is no parameter.
        allowed = jnp.integer if path.endswith("/count") else jnp.floating
        if not jnp.issubdtype(parameter.array.dtype, allowed):
            raise SetupError(
                f"{parameter.key} is {parameter.array.dtype}, not "
                + ("a whole number" if allowed is jnp.integer else "floating point")
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
