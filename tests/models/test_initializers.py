"""Fresh parameters have the distributions that PyTorch and the official code give."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focalnet_jax import create_model
from focalnet_jax.trees import named_leaves

torch = pytest.importorskip("torch", reason="the reference is torch's initialisation")


@pytest.fixture(scope="module")
def params():
    model = create_model(
        "focalnet_huge_fl4", depths=(1, 1), focal_levels=(2, 2), focal_windows=(3, 3)
    )
    images = jnp.zeros((1, 32, 32, 3))
    return named_leaves(model.init(jax.random.key(0), images)["params"])


def torch_linear(shape):
    return torch.nn.init.trunc_normal_(torch.empty(shape), std=0.02).numpy()


def torch_conv(channels_in, channels_out, size, groups=1):
    return torch.nn.Conv2d(channels_in, channels_out, size, groups=groups)


# One parameter of each kind; the first stage has 352 channels and the second 704.
CASES = {
    "patch_embed/proj/kernel": lambda: torch_conv(3, 352, 7).weight,
    "patch_embed/proj/bias": lambda: torch_conv(3, 352, 7).bias,
    "layers_0/downsample/proj/kernel": lambda: torch_conv(352, 704, 3).weight,
    "layers_0/downsample/proj/bias": lambda: torch_conv(352, 704, 3).bias,
    "layers_1/blocks_0/modulation/h/kernel": lambda: torch_conv(704, 704, 1).weight,
    "layers_1/blocks_0/modulation/h/bias": lambda: torch_conv(704, 704, 1).bias,
    "layers_1/blocks_0/modulation/focal_layers_0/kernel": lambda: (
        torch_conv(704, 704, 3, groups=704).weight
    ),
    "layers_1/blocks_0/modulation/focal_layers_1/kernel": lambda: (
        torch_conv(704, 704, 5, groups=704).weight
    ),
    "layers_1/blocks_0/modulation/f/kernel": lambda: torch_linear((704, 1411)),
    "layers_1/blocks_0/modulation/proj/kernel": lambda: torch_linear((704, 704)),
    "layers_1/blocks_0/mlp/fc1/kernel": lambda: torch_linear((704, 2816)),
    "layers_1/blocks_0/mlp/fc2/kernel": lambda: torch_linear((2816, 704)),
    "head/kernel": lambda: torch_linear((704, 1000)),
}


@pytest.mark.parametrize("name", CASES)
def test_mean_deviation_and_range(params, name):
    torch.manual_seed(0)
    expected = CASES[name]()
    expected = np.asarray(expected.detach() if hasattr(expected, "detach") else expected)
    given = np.asarray(params[name])
    assert given.size == expected.size
    deviation, root = expected.std(), np.sqrt(expected.size)
    # Five standard errors of the difference of two means. That of two deviations is at
    # most the same; for a normal distribution it is 1 / sqrt(2) of it.
    assert abs(given.mean() - expected.mean()) < 5 * np.sqrt(2) * deviation / root
    assert abs(given.std() - deviation) < 5 * deviation / root
    # Uniform numbers come close to both ends; the extremes of normal numbers vary.
    is_uniform = np.abs(expected).max() < 2 * deviation
    tolerance = 20 / expected.size if is_uniform else 0.25
    for extreme in (np.min, np.max):
        assert extreme(given) == pytest.approx(extreme(expected), rel=tolerance)


# Pattern of names, and the constant that these parameters begin as.
CONSTANTS = [
    (r".*(norm\d?|ln)/scale", 1),
    (r".*(norm\d?|ln)/bias", 0),
    (r".*(modulation/f|modulation/proj|mlp/fc1|mlp/fc2|head)/bias", 0),
    (r".*/gamma_[12]", np.float32(1e-4)),
]
RANDOM = r".*(kernel|modulation/h/bias|(patch_embed|downsample)/proj/bias)"


def test_all_other_parameters_are_constants(params):
    seen = set()
    for name, value in params.items():
        if not re.fullmatch(RANDOM, name):
            [(pattern, constant)] = [c for c in CONSTANTS if re.fullmatch(c[0], name)]
            seen.add(pattern)
            assert (value == constant).all(), name
    assert seen == {pattern for pattern, _ in CONSTANTS}
