"""A page that runs a model in the browser, on the user's own images."""

from focalnet_jax.demo.page import write_page
from focalnet_jax.demo.runtime import Runtime, find_runtime

__all__ = ["Runtime", "find_runtime", "write_page"]
