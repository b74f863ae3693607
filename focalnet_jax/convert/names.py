"""From a state dict of any dialect to parameters by their Flax paths."""

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence

import numpy as np

from focalnet_jax.convert.dialects import DIALECTS, Dialect
from focalnet_jax.convert.weight_files import Weights
from focalnet_jax.errors import SetupError, did_you_mean

# What wrappers, trainers and larger models put before the names of a FocalNet; DINO's
# backbone is `backbone.0`, a compiled module `_orig_mod`.
_KNOWN_PREFIXES = frozenset(
    {"module", "visual", "vision", "encoder", "backbone", "0", "model", "_orig_mod"}
)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of a source.

    Attributes:
      key: its name there.
      tensor: its values as they are there.
      array: the same in Flax's layout, a view.
      dialect_key: its name without prefixes.
    """

    key: str
    tensor: np.ndarray
    array: np.ndarray
    dialect_key: str


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights whose names are understood.

    Attributes:
      origin: for messages.
      dialect: None for parameters that have Flax paths already.
      parameters: by Flax path.
      problems: names that have no meaning or one meaning twice, a line each.
      notes: what a reader should know.
      sha256, metadata: as for `Weights`.
    """

    origin: str
    dialect: Dialect | None
    parameters: dict[str, Parameter]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sha256: str | None = None
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """In Flax's layout, by Flax path."""
        return {path: p.array.shape for path, p in self.parameters.items()}

    @property
    def use_postln(self) -> bool | None:
        """Whether norms come after the branches; None where the names don't say."""
        path = "layers_0/blocks_0/norm1/scale"
        if self.dialect is None or path not in self.parameters:
            return None
        before, after = (self.dialect.key_of(path, use_postln=u) for u in (False, True))
        return None if before == after else self.parameters[path].dialect_key == after


def understand(
    weights: Weights,
    *,
    dialect: str | None = None,
    prefix: str | None = None,
    ignore: Sequence[str] = (),
) -> Source:
    """Recognises the dialect and sorts tensors by their Flax paths.

    Args:
      weights: tensors by name.
      dialect: one of `DIALECTS`; None recognises it.
      prefix: takes only the names that begin so; None takes all, and finds the prefix
        if it is a usual one such as `module.`.
      ignore: shell-style patterns of names to leave out.

    Raises:
      SetupError: not a FocalNet, or several of them.
    """
    if dialect is not None and dialect not in DIALECTS:
        raise SetupError(
            f"no dialect is named {dialect!r}{did_you_mean(dialect, DIALECTS)}"
        )
    tensors = {
        key: tensor
        for key, tensor in weights.tensors.items()
        if not any(fnmatch.fnmatchcase(key, pattern) for pattern in ignore)
    }
    candidates = [DIALECTS[dialect]] if dialect else list(DIALECTS.values())
    notes = weights.notes
    if prefix is not None:
        prefix = prefix.removesuffix(".") + "."
        inside = {k: v for k, v in tensors.items() if k.startswith(prefix)}
        if len(inside) < len(tensors):
            count = len(tensors) - len(inside)
            notes += (f"{count:,} tensors outside of {prefix!r} are left out",)
        tensors = inside
    chosen, lead = _find_stem(weights.origin, tensors, candidates, prefix)

    parameters, problems, strangers = {}, [], []
    for key, tensor in tensors.items():
        dialect_key = _dialect_key(key, lead, chosen)
        path = dialect_key and chosen.path_of(dialect_key)
        if path is None:
            strangers.append(key)
            continue
        array = chosen.from_torch(path, tensor)
        if array is None:
            problems.append(
                f"{key} {list(tensor.shape)} has not the layout of {chosen.name}"
            )
        else:
            parameters[path] = Parameter(key, tensor, array, dialect_key)
    if not any("/modulation/" in path for path in parameters):
        raise _no_focalnet(weights.origin, tensors, prefix)
    for key in strangers:
        twin = parameters.get(chosen.path_of(_strip_known(key)))
        shape = list(tensors[key].shape)
        if twin:
            other = f"{twin.key} {list(twin.tensor.shape)}"
            problems.append(f"{key} {shape} and {other} are the same parameter")
        else:
            problems.append(f"{key} {shape} is no parameter of a FocalNet")
    return Source(
        weights.origin,
        chosen,
        parameters,
        tuple(problems),
        notes,
        weights.sha256,
        weights.metadata,
    )


def _find_stem(
    origin: str,
    tensors: dict[str, np.ndarray],
    dialects: list[Dialect],
    prefix: str | None,
) -> tuple[Dialect, str]:
    """The dialect, and what stands before the names in its table (or their end)."""
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
        raise SetupError(
            f"{origin} holds several nets, with the stems {', '.join(found)}: say which "
            "by the prefix of its names"
        )
    # Of one stem under two prefixes the second is reported as a double match.
    dialect, lead, outer = min(found.values(), key=lambda stem: len(stem[1]))
    if prefix is None and _strip_known(outer):
        raise SetupError(
            f"{origin} has a FocalNet below the unknown prefix {outer!r}: if that is the "
            "net you mean, give the prefix"
        )
    return dialect, lead


def _dialect_key(key: str, lead: str, dialect: Dialect) -> str | None:
    """The name in the dialect's table; None for one that doesn't begin as the stem's."""
    outer = lead.removesuffix(dialect.inner_prefix)
    if not key.startswith(outer):
        return None
    # A net without its head lacks the inner prefix.
    inner = dialect.inner_prefix if lead == outer else ""
    return inner + key.removeprefix(outer)


def _strip_known(key: str) -> str:
    first, dot, rest = key.partition(".")
    return _strip_known(rest) if dot and first in _KNOWN_PREFIXES else key


def _no_focalnet(
    origin: str, tensors: dict[str, np.ndarray], prefix: str | None = None
) -> SetupError:
    below = f" below {prefix!r}" if prefix else ""
    names = ", ".join(list(tensors)[:3]) or "none"
    return SetupError(
        f"{origin} holds no FocalNet{below}, as microsoft/FocalNet, timm or transformers "
        f"name one; its {len(tensors):,} tensors begin with {names}"
    )
