"""Parameters of one model for another: strictly, or changed as asked."""

import collections
import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from focalnet_jax.convert.infer import nearest_variant, visible_settings
from focalnet_jax.convert.names import Parameter, Source
from focalnet_jax.errors import SetupError, did_you_mean
from focalnet_jax.models import FocalNet
from focalnet_jax.weights.description import HEAD_OPTIONS, Model

HEADS = ("reset", "in22k_to_in1k")
_TOP = re.compile(r"(norm\d*|head)/.*")  # all that isn't encoder


@dataclasses.dataclass(frozen=True)
class Changes:
    """What may differ between the weights and the model; by default nothing.

    Attributes:
      head: `"reset"` starts the head anew, for any number of classes, and for a backbone
        its norms; `"in22k_to_in1k"` keeps the first 1,000 of the 21,842 rows of the
        released ImageNet-22K heads, which are the classes of ImageNet-1K.
      resize_kernels: zero-pads or crops depthwise kernels around their centre, as the
        official recipes for dense prediction.
      add_levels: keeps the levels that are there; the gates of new ones start at zero,
        their kernels as in a new model. What is computed changes all the same: the
        global level averages the last one, and a normalised modulator is divided by more.
      allow_nan: lets NaN and infinity pass.
      seed: of everything that starts anew.
    """

    head: str | None = None
    resize_kernels: bool = False
    add_levels: bool = False
    allow_nan: bool = False
    seed: int = 0

    def __post_init__(self):
        if self.head is not None and self.head not in HEADS:
            raise SetupError(
                f"head={self.head!r} is unknown{did_you_mean(self.head, HEADS)}"
            )


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Parameters that fit a model.

    Attributes:
      params: nested dict of numpy arrays.
      notes: what a reader should know.
      dtype_notes: the same about their precision.
    """

    params: dict[str, Any]
    notes: tuple[str, ...]
    dtype_notes: tuple[str, ...]


def abstract_params(model: Model) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the model's parameters, by Flax path."""
    init, images = _initializer(model)
    shapes = jax.eval_shape(init, jax.random.key(0), images)["params"]
    return traverse_util.flatten_dict(shapes, sep="/")


def _initializer(model: Model):
    side = model.encoder.smallest_image()
    shape = (1, side, side, model.encoder.in_channels)
    return model.init, jax.ShapeDtypeStruct(shape, jnp.float32)


def fit(
    source: Source, model: Model, changes: Changes, *, keep_dtypes: bool = False
) -> Fitted:
    """Checks parameters against a model and gives them its dtype.

    Args:
      source: the parameters.
      model: that they are for.
      changes: what may differ.
      keep_dtypes: leave them in the precision that they have.

    Raises:
      SetupError: listing every name that is unknown, missing or doubled, every shape
        that is wrong and, where it can be told, the cause; or naming a parameter that is
        not floating point or not finite.
    """
    expected = abstract_params(model)
    given, new, notes = _change(source, model, expected, changes)
    _check_names_and_shapes(source, model, given, new, expected)
    _check_values(given, expected, allow_nan=changes.allow_nan)

    dtypes = {path: parameter.array.dtype for path, parameter in given.items()}
    target = {
        path: dtypes[path] if keep_dtypes else expected[path].dtype for path in given
    }
    flat = {
        path: cast(parameter.key, parameter.array, target[path])
        for path, parameter in given.items()
    }
    if new:
        flat |= _initial(model, new, changes.seed)
    params = traverse_util.unflatten_dict(flat, sep="/")
    return Fitted(params, notes, _about_dtypes(dtypes, target))


def cast(name: str, array: np.ndarray, dtype: np.dtype | None) -> np.ndarray:
    """A contiguous copy in another precision, or the same one.

    Raises:
      SetupError: no floating-point type, or a finite number would become infinite.
    """
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise SetupError(f"dtype={dtype!r} is not floating point, such as 'float16'")
    with np.errstate(over="ignore"):  # looked for below
        result = np.array(array, dtype, order="C")
    if result.dtype != array.dtype and np.any(np.isinf(result) & ~np.isinf(array)):
        raise SetupError(f"{name} has values too large for {result.dtype}")
    return result


