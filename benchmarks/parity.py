"""How far our FocalNets are from those of timm and transformers, with random weights.

    pip install '.[test]'
    python benchmarks/parity.py
    python benchmarks/parity.py --variants=focalnet_tiny_srf --size=224 --full

Each variant is compared with each peer that can express it. Without --full it is cut to
one block a stage and a quarter of its channels. The columns are relative errors, the
greatest |ours - theirs| over the greatest |theirs|:

f64 layer       in float64, the worst layer
f64 grad        in float64, the worst gradient to a parameter
f32             our logits in float32, against theirs in float64
bf16 ours       our logits in bfloat16, against theirs in float64
bf16 theirs     their logits in bfloat16, against theirs in float64
round trip      whether weights that go from the peer to Flax and back stay bit-equal
"""

import argparse
import logging

import jax
import jax.numpy as jnp
import numpy as np
import torch

from focalnet_jax import create_model, list_models
from focalnet_jax.convert import from_torch, to_torch
from focalnet_jax.errors import SetupError
from focalnet_jax.models.variants import VARIANTS
from focalnet_jax.parity.compare import difference
from focalnet_jax.parity.peers import build_peer, run_peer

COLUMNS = ("f64 layer", "f64 grad", "f32", "bf16 ours", "bf16 theirs", "round trip")


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", default="*", help="a shell-style pattern")
    parser.add_argument("--size", type=int, default=64, help="side of images in pixels")
    parser.add_argument("--full", action="store_true", help="keep blocks and channels")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    logging.getLogger("focalnet_jax").setLevel(
        logging.ERROR
    )  # Other precisions are meant.
    print(f"{'variant':22}{'peer':14}" + "".join(f"{c:>13}" for c in COLUMNS))
    for seed, name in enumerate(list_models(args.variants)):
        variant = VARIANTS[name]
        depths, embed_dim = (1,) * len(variant["depths"]), variant["embed_dim"] // 4
        cut = {} if args.full else dict(depths=depths, embed_dim=embed_dim)
        for kind in ("timm", "transformers"):
            try:
                row = measure(name, kind, args.size, cut, seed)
            except SetupError as error:
                print(f"{name:22}{kind:14}{'':6}{error}")
                continue
            cells = [value if isinstance(value, str) else f"{value:.1e}" for value in row]
            print(f"{name:22}{kind:14}" + "".join(f"{c:>13}" for c in cells), flush=True)


def measure(name, kind, size, cut, seed):
    """Measures one variant against one peer; returns the cells of a row."""

    def make(dtype):
        return create_model(name, num_classes=10, dtype=dtype, param_dtype=dtype, **cut)

    peer = build_peer(kind, make("float64")).double()
    randomise(peer, seed)
    state_dict = {k: v.numpy().copy() for k, v in peer.state_dict().items()}
    images = np.random.default_rng(1).normal(size=(2, size, size, 3))
    weights = np.random.default_rng(2).normal(size=(2, 10))

    model = make("float64")
    params = from_torch(state_dict, model)
    back = to_torch(params, model, dialect=kind)
    is_exact = all(back[k].tobytes() == v.tobytes() for k, v in state_dict.items())

    def loss(params):
        logits, outputs = model.apply({"params": params}, jnp.array(images))
        return (logits * weights).sum(), outputs | {"logits": logits}

    gradients, ours = jax.jit(jax.grad(loss, has_aux=True))(params)
    theirs = run_peer(peer, kind, images)
    (theirs["logits"] * torch.tensor(weights)).sum().backward()
    layer = max(error(ours[k], v.detach().numpy()) for k, v in theirs.items())
    given = to_torch(gradients, model, dialect=kind)
    gradient = max(error(given[k], p.grad.numpy()) for k, p in peer.named_parameters())

    # Weights and images are rounded once, so that bfloat16 holds them exactly.
    peer.bfloat16().double()
    state_dict = {k: v.numpy().copy() for k, v in peer.state_dict().items()}
    images = torch.tensor(images).bfloat16().double().numpy()
    with torch.no_grad():
        exact = run_peer(peer, kind, images)["logits"].numpy()
        half = run_peer(peer.bfloat16(), kind, images)["logits"].double().numpy()
    errors = []
    for dtype in ("float32", "bfloat16"):
        model = make(dtype)
        params = from_torch(state_dict, model)
        logits, _ = jax.jit(model.apply)({"params": params}, jnp.array(images, dtype))
        errors.append(error(np.asarray(logits), exact))
    return layer, gradient, *errors, error(half, exact), "exact" if is_exact else "FAILS"


def randomise(peer, seed):
    """Draws weights that all matter for the result, biases and norms too."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in peer.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.copy_(draw / fan_in**0.5)


def error(ours, theirs):
    """The relative error of two arrays."""
    return difference("", np.asarray(ours), np.asarray(theirs)).relative_error


if __name__ == "__main__":
    main()
