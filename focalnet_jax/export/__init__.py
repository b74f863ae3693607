"""Models as programs that run without this package."""

from focalnet_jax.export.onnx_graph import export_onnx
from focalnet_jax.export.stablehlo import export_program

__all__ = ["export_onnx", "export_program"]