def _change(
    source: Source, model: Model, expected: dict, changes: Changes
) -> tuple[dict[str, Parameter], list[str], tuple[str, ...]]:
    """The source's parameters as asked for, paths to start anew, and notes."""
    given, new, notes = dict(source.parameters), [], source.notes

    def replace(path, array):
        given[path] = dataclasses.replace(given[path], array=array)

    if changes.head == "reset":
        has_norm = any(path.startswith("norm/") for path in given)
        keeps_norm = isinstance(model, FocalNet) and has_norm
        top = re.compile("head/.*") if keeps_norm else _TOP
        given = {path: p for path, p in given.items() if not top.fullmatch(path)}
        new += [path for path in expected if top.fullmatch(path)]
        notes += (f"new: {', '.join(new) or 'nothing; the head is left out'}",)
    elif changes.head == "in22k_to_in1k":
        classes = _num_classes(given)
        if classes != 21_842:
            raise SetupError(
                'head="in22k_to_in1k" is for the released heads of 21,842 classes; '
                f"{source.origin} has {classes:,}"
            )
        for path in {"head/kernel", "head/bias"} & given.keys():
            replace(path, given[path].array[..., :1000])

    if changes.add_levels:
        levels = [path for path in expected if _is_added_level(path, given)]
        new += levels
        notes += (f"new: {len(levels)} kernels of added focal levels",)
        if levels:
            notes += ("the global level now averages the last added one",)
            if model.encoder.normalize_modulator:
                notes += ("the modulator is now divided by more levels",)
    for path in expected.keys() & given.keys():
        array, shape = given[path].array, expected[path].shape
        if changes.resize_kernels and "/focal_layers_" in path:
            replace(path, _resize(array, shape[:2]))
        elif changes.add_levels and "/modulation/f/" in path:
            replace(path, _add_gates(array, shape[-1]))
    return given, new, notes


def _is_added_level(path: str, given: dict[str, Parameter]) -> bool:
    """Whether a path is of a kernel beyond the gates that its block has there."""
    kernel = re.fullmatch(r"(.*)/focal_layers_(\d+)/kernel", path)
    if not kernel or not {f"{kernel[1]}/f/bias", f"{kernel[1]}/h/bias"} <= given.keys():
        return False
    outputs = given[f"{kernel[1]}/f/bias"].array.size  # query, context, gates
    channels = given[f"{kernel[1]}/h/bias"].array.size
    return int(kernel[2]) >= outputs - 2 * channels - 1


def _num_classes(given: dict[str, Parameter]) -> int:
    return given["head/bias"].array.shape[0] if "head/bias" in given else 0


