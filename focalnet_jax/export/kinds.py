"""Which kinds of models leave this package."""

from focalnet_jax.errors import SetupError, argument
from focalnet_jax.models import MaskedFocalNet
from focalnet_jax.models.size import Model


def check_is_exported(model: Model) -> None:
    """Raises SetupError for a model that paints masked images."""
    if isinstance(model, MaskedFocalNet):
        raise SetupError(
            "a model for masked image modelling is not exported; its encoder is, with "
            f"{argument('num_classes', 0)}"
        )
