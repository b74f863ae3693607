"""The tensors of a state dict matched with the parameters of a FocalNet."""

import dataclasses
import fnmatch
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from focalnet_jax.convert.dialects import (
    CLASSIFIER_DIALECTS,
    MMSEGMENTATION,
    SEGMENTER_HEADS,
    Dialect,
    dialect_named,
)
from focalnet_jax.convert.weight_files import Weights
from focalnet_jax.errors import SetupError, argument, counted

# Wrappers, trainers and larger models put these before the names of a FocalNet. The
# backbone of DINO is `backbone.0`, a compiled module is `_orig_mod`, and Lightning with
# DeepSpeed puts `_forward_module` before all others.
_KNOWN_PREFIXES = frozenset(
    {
        "module",
        "visual",
        "vision",
        "encoder",
        "backbone",
        "0",
        "model",
        "net",
        "network",
        "_orig_mod",
        "_forward_module",
    }
)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of the weights.

    Attributes:
      key: the tensor's name in the weights.
      tensor: the tensor as it is in the weights.
      array: a view of the tensor in Flax's layout.
      dialect_key: the tensor's name without prefixes, as its dialect has it.
    """

    key: str
    tensor: np.ndarray
    array: np.ndarray
    dialect_key: str


@dataclasses.dataclass(frozen=True)
class MatchedWeights:
    """Weights whose tensors were found to be the parameters of a FocalNet.

    Attributes:
      origin: the name of the file or directory, for messages.
      dialect: the dialect of the names; None if the names are Flax paths.
      parameters: the parameters by Flax path.
      prefix: what precedes the names of the FocalNet, such as `backbone.0.`.
      foreign: the names and shapes of tensors that are no parameters of a FocalNet.
      problems: a line for each tensor that has a wrong layout, or is the same parameter
        as another tensor.
      notes: sentences for the user about what was left out.
      sha256, metadata, meta: as in `Weights`.
    """

    origin: str
    dialect: Dialect | None
    parameters: dict[str, Parameter]
    prefix: str = ""
    foreign: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sha256: str | None = None
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    meta: Any = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes in Flax's layout, by Flax path."""
        return {path: p.array.shape for path, p in self.parameters.items()}

    @property
    def use_postln(self) -> bool | None:
        """Whether norms come after the branches; None if the names do not show it."""
        path = "layers_0/blocks_0/norm1/scale"
        if self.dialect is None or path not in self.parameters:
            return None
        before, after = (self.dialect.key_of(path, use_postln=u) for u in (False, True))
        return None if before == after else self.parameters[path].dialect_key == after


def match_names(
    weights: Weights,
    *,
    dialect: str | None = None,
    prefix: str | None = None,
    ignore: Sequence[str] = (),
) -> MatchedWeights:
    """Recognises the dialect and finds the Flax path of each tensor.

    Args:
      weights: tensors by name.
      dialect: one of `dialects.DIALECTS`; None recognises it.
      prefix: take only the names that begin so. With None all names are taken, and a
        usual prefix such as `module.` is removed.
      ignore: shell-style patterns of names to leave out.

    Raises:
      SetupError: the weights hold no FocalNet, or several of them.
    """
    if prefix:
        prefix = prefix.removesuffix(".") + "."
    tensors, notes = _select(weights, prefix, ignore)
    candidates = _dialects_of(tensors) if dialect is None else [dialect_named(dialect)]
    chosen, lead = _find_stem(weights.origin, tensors, candidates, prefix)
    _check_is_for_images(weights.origin, tensors, lead, chosen)

    parameters: dict[str, Parameter] = {}
    problems, unmatched = [], []
    for key, tensor in tensors.items():
        dialect_key = _dialect_key(key, lead, chosen)
        path = dialect_key and chosen.path_of(dialect_key)
        if not dialect_key or path is None:
            unmatched.append(key)
            continue
        array = chosen.from_torch(path, tensor)
        if array is None:
            problems.append(
                f"{key} {list(tensor.shape)} has not the layout of {chosen.name}"
            )
        elif path in parameters:  # such as timm's norm1 and norm1_post
            problems.append(f"{key} and {parameters[path].key} are the same parameter")
        else:
            parameters[path] = Parameter(key, tensor, array, dialect_key)
    if not any("/modulation/" in path for path in parameters):
        raise _no_focalnet(weights.origin, tensors, prefix)
    foreign = {}
    for key in unmatched:
        twin = parameters.get(chosen.path_of(_strip_known(key)) or "")
        shape = list(tensors[key].shape)
        if twin:
            other = f"{twin.key} {list(twin.tensor.shape)}"
            problems.append(f"{key} {shape} and {other} are the same parameter")
        else:
            foreign[key] = tensors[key].shape
    return MatchedWeights(
        weights.origin,
        chosen,
        parameters,
        lead.removesuffix(chosen.inner_prefix),
        foreign,
        tuple(problems),
        notes,
        weights.sha256,
        weights.metadata,
        weights.meta,
    )


