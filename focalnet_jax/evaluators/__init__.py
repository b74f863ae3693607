"""Evaluators: `run(params)` yields pairs of a metric's name and its value."""

from focalnet_jax.evaluators.classification import Classification

__all__ = ["Classification"]