def _resize(kernel: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Zero-pads or crops the first two axes around the centre."""
    for axis, wanted in enumerate(size):
        margin = (wanted - kernel.shape[axis]) // 2
        if margin < 0:
            kernel = np.take(kernel, range(-margin, kernel.shape[axis] + margin), axis)
        else:
            widths = [(0, 0)] * kernel.ndim
            widths[axis] = (margin, margin)
            kernel = np.pad(kernel, widths)
    return kernel


def _add_gates(array: np.ndarray, outputs: int) -> np.ndarray:
    """Puts zeros before the last output of `f`, which is the global level's gate."""
    added = outputs - array.shape[-1]
    if added <= 0:
        return array
    zeros = np.zeros((*array.shape[:-1], added), array.dtype)
    return np.concatenate([array[..., :-1], zeros, array[..., -1:]], axis=-1)


def _initial(model: Model, paths: list[str], seed: int) -> dict[str, np.ndarray]:
    """What a new model has at some paths; the rest is not computed."""
    init, images = _initializer(model)

    @jax.jit
    def initialize():
        params = init(jax.random.key(seed), jnp.zeros(images.shape))["params"]
        flat = traverse_util.flatten_dict(params, sep="/")
        return {path: flat[path] for path in paths}

    return {path: np.array(array) for path, array in initialize().items()}


def _check_names_and_shapes(
    source: Source,
    model: Model,
    given: dict[str, Parameter],
    new: list[str],
    expected: dict[str, jax.ShapeDtypeStruct],
) -> None:
    dialect, use_postln = source.dialect, model.encoder.use_postln

    def key_of(path):
        key = dialect and dialect.key_of(path, use_postln=use_postln)
        return key or path

    def shape_of(path):
        shape = expected[path].shape
        if dialect is None:
            return list(shape)
        return list(dialect.to_torch(path, np.broadcast_to(0, shape)).shape)

    problems = list(source.problems)
    for path, parameter in given.items():
        shape = list(parameter.tensor.shape)
        if path not in expected:
            problems.append(f"{parameter.key} {shape} is not in the model")
        elif parameter.array.shape != expected[path].shape:
            problems.append(f"{parameter.key} is {shape}, the model has {shape_of(path)}")
        elif dialect and key_of(path) != parameter.dialect_key:
            problems.append(f"{parameter.key} would be called {key_of(path)}")
    problems += [
        f"{key_of(path)} {shape_of(path)} is missing"
        for path in expected
        if path not in given and path not in new
    ]
    if problems:
        lines = "\n  ".join([*_causes(source, model, expected), *problems])
        raise SetupError(f"{source.origin} does not fit the model:\n  {lines}")


def _causes(
    source: Source, model: Model, expected: dict[str, jax.ShapeDtypeStruct]
) -> list[str]:
    """What probably led to the problems, and what would help."""
    try:
        there = visible_settings(source.shapes, use_postln=source.use_postln)
        shapes = {path: leaf.shape for path, leaf in expected.items()}
        here = visible_settings(shapes, use_postln=model.encoder.use_postln)
    except SetupError:
        return []
    name, overrides = nearest_variant(there)
    unlike = [option for option in there if here.get(option) != there[option]]
    if not unlike:
        return []
    shown = "".join(f", {option}={value}" for option, value in overrides.items())
    maker = "create_backbone" if "out_stages" in there else "create_model"
    causes = [f'the weights look like {maker}("{name}"{shown})']
    causes += [
        f"{option} is {there[option]} there, {here.get(option, 'unset')} in the model"
        for option in unlike
    ]
    causes += _remedies(there, here, unlike)
    return causes


def _remedies(there: dict, here: dict, unlike: list[str]) -> list[str]:
    """What to ask for where the settings in `unlike` differ."""
    remedies = []
    if there.get("num_classes") == 21_842 and here.get("num_classes") == 1000:
        remedies.append(
            'an ImageNet-22K head: head="in22k_to_in1k" (--head=in22k_to_in1k) takes '
            "its part for ImageNet-1K"
        )
    if set(here.get("out_stages", ())) < set(there.get("out_stages", ())):
        stage = min(set(there["out_stages"]) - set(here["out_stages"]))
        remedies.append(f'ignore=["norm{stage}.*"] (--ignore) leaves a norm out')
    if HEAD_OPTIONS & set(unlike):
        remedies.append('head="reset" (--head=reset) starts the model\'s head anew')
    if "focal_levels" in unlike:
        pairs = zip(there["focal_levels"], here["focal_levels"])
        if all(weights <= model for weights, model in pairs):
            remedies.append(
                "weights of a smaller receptive field (SRF for LRF): add_levels=True "
                "(--add-levels) adds the focal levels"
            )
        else:
            remedies.append("weights of a larger receptive field (LRF for SRF)")
    if "focal_windows" in unlike:
        remedies.append(
            "resize_kernels=True (--resize-kernels) zero-pads or crops the kernels"
        )
    return remedies


def _check_values(
    given: dict[str, Parameter],
    expected: dict[str, jax.ShapeDtypeStruct],
    *,
    allow_nan: bool,
) -> None:
    for parameter in given.values():
        if not jnp.issubdtype(parameter.array.dtype, jnp.floating):
            raise SetupError(
                f"{parameter.key} is {parameter.array.dtype}, not floating point"
            )
    bad = {
        parameter.key: int(np.sum(~np.isfinite(parameter.array)))
        for parameter in given.values()
        if not allow_nan and not np.isfinite(parameter.array).all()
    }
    if bad:
        first = next(iter(bad))
        raise SetupError(
            f"{len(bad)} of {len(given)} tensors hold NaN or infinity, the first "
            f"{first} with {bad[first]:,}; allow_nan=True (--allow-nan) takes them "
            "as they are"
        )


def _about_dtypes(
    dtypes: dict[str, np.dtype], target: dict[str, np.dtype]
) -> tuple[str, ...]:
    """Says which precision became which, and whether that is exact."""
    changes = collections.Counter(
        (dtypes[path], target[path]) for path in dtypes if dtypes[path] != target[path]
    )
    return tuple(
        f"{count:,} tensors: {before} widened to {after}, exactly"
        if is_exact(before, after)
        else f"{count:,} tensors: {before} rounded to {after}"
        for (before, after), count in changes.items()
    )


def is_exact(before: np.dtype, after: np.dtype) -> bool:
    """Whether every number of one precision is one of the other."""
    before, after = jnp.finfo(before), jnp.finfo(after)
    return before.nmant <= after.nmant and before.nexp <= after.nexp