def is_ignored(name: str, ignore: Sequence[str]) -> bool:
    """Whether a name matches one of the shell-style patterns."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in ignore)


def _select(
    weights: Weights, prefix: str | None, ignore: Sequence[str]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Takes the tensors that are asked for, and adds a note about the others."""
    tensors = {k: v for k, v in weights.tensors.items() if not is_ignored(k, ignore)}
    if prefix is None:
        return tensors, weights.notes
    inside = {k: v for k, v in tensors.items() if k.startswith(prefix)}
    notes = weights.notes
    if count := len(tensors) - len(inside):
        are = "is" if count == 1 else "are"
        notes += (f"{counted(count, 'tensor')} outside of {prefix!r} {are} left out",)
    return inside, notes


def _dialects_of(tensors: Collection[str]) -> list[Dialect]:
    """The dialects that names may be of.

    The backbone of a segmenter has the official names below a prefix, so its head tells.
    """
    is_segmenter = all(
        any(f".{part}" in f".{key}" for key in tensors)
        for part in (MMSEGMENTATION.anchor, f"{SEGMENTER_HEADS[0]}.")
    )
    if is_segmenter:
        return [MMSEGMENTATION]
    return [*CLASSIFIER_DIALECTS.values()]


def _find_stem(
    origin: str,
    tensors: dict[str, np.ndarray],
    dialects: list[Dialect],
    prefix: str | None,
) -> tuple[Dialect, str]:
    """Finds the dialect, and what precedes its names in `tensors`.

    A net without its head lacks the dialect's inner prefix, so that the names in
    `tensors` may be shorter than those of the dialect.
    """
    found = {}
    for dialect in dialects:
        anchor = dialect.anchor.removeprefix(dialect.inner_prefix)
        for key in tensors:
            if key == anchor or key.endswith(f".{anchor}"):
                lead = key.removesuffix(anchor)
                outer = lead.removesuffix(dialect.inner_prefix)
                if prefix in (None, lead, outer):
                    found[key] = dialect, lead, outer
    if not found:
        raise _no_focalnet(origin, tensors, prefix)
    if len({_strip_known(outer) for _, _, outer in found.values()}) > 1:
        example = max(
            (outer.removesuffix(".") for _, _, outer in found.values()), key=len
        )
        raise SetupError(
            f"{origin} holds several nets, with the stems {', '.join(found)}: say which "
            f"by the prefix of its names, such as {argument('prefix', example)}"
        )
    # If one stem has two prefixes, the second is reported as a double match later.
    dialect, lead, outer = min(found.values(), key=lambda stem: len(stem[1]))
    if prefix is None and _strip_known(outer):
        raise SetupError(
            f"{origin} has a FocalNet below the unknown prefix {outer!r}: if that is the "
            f"net you mean, give {argument('prefix', outer.removesuffix('.'))}"
        )
    return dialect, lead


def _check_is_for_images(
    origin: str, tensors: dict[str, np.ndarray], lead: str, dialect: Dialect
) -> None:
    """Raises SetupError if the stem is for maps of another rank than images have."""
    key = lead + dialect.anchor.removeprefix(dialect.inner_prefix)
    patch = tensors[key].shape[2:]
    if len(patch) in (1, 3, 4):
        axes = counted(len(patch), "spatial axis", "spatial axes")
        raise SetupError(
            f"{origin} is of a net for inputs with {axes}, as {key} "
            f"{list(tensors[key].shape)} shows: PyTorch's names are read of nets for "
            "images, with two. The parameters of this one have their places in the tree "
            f"of create_model(..., patch_size={patch})"
        )


def _dialect_key(key: str, lead: str, dialect: Dialect) -> str | None:
    """The name as the dialect has it; None if it lacks the prefix of the stem's name."""
    outer = lead.removesuffix(dialect.inner_prefix)
    if not key.startswith(outer):
        return None
    inner = dialect.inner_prefix if lead == outer else ""
    return inner + key.removeprefix(outer)


def _strip_known(key: str) -> str:
    """Removes the known prefixes of a name."""
    first, dot, rest = key.partition(".")
    return _strip_known(rest) if dot and first in _KNOWN_PREFIXES else key


def _no_focalnet(
    origin: str, tensors: dict[str, np.ndarray], prefix: str | None = None
) -> SetupError:
    below = f" below {prefix!r}" if prefix else ""
    names = ", ".join(list(tensors)[:3]) or "none"
    return SetupError(
        f"{origin} holds no FocalNet{below}, as microsoft/FocalNet, timm or transformers "
        f"name one; its {counted(len(tensors), 'tensor')} begin with {names}"
    )
