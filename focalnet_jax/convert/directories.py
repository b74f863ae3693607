"""Directories of converted parameters: `params` and `model.json`."""

import pathlib
from typing import Any

from focalnet_jax.paths import written_aside
from focalnet_jax.weights.description import ModelDescription
from focalnet_jax.weights.params import save_params

# All that is in such a directory, as shell-style patterns. Orbax writes the parameters.
FILES = (
    "model.json",
    "params/_*METADATA",
    "params/_sharding",
    "params/array_metadatas/*",
    "params/commit_success.txt",
    "params/d/*",
    "params/manifest.ocdbt",
    "params/ocdbt.process_*",
)


def write_directory(
    path: pathlib.Path, description: ModelDescription, params: dict[str, Any]
) -> None:
    """Writes parameters and their description, whole or not at all.

    `load_model` and the field `init_from` take such a directory.

    Raises:
      OSError: they can't be written.
    """
    with written_aside(path.absolute()) as aside:  # as Orbax asks
        aside.mkdir()
        save_params(aside / "params", params)
        description.write(aside)
