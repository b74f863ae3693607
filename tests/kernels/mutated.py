"""Modules with a mistake in their source."""

import sys
import types
from collections.abc import Mapping


def mutated_module(sources: Mapping[str, str], old: str, new: str) -> dict:
    """The module that has a piece of source, with another one in its place, by name."""
    [name] = [name for name, source in sources.items() if old in source]
    module = types.ModuleType(f"mutated_{name}")
    sys.modules[module.__name__] = module  # which `dataclasses` looks up
    try:
        exec(sources[name].replace(old, new), module.__dict__)
    finally:
        del sys.modules[module.__name__]
    return {name: module}
