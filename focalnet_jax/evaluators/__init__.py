"""Evaluators: `run(variables, ...)` yields pairs of a metric's name and its value."""

from focalnet_jax.evaluators.accuracy import Accuracy
from focalnet_jax.evaluators.mean import Mean

__all__ = ["Accuracy", "Mean"]
