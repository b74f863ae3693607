"""Which models leave this package, and what goes with them."""

from typing import Any

from focalnet_jax.errors import SetupError, argument
from focalnet_jax.heads import Segmenter
from focalnet_jax.models import MaskedFocalNet
from focalnet_jax.models.size import Model
from focalnet_jax.pretrained import Pretrained


def check_is_exported(model: Model) -> None:
    """Raises SetupError for a model that paints masked images, or segments images."""
    if isinstance(model, Segmenter):
        raise SetupError(
            "a segmenter is not exported; its encoder is, as a backbone with "
            f"{argument('out_stages', (0, 1, 2, 3))}"
        )
    if isinstance(model, MaskedFocalNet):
        raise SetupError(
            "a model for masked image modelling is not exported; its encoder is, with "
            f"{argument('num_classes', 0)}"
        )


def describe(net: Pretrained) -> dict[str, Any]:
    """What a user needs to know of images and classes, as JSON."""
    return {
        "preprocessing": net.preprocessing.to_json(),
        "smallest_image": list(net.model.encoder.smallest_input()),
        "classes": net.classes,
    }
