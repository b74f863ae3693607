"""Logits that the released weights are known to give for one photograph.

From the conversion script of transformers (`convert_focalnet_to_hf_format.py`): the
first three logits for image 000000039769 of COCO's 2017 validation set, resized to 256
bilinearly and cropped to 224. They hold for the official weights in any dialect.
"""

import pathlib

import numpy as np

from focalnet_jax.data import Preprocessing
from focalnet_jax.errors import SetupError
from focalnet_jax.weights.releases import cache_directory, download

IMAGE = "000000039769.jpg"
_URL = f"http://images.cocodataset.org/val2017/{IMAGE}"
PREPROCESSING = Preprocessing(image_size=224, interpolation="bilinear", crop=224 / 256)

LOGITS = {
    "focalnet_tiny_srf": (0.2166, -0.4368, 0.2191),
    "focalnet_tiny_lrf": (1.1669, 0.0125, -0.1695),
    "focalnet_small_srf": (0.4917, -0.0430, 0.1341),
    "focalnet_small_lrf": (-0.2588, -0.5342, -0.2331),
    "focalnet_base_srf": (-0.1655, -0.4090, -0.1730),
    "focalnet_base_lrf": (0.5306, -0.0483, -0.3928),
}
NUM_CLASSES = 1000  # of all of them
# They are printed with four digits; the script that states them allows as much.
TOLERANCE = 1e-4


def golden_logits(name: str) -> np.ndarray:
    """The three logits for a variant.

    Raises:
      SetupError: none are known.
    """
    if name not in LOGITS:
        raise SetupError(f"golden logits are known for {', '.join(LOGITS)}, not {name}")
    return np.array(LOGITS[name])


def golden_image(directory: pathlib.Path | None) -> pathlib.Path:
    """The photograph: from `directory` if it is there, else downloaded once."""
    if directory is not None and (directory / IMAGE).exists():
        return directory / IMAGE
    try:
        return download(_URL, cache_directory() / "coco" / IMAGE)
    except SetupError as error:
        raise SetupError(
            f"{error}; for --golden, put {IMAGE} of COCO's 2017 validation images into "
            "the directory that --images names"
        ) from error
