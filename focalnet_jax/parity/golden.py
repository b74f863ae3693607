"""Logits that the released weights are known to give for one photograph.

The source is the conversion script of transformers, `convert_focalnet_to_hf_format.py`.
It states the first three logits for image 000000039769 of COCO's 2017 validation set,
resized to 256 bilinearly and cropped to 224. They hold for the official weights in every
dialect.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from focalnet_jax.errors import SetupError
from focalnet_jax.models import FocalNet
from focalnet_jax.preprocessing import Preprocessing
from focalnet_jax.weights.releases import cache_directory, download_file

IMAGE = "000000039769.jpg"
_URL = f"http://images.cocodataset.org/val2017/{IMAGE}"
_PREPROCESSING = Preprocessing(image_size=224, interpolation="bilinear", crop=224 / 256)

LOGITS = {
    "focalnet_tiny_srf": (0.2166, -0.4368, 0.2191),
    "focalnet_tiny_lrf": (1.1669, 0.0125, -0.1695),
    "focalnet_small_srf": (0.4917, -0.0430, 0.1341),
    "focalnet_small_lrf": (-0.2588, -0.5342, -0.2331),
    "focalnet_base_srf": (-0.1655, -0.4090, -0.1730),
    "focalnet_base_lrf": (0.5306, -0.0483, -0.3928),
}
# Every one of these models has this number of classes.
NUM_CLASSES = 1000
# The script prints four digits and allows this difference.
_TOLERANCE = 1e-4


def check_golden(
    name: str,
    model: FocalNet,
    params: dict[str, Any],
    *,
    dtype: str,
    directory: pathlib.Path | None,
) -> bool:
    """Prints the first three logits and the known ones; returns whether they agree.

    Args:
      name: the name of the variant.
      model: the model.
      params: the model's parameters.
      dtype: the dtype of the image.
      directory: where the photograph is looked for before it is downloaded.

    Raises:
      SetupError: no logits are known for the model, or there is no photograph.
    """
    expected = golden_logits(name)
    if model.num_classes != NUM_CLASSES:
        raise SetupError(
            f"the head is not that of ImageNet-1K: it has {model.num_classes:,} classes"
        )
    path = golden_image(directory)
    images = jnp.asarray(_PREPROCESSING(path)[None].astype(dtype))
    logits, _ = jax.jit(model.apply)({"params": params}, images)
    given = np.asarray(logits[0, :3])
    error = np.abs(given - expected).max()
    passes = bool(error <= _TOLERANCE)
    print(f"\ngolden logits of {name} for {path.name}, class {int(logits[0].argmax())}")
    print(f"expected  {np.array2string(expected, precision=4)}")
    print(f"given     {np.array2string(given, precision=4)}")
    print(
        f"\n{'PASS' if passes else 'FAIL'}: differ by {error:.1e} (tolerance "
        f"{_TOLERANCE:.0e})"
    )
    return passes


def golden_logits(name: str) -> np.ndarray:
    """The first three logits that are known for a variant.

    Raises:
      SetupError: none are known.
    """
    if name not in LOGITS:
        raise SetupError(f"golden logits are known for {', '.join(LOGITS)}, not {name}")
    return np.array(LOGITS[name])


def golden_image(directory: pathlib.Path | None) -> pathlib.Path:
    """The photograph in `directory`; if it is not there, it is downloaded once.

    Raises:
      SetupError: it is not there and cannot be downloaded.
    """
    if directory is not None and (directory / IMAGE).exists():
        return directory / IMAGE
    try:
        return download_file(_URL, cache_directory() / "coco" / IMAGE)
    except SetupError as error:
        raise SetupError(
            f"{error}; for --golden, put {IMAGE} of COCO's 2017 validation images into "
            "the directory that --images names"
        ) from error
