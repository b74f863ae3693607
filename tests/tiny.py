"""Models that are small enough for tests, and parameters and images for them."""

import jax
import jax.numpy as jnp
import numpy as np

from focalnet_jax import create_backbone, create_model, create_segmenter
from focalnet_jax.convert import to_torch
from focalnet_jax.convert.weight_files import write_weights
from focalnet_jax.data import EvalTransform, TrainTransform
from focalnet_jax.models import abstract_params, abstract_variables
from focalnet_jax.preprocessing import Preprocessing
from focalnet_jax.tasks.classification import Classification
from focalnet_jax.trees import map_named

TINY = dict(depths=(1, 2), embed_dim=8, focal_levels=(2, 1), focal_windows=(3, 3))

# What somebody may find in a JSON file where something else should be.
ODD_VALUES = (
    *(None, True, False, "", "x", "3", "a\nb", -1, 0, 0.5, 3, 1e-320, 1e308, 10**400),
    *(float("nan"), float("inf"), [], [[1]], [4], ["x"], [3, 10**9, 10**9], [1e-320]),
    *({}, {"a": [1]}, {"a": float("inf")}, {"0": "a"}, {"shortest_edge": 10**400}),
)


def tiny_model(name="focalnet_tiny_srf", **options):
    """A classifier with two stages and three blocks; options replace what TINY says."""
    return create_model(name, **dict(num_classes=5) | TINY | options)


def tiny_backbone(name="focalnet_tiny_srf", **options):
    """The same without a head; it returns the maps of both stages."""
    return create_backbone(name, **dict(out_stages=(0, 1)) | TINY | options)


def tiny_segmenter(name="focalnet_tiny_srf", **options):
    """The same with narrow heads of five classes."""
    heads = dict(num_classes=5, head_channels=8, auxiliary_channels=6)
    return create_segmenter(name, **heads | TINY | options)


def write_segmenter(path, model=None, seed=0):
    """Writes a checkpoint as mmsegmentation names one; returns its variables."""
    model = model or tiny_segmenter()
    variables = random_like(abstract_variables(model), "float32", seed)
    tensors = to_torch(
        variables["params"],
        model,
        dialect="mmsegmentation",
        batch_stats=variables["batch_stats"],
    )
    write_weights(path, tensors, wrapper="state_dict")
    return variables


def random_params(model, dtype="float64", seed=0):
    """Parameters of a size that matters, as nested numpy arrays.

    Matrices and kernels keep the variance of what they are applied to. Biases, norms and
    layer scales are of order 1, so that none can be left out or mixed up unseen.
    """
    return random_like(abstract_params(model), dtype, seed)


def random_like(variables, dtype="float64", seed=0):
    """The same for any variables; variances are positive, and counts are counts."""
    rng = np.random.default_rng(seed)

    def draw(name, leaf):
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return rng.integers(1, 100, leaf.shape).astype(leaf.dtype)
        values = rng.normal(size=leaf.shape)
        if values.ndim > 1:
            values /= np.sqrt(np.prod(leaf.shape[:-1]))
        return (np.exp(values) if name.endswith("/var") else values).astype(dtype)

    return map_named(draw, variables)


def random_images(height=32, width=40, dtype=jnp.float32):
    """Two images of normal numbers."""
    return jax.random.normal(jax.random.key(1), (2, height, width, 3), dtype)


def classification(model, image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3, **options):
    """The task of training a model, without data sets."""
    return Classification(
        model=model,
        model_name="tiny",
        model_overrides={},
        preprocessing=Preprocessing(image_size=image_size, mean=mean, std=std),
        train_transform=TrainTransform(image_size),
        eval_transform=EvalTransform(image_size),
        **options,
    )
