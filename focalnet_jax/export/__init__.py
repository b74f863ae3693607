"""Models as programs that run without this package, and as other libraries load them."""

from focalnet_jax.export.hub import export_hub
from focalnet_jax.export.onnx_graph import export_onnx
from focalnet_jax.export.stablehlo import export_program

__all__ = ["export_hub", "export_onnx", "export_program"]
