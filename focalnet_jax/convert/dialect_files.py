"""Files of weights that the implementation of a dialect loads.

A file in safetensors also holds the description of the model, which `load_model` reads.
"""

import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from focalnet_jax.convert.checkpoint_meta import meta_of
from focalnet_jax.convert.conversion import to_torch
from focalnet_jax.convert.dialects import DIALECTS, MMSEGMENTATION
from focalnet_jax.convert.fit import FittedParams, named_variables
from focalnet_jax.convert.model_arguments import print_notes
from focalnet_jax.convert.precision import is_count, is_exact
from focalnet_jax.convert.weight_files import write_weights
from focalnet_jax.convert.weights_and_model import DESCRIPTION, WeightsAndModel
from focalnet_jax.models.size import Model
from focalnet_jax.weights.description import (
    BACKBONE_OPTIONS,
    MASKED_IMAGE_MODELING,
    SEMANTIC_SEGMENTATION,
    ModelDescription,
)


def write_dialect(
    path: pathlib.Path,
    found: WeightsAndModel,
    fitted: FittedParams,
    dialect: str | None = None,
) -> None:
    """Writes a file of weights, and prints what it holds and what it lacks.

    Args:
      path: ends in one of `SUFFIXES`.
      found: the weights as they were read, with their model.
      fitted: the same, fitted to the model, in the dtypes that they are stored in.
      dialect: whose names the file has; None for those of the weights, or for
        `microsoft` where they are parameters of Flax.

    Raises:
      SetupError: the dialect can't express the model.
      OSError: the file can't be written.
    """
    dialect = dialect or _usual_dialect(found)
    dtypes = _original_dtypes(fitted.variables, found)
    tensors = to_torch(
        fitted.params,
        found.model,
        dialect=dialect,
        dtype=dtypes,
        batch_stats=fitted.batch_stats,
    )
    print_notes(_options_a_file_lacks(found.model))
    if path.suffix != ".safetensors":
        holds_classes = dialect == MMSEGMENTATION.name
        print_notes(
            (_description_a_pickle_lacks(path, found.description, holds_classes),)
        )
    write_weights(
        path,
        tensors,
        wrapper=DIALECTS[dialect].wrapper,
        metadata={DESCRIPTION: json.dumps(found.description.to_json())},
        meta=meta_of(found.description) if dialect == MMSEGMENTATION.name else None,
    )
    print(f"wrote {path}: {len(tensors):,} tensors, named as {dialect}")


def _usual_dialect(found: WeightsAndModel) -> str:
    """The dialect of the source, or of the file that the source was converted from."""
    if BACKBONE_OPTIONS & found.description.overrides.keys():
        return "microsoft"  # No other dialect has names for the norms of a backbone.
    if found.description.task == MASKED_IMAGE_MODELING:
        return "transformers"  # Nor for a decoder and a mask token.
    if found.description.task == SEMANTIC_SEGMENTATION:
        return MMSEGMENTATION.name  # Nor for its heads.
    if found.weights.dialect:
        return found.weights.dialect.name
    return (found.description.source or {}).get("dialect", "microsoft")


def _original_dtypes(
    variables: dict[str, Any], found: WeightsAndModel
) -> dict[str, np.dtype]:
    """The dtypes that converted variables had before they were widened, by Flax path.

    Parameters that would lose digits are left out, such as those trained since.
    """
    recorded = (found.description.source or {}).get("dtype", {})
    dtypes = {}
    for path, array in named_variables(variables).items():
        if is_count(array.dtype):
            continue
        name = recorded if isinstance(recorded, str) else recorded.get(path)
        narrow = jnp.dtype(name) if name else array.dtype
        if is_exact(narrow, array.dtype):
            with np.errstate(over="ignore"):
                back = array.astype(narrow).astype(array.dtype)
            if np.array_equal(back, array, equal_nan=True):
                dtypes[path] = narrow
    return dtypes


def _options_a_file_lacks(model: Model) -> tuple[str, ...]:
    """Says which options a program that loads the file has to set."""
    unseen = [
        f"{option}=True"
        for option in ("normalize_modulator", "use_postln")
        if getattr(model.encoder, option)
    ]
    if model.encoder.use_conv_embed:
        unseen.append(f"stem_padding={model.encoder.stem_padding}")
    if not unseen:
        return ()
    listed = ", ".join(unseen)
    return (f"weights do not show {listed}: set that where the file is loaded",)


def _description_a_pickle_lacks(
    path: pathlib.Path, description: ModelDescription, holds_classes: bool
) -> str:
    numbers = description.preprocessing.to_json().items()
    lacks = "the preprocessing, " + ", ".join(f"{k}={v}" for k, v in numbers)
    if description.classes and not holds_classes:
        lacks += f", and for the names of {len(description.classes):,} classes"
    return (
        f"a file in {path.suffix} has no place for {lacks}; a directory or a "
        ".safetensors file has"
    )
