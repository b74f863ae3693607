"""The names and shapes of parameters are public, so a golden file holds them.

`python tests/models/test_parameter_tree.py` writes the file again, after a change that is
meant.
"""

import pathlib

from focalnet_jax import create_backbone, create_model
from focalnet_jax.models import abstract_params
from focalnet_jax.trees import named_leaves

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
        lines.append(f"# {name}, depths {model.encoder.depths}")
        leaves = named_leaves(abstract_params(model))
        lines += [f"{path} {leaf.shape}" for path, leaf in sorted(leaves.items())]
    return "\n".join(lines) + "\n"


def test_parameter_tree_is_the_golden_one():
    assert current_tree() == GOLDEN.read_text()


if __name__ == "__main__":
    GOLDEN.write_text(current_tree())
