"""The nodes and constants of a graph of ONNX."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# The first version of the operators that has Gelu, and a version of the file format that
# programs of the same year read.
_OPSET, _IR_VERSION = 20, 10


class Graph:
    """Collects nodes and constants.

    Called with an operator and its inputs, it adds a node, and returns the name of the
    result, or of the results.
    """

    def __init__(self, onnx):
        self._onnx = onnx
        self._nodes, self._constants = [], []
        self._names: dict[tuple, str] = {}

    def __call__(
        self, operator: str, *inputs: str, results: int = 1, name: str = "", **attributes
    ):
        stem = name or f"{operator}_{len(self._nodes)}"
        names = [f"{stem}_{n}" for n in range(results)] if results > 1 else [stem]
        node = self._onnx.helper.make_node(operator, inputs, names, **attributes)
        self._nodes.append(node)
        return names if results > 1 else names[0]

    def constant(self, values, *, name: str | None = None) -> str:
        """Adds an array; equal ones without a name are added once."""
        array = np.ascontiguousarray(values)
        if name is None:
            key = array.dtype, array.shape, array.tobytes()
            if key in self._names:
                return self._names[key]
            name = self._names[key] = f"constant_{len(self._names)}"
        self._constants.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def integers(self, values: Sequence[int]) -> str:
        return self.constant(np.asarray(values, np.int64))

    def type_of(self, dtype: np.dtype) -> int:
        """The number of a type in ONNX."""
        return self._onnx.helper.np_dtype_to_tensor_dtype(dtype)

    def model(
        self,
        inputs: Mapping[str, list],
        results: Mapping[str, list],
        *,
        metadata: Mapping[str, Any],
    ):
        """The graph as an `onnx.ModelProto`.

        Args:
          inputs: the shapes of arrays of float32, by their names. A size may be a name.
          results: the same of the results.
          metadata: what the file says of the model, as JSON texts by name.
        """
        helper, kind = self._onnx.helper, self._onnx.TensorProto.FLOAT
        told = [
            [
                helper.make_tensor_value_info(name, kind, shape)
                for name, shape in arrays.items()
            ]
            for arrays in (inputs, results)
        ]
        proto = helper.make_model(
            helper.make_graph(self._nodes, "FocalNet", *told, self._constants),
            opset_imports=[helper.make_opsetid("", _OPSET)],
            producer_name="focalnet_jax",
            ir_version=_IR_VERSION,
        )
        texts = {name: json.dumps(value) for name, value in metadata.items()}
        helper.set_model_props(proto, texts)
        return proto
