"""The names and shapes of parameters are public: a golden file holds them.

After a change that is meant: `python tests/models/test_parameter_tree.py`.
"""

import pathlib

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from focalnet_jax import create_backbone, create_model

GOLDEN = pathlib.Path(__file__).parent / "parameter_tree.txt"


def current_tree() -> str:
    models = {
        "focalnet_tiny_srf": create_model("focalnet_tiny_srf"),
        "focalnet_huge_fl4": create_model("focalnet_huge_fl4", depths=(1, 1, 1, 1)),
        "focalnet_base_iso": create_model("focalnet_base_iso", depths=(1,)),
        "backbone of focalnet_large_fl3": create_backbone(
            "focalnet_large_fl3", out_stages=(1, 3), depths=(1, 1, 1, 1)
        ),
    }
    lines = []
    for name, model in models.items():
        images = jnp.zeros((1, 64, 64, 3))
        params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
        lines.append(f"# {name}, depths {model.encoder.depths}")
        flat = flatten_dict(params, sep="/")
        lines += [f"{path} {leaf.shape}" for path, leaf in sorted(flat.items())]
    return "\n".join(lines) + "\n"


def test_parameter_tree_is_the_golden_one():
    assert current_tree() == GOLDEN.read_text()


if __name__ == "__main__":
    GOLDEN.write_text(current_tree())
