"""The whole net, forward and gradients, agrees with the paper's equations in PyTorch.

The equations are those of `tests/equations.py`. Both sides have the same parameters and
compute in float64, so a difference is one of arithmetic and not of rounding.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params

from focalnet_jax import create_model

torch = pytest.importorskip("torch", reason="the reference is written in torch")
import equations  # noqa: E402

SMALL = dict(num_classes=5, dtype="float64", param_dtype="float64")
FOUR_STAGES = dict(depths=(1, 1, 1, 1), embed_dim=8)
ISOTROPIC = dict(depths=(2,), embed_dim=8)
TWO_STAGES = dict(depths=(1, 1), embed_dim=8, focal_levels=(2, 1))
SEQUENCES = TWO_STAGES | dict(patch_size=(2,), use_depthwise_bias=True)
# Each frame has its own context.
VIDEOS = TWO_STAGES | dict(
    patch_size=(1, 4, 4),
    downsample_stride=(1, 2, 2),
    focal_windows=((1, 3, 3), (1, 5, 5)),
    focal_factor=(0, 2, 2),
    global_axes=(1, 2),
)
VOLUMES = TWO_STAGES | dict(patch_size=(4, 4, 4), focal_windows=(3, (1, 3, 5)))
extended = pytest.mark.extended

# Each has a name, overrides that keep the model small, and the size of the images. The
# default run has only what timm and transformers cannot compute: the stem of the official
# dense prediction, isotropic nets on images whose sizes do not divide, and inputs of
# other rank. For all else tests/parity compares with these two.
CASES = [
    ("focalnet_large_fl4", FOUR_STAGES | dict(stem_padding=3), (61, 75)),
    ("focalnet_base_iso", ISOTROPIC, (50, 67)),
    # The layers of FocalCodec and, causal with even kernels, of FocalCodec-Stream.
    ("focalnet_tiny_srf", SEQUENCES | dict(focal_windows=(7, 7)), (23,)),
    (
        "focalnet_tiny_srf",
        SEQUENCES
        | dict(focal_windows=(6, 6), focal_factor=4, causal=True, causal_window=80),
        (23,),
    ),
    ("focalnet_tiny_lrf", VIDEOS, (3, 17, 13)),
    ("focalnet_large_fl3", VOLUMES, (9, 16, 11)),
    *(
        pytest.param(*case, marks=extended)
        for case in [
            ("focalnet_tiny_srf", FOUR_STAGES, (64, 64)),
            ("focalnet_base_lrf", FOUR_STAGES | dict(mlp_ratio=2.0), (71, 53)),
            ("focalnet_huge_fl3", FOUR_STAGES | dict(use_layerscale=False), (64, 64)),
            ("focalnet_small_srf", FOUR_STAGES, (64, 32)),
            ("focalnet_tiny_iso", ISOTROPIC, (64, 64)),
            ("focalnet_small_iso", ISOTROPIC, (100, 33)),
            ("focalnet_large_fl3", FOUR_STAGES, (64, 64)),
            ("focalnet_large_fl4", FOUR_STAGES, (61, 75)),
            ("focalnet_xlarge_fl3", FOUR_STAGES, (64, 64)),
            ("focalnet_xlarge_fl4", FOUR_STAGES, (75, 61)),
            ("focalnet_huge_fl4", FOUR_STAGES, (64, 96)),
            ("focalnet_tiny_srf", FOUR_STAGES | dict(focal_factor=4), (32, 32)),
            ("focalnet_tiny_srf", dict(depths=(2, 1, 3, 1), embed_dim=8), (64, 64)),
        ]
    ),
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("name", "overrides", "size"), CASES)
def test_equals_the_equations(name, overrides, size):
    model = create_model(name, **SMALL, **overrides)
    rng = np.random.default_rng(1)
    images = rng.normal(size=(2, *size, 3))
    params = random_params(model)
    weights = rng.normal(size=(2, 5))

    def loss(params):
        logits, _ = model.apply({"params": params}, jnp.array(images))
        return (logits * weights).sum(), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(params)

    variables = jax.tree.map(lambda a: torch.tensor(a, requires_grad=True), params)
    expected = equations.focalnet(variables, torch.tensor(images), model.encoder)
    (expected * torch.tensor(weights)).sum().backward()

    # Some hundred operations round by 2e-16 each, relative to the greatest value.
    scale = np.abs(expected.detach().numpy()).max()
    np.testing.assert_allclose(logits, expected.detach(), rtol=0, atol=1e-12 * scale)
    given = jax.tree.leaves_with_path(gradients)
    for (path, gradient), variable in zip(given, jax.tree.leaves(variables)):
        scale = variable.grad.abs().max().item()
        np.testing.assert_allclose(
            gradient,
            variable.grad,
            rtol=0,
            atol=1e-10 * scale,
            err_msg=jax.tree_util.keystr(path),
        )
