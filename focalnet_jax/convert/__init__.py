"""PyTorch weights in and out; `python -m focalnet_jax.convert --help`."""

from focalnet_jax.convert.conversion import from_torch, infer_model, to_torch

__all__ = ["from_torch", "infer_model", "to_torch"]
