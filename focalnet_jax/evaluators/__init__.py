"""Evaluators: `run(variables, ...)` yields pairs of a metric's name and its value."""

from focalnet_jax.evaluators.accuracy import Accuracy
from focalnet_jax.evaluators.details import Details
from focalnet_jax.evaluators.mean import Mean
from focalnet_jax.evaluators.overlap import Overlap

__all__ = ["Accuracy", "Details", "Mean", "Overlap"]
