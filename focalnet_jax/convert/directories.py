"""Directories of converted variables: `params`, `batch_stats` and `model.json`."""

import pathlib
from collections.abc import Mapping
from typing import Any

from focalnet_jax.paths import written_aside
from focalnet_jax.weights.description import ModelDescription
from focalnet_jax.weights.params import save_params

# All that is in such a directory, as shell-style patterns. Orbax writes the parameters.
FILES = (
    "model.json",
    *(
        f"{tree}/{file}"
        for tree in ("params", "batch_stats")
        for file in (
            "_*METADATA",
            "_sharding",
            "array_metadatas/*",
            "commit_success.txt",
            "d/*",
            "manifest.ocdbt",
            "ocdbt.process_*",
        )
    ),
)


def write_directory(
    path: pathlib.Path, description: ModelDescription, variables: Mapping[str, Any]
) -> None:
    """Writes variables and the description of their model, whole or not at all.

    `load_model` and the field `init_from` take such a directory.

    Args:
      path: of the directory.
      description: of the model.
      variables: `params`, and `batch_stats` if the model has running averages.

    Raises:
      OSError: they can't be written.
    """
    with written_aside(path.absolute()) as aside:  # as Orbax asks
        aside.mkdir()
        for name, tree in variables.items():
            save_params(aside / name, tree)
        description.write(aside)
