"""JAX compared with PyTorch, layer by layer; `python -m focalnet_jax.parity --help`."""
