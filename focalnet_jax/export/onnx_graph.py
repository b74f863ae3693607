"""ONNX: the graph of a model, written node by node from its options and parameters.

Nothing is traced, so a LayerNorm is one node, and so is a GELU or a depthwise
convolution. Maps are channels last, as in the model, but for convolutions, which ONNX
knows with the channels first. So are the input and the maps that are results.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from focalnet_jax.convert.precision import cast
from focalnet_jax.errors import SetupError, check_choice
from focalnet_jax.export.description import check_is_exported
from focalnet_jax.export.onnx_nodes import Graph
from focalnet_jax.models import FocalNet
from focalnet_jax.models.size import Model
from focalnet_jax.trees import named_leaves

_EPSILON = 1e-5  # of LayerNorms

DTYPES = ("float32", "float16")  # in which matrices and kernels are stored

# Names of sizes that the graph leaves open, by the number of spatial axes.
_SIZES = {1: ("time",), 2: ("height", "width"), 3: ("time", "height", "width")}


def export_onnx(
    model: Model,
    params: Mapping[str, Any],
    *,
    metadata: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    outputs: Sequence[str] = (),
) -> Any:
    """Makes the graph of a model, which computes in float32.

        proto = export_onnx(model, params)
        pathlib.Path("net.onnx").write_bytes(proto.SerializeToString())

    Args:
      model: a classifier or a backbone.
      params: its parameters.
      metadata: what the file says of the model, as JSON texts by name.
      dtype: in which matrices and kernels are stored, `"float32"` or `"float16"`, which
        makes the file half as large. Vectors, which are few and may be small numbers,
        stay in float32.
      outputs: the names of further results, as the model names what it returns beside
        its logits, such as `stage2/block5/gates`. A backbone has those of the stages that
        it computes.

    Returns:
      An `onnx.ModelProto`. Its input `images` is `float32 [batch, channels, *spatial]`,
      of any size that the net takes. A classifier has one result, `logits`, `[batch,
      classes]`, and a backbone one for each stage, `stage0` and so on, `[batch, c,
      *smaller]`. The further results follow, in the order of `outputs` and under these
      names; maps are `[batch, c, *smaller]`.

    Raises:
      SetupError: the library `onnx` is not installed, the model is one for masked images,
        its operator is not focal modulation itself, or a parameter is too large for
        float16.
      ValueError: `dtype` is another one, or `outputs` has a name that is none of the
        model's.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is none of {', '.join(DTYPES)}")
    try:
        import onnx
    except ImportError as error:
        raise SetupError(
            "the library onnx is not installed: pip install 'focalnet_jax[export]'"
        ) from error
    check_is_exported(model)
    encoder = model.encoder
    if not encoder.has_focal_modulation:
        raise SetupError(
            "only focal modulation itself is written as ONNX, and the operator of this "
            f"model is {encoder.modulation}"
        )
    graph = Graph(onnx)
    writer = _Writer(graph, encoder, params, np.dtype(dtype))
    if isinstance(model, FocalNet):
        results = writer.classifier(model)
    else:
        results = writer.backbone(model)
    results |= writer.outputs(outputs, besides=results)
    images = ["batch", encoder.in_channels, *_SIZES[encoder.spatial_rank]]
    return graph.model({"images": images}, results, metadata=metadata or {})


class _Writer:
    """Writes the parts of a model into a graph. Maps are known by their names in it.

    Args:
      graph: is written to.
      encoder: whose options count.
      params: of the model.
      dtype: in which matrices and kernels are stored.
    """

    def __init__(self, graph: Graph, encoder, params: Mapping[str, Any], dtype: np.dtype):
        self._graph, self._encoder, self._dtype = graph, encoder, dtype
        self._params = {
            name: np.asarray(leaf, np.float32)
            for name, leaf in named_leaves(params).items()
        }
        rank = encoder.spatial_rank
        self._spatial = list(range(1, rank + 1))
        self._to_first = [0, rank + 1, *self._spatial]
        self._to_last = [0, *range(2, rank + 2), 1]
        # What the model names, with the number of channels.
        self._named: dict[str, tuple[str, int]] = {}

    # --- Whole models

    def classifier(self, model: FocalNet) -> dict[str, list]:
        """Writes a classifier; returns its result with its shape."""
        graph = self._graph
        *_, (last, _) = self._stages()
        is_headless = not model.num_classes
        pooled = graph(
            "ReduceMean",
            self._norm(last, "norm"),
            graph.integers(self._spatial),
            keepdims=0,
            name="logits" if is_headless else "",
        )
        channels = self._params["norm/scale"].shape[0]
        self._named["pre_logits"] = pooled, channels
        if not is_headless:
            kernel, bias = (self._weight(f"head/{name}") for name in ("kernel", "bias"))
            graph("Gemm", pooled, kernel, bias, name="logits")
        return {"logits": ["batch", model.num_classes or channels]}

    def backbone(self, model: Model) -> dict[str, list]:
        """Writes a backbone; returns its results with their shapes."""
        results = {}
        stages = itertools.islice(self._stages(), max(model.out_stages) + 1)
        for index, (x, channels) in enumerate(stages):
            if index not in model.out_stages:
                continue
            if model.out_norm:
                x = self._norm(x, f"norm{index}")
            name = f"stage{index}"
            results[name] = self._map_as_result(x, channels, name)
        return {f"stage{index}": results[f"stage{index}"] for index in model.out_stages}

    def outputs(self, names: Sequence[str], *, besides: Mapping) -> dict[str, list]:
        """Makes results of what the model names; returns them with their shapes.

        Args:
          names: of the model's outputs, once the model has been written.
          besides: the results that there are, whose names are taken.
        """
        results = {}
        for name in dict.fromkeys(names):
            check_choice("outputs", name, self._named.keys() - besides.keys())
            x, channels = self._named[name]
            if name == "pre_logits":
                self._graph("Identity", x, name=name)
                results[name] = ["batch", channels]
            else:
                results[name] = self._map_as_result(x, channels, name)
        return results

    def _map_as_result(self, x: str, channels: int, name: str) -> list:
        self._channels_first(x, name=name)
        sizes = [f"{name}_{size}" for size in _SIZES[self._encoder.spatial_rank]]
        return ["batch", channels, *sizes]

    def _stages(self):
        """Yields the map of each stage before its downsampling, and its channels."""
        encoder = self._encoder
        embeddings = encoder._embeddings()
        x = self._embedding("images", "patch_embed", embeddings[0])
        self._named["stem"] = x, encoder.embed_dim
        for stage, depth in enumerate(encoder.depths):
            channels = encoder.embed_dim * 2**stage
            for block in range(depth):
                output = f"stage{stage}/block{block}"
                x = self._block(x, f"layers_{stage}/blocks_{block}", output)
                self._named[output] = x, channels
            self._named[f"stage{stage}"] = x, channels
            yield x, channels
            if stage + 1 < len(encoder.depths):
                name = f"layers_{stage}/downsample"
                x = self._embedding(self._channels_first(x), name, embeddings[stage + 1])
                self._named[f"stage{stage}/downsample"] = x, 2 * channels

    # --- Their parts

    def _embedding(self, x: str, name: str, make) -> str:
        """A convolution of a map with the channels first, and a LayerNorm."""
        graph, layer = self._graph, make(parent=None)
        if max(layer.pad_to) > 1:
            x = self._padded(x, layer.pad_to)
        x = graph(
            "Conv",
            x,
            self._kernel(f"{name}/proj/kernel"),
            self._weight(f"{name}/proj/bias"),
            strides=list(layer.stride),
            pads=[*layer.padding] * 2,
            kernel_shape=list(layer.kernel_size),
        )
        return self._norm(self._channels_last(x), f"{name}/norm")

    def _padded(self, x: str, multiples: Sequence[int]) -> str:
        """Adds zeros at the end of each spatial axis up to a multiple."""
        graph = self._graph
        sizes = graph("Shape", x, start=2)
        missing = graph("Mod", graph("Neg", sizes), graph.integers(multiples))
        zeros = graph.integers([0] * (len(multiples) + 4))
        return graph("Pad", x, graph("Concat", zeros, missing, axis=0))

    def _block(self, x: str, name: str, output: str) -> str:
        """A block, whose parameters and outputs have these names."""
        is_post = self._encoder.use_postln
        y = x if is_post else self._norm(x, f"{name}/norm1")
        y = self._modulation(y, f"{name}/modulation", output)
        y = self._norm(y, f"{name}/norm1") if is_post else y
        x = self._graph("Add", x, self._scaled(y, f"{name}/gamma_1"))
        y = x if is_post else self._norm(x, f"{name}/norm2")
        y = self._gelu(self._dense(y, f"{name}/mlp/fc1"))
        y = self._dense(y, f"{name}/mlp/fc2")
        y = self._norm(y, f"{name}/norm2") if is_post else y
        return self._graph("Add", x, self._scaled(y, f"{name}/gamma_2"))

    def _scaled(self, x: str, name: str) -> str:
        if name not in self._params:
            return x
        return self._graph("Mul", x, self._weight(name))

    def _modulation(self, x: str, name: str, output: str) -> str:
        """Equation 6 of the paper."""
        graph = self._graph
        channels = self._params[f"{name}/proj/bias"].shape[0]
        gates = self._params[f"{name}/f/bias"].shape[0] - 2 * channels
        parts = graph.integers([channels, channels, gates])
        query, *others = graph(
            "Split", self._dense(x, f"{name}/f"), parts, results=3, axis=-1
        )
        self._named[f"{output}/gates"] = others[1], gates
        context, all_gates = map(self._channels_first, others)
        aggregated = self._channels_last(
            self._aggregated(context, all_gates, gates, name)
        )
        modulator = self._dense(aggregated, f"{name}/h")
        self._named[f"{output}/modulator"] = modulator, channels
        y = graph("Mul", query, modulator)
        if self._encoder.use_postln_in_modulation:
            y = self._norm(y, f"{name}/ln")
        return self._dense(y, f"{name}/proj")

    def _aggregated(self, context: str, all_gates: str, count: int, name: str) -> str:
        """Equations 4 and 5, on maps with the channels first."""
        graph, encoder = self._graph, self._encoder
        gates = graph(
            "Split", all_gates, graph.integers([1] * count), results=count, axis=1
        )
        products = []
        for level in range(count - 1):
            convolved = self._depthwise(context, f"{name}/focal_layers_{level}")
            context = self._gelu(convolved)
            products.append(graph("Mul", context, gates[level]))
        axes = encoder.global_axes or range(encoder.spatial_rank)
        if encoder.causal:
            axes = range(1, encoder.spatial_rank)
        if axes := [axis + 2 for axis in axes]:
            context = graph("ReduceMean", context, graph.integers(axes), keepdims=1)
        if encoder.causal:  # A last kernel over time takes the place of its mean.
            context = self._depthwise(context, f"{name}/focal_layers_{count - 1}")
        products.append(graph("Mul", self._gelu(context), gates[-1]))
        total = products[0]
        for product in products[1:]:
            total = graph("Add", total, product)
        if encoder.normalize_modulator:
            total = graph("Div", total, graph.constant(np.float32(count)))
        return total

    def _depthwise(self, x: str, name: str) -> str:
        graph = self._graph
        *sizes, _, channels = self._params[f"{name}/kernel"].shape
        before = [(size - 1) // 2 for size in sizes]
        after = [size // 2 for size in sizes]
        if self._encoder.causal:
            # The first position stands for all that is before the beginning.
            rank = len(sizes)
            past = [0, 0, sizes[0] - 1] + [0] * (2 * rank + 1)
            x = graph("Pad", x, graph.integers(past), mode="edge")
            before[0] = after[0] = 0
        bias = f"{name}/bias"
        return graph(
            "Conv",
            x,
            self._kernel(f"{name}/kernel"),
            *([self._weight(bias)] if bias in self._params else []),
            group=channels,
            kernel_shape=sizes,
            pads=before + after,
        )

    # --- Layers

    def _dense(self, x: str, name: str) -> str:
        y = self._graph("MatMul", x, self._weight(f"{name}/kernel"))
        return self._graph("Add", y, self._weight(f"{name}/bias"))

    def _norm(self, x: str, name: str) -> str:
        weights = [self._weight(f"{name}/{part}") for part in ("scale", "bias")]
        return self._graph("LayerNormalization", x, *weights, axis=-1, epsilon=_EPSILON)

    def _gelu(self, x: str) -> str:
        return self._graph("Gelu", x)

    def _channels_first(self, x: str, **options) -> str:
        return self._graph("Transpose", x, perm=self._to_first, **options)

    def _channels_last(self, x: str) -> str:
        return self._graph("Transpose", x, perm=self._to_last)

    def _kernel(self, name: str) -> str:
        """A kernel, with its axes in the order of ONNX."""
        kernel = self._params[name]
        rank = kernel.ndim
        order = rank - 1, rank - 2, *range(rank - 2)
        return self._stored(kernel.transpose(order), name)

    def _weight(self, name: str) -> str:
        return self._stored(self._params[name], name)

    def _stored(self, array: np.ndarray, name: str) -> str:
        """A parameter in float32, which a node makes of what is stored."""
        graph = self._graph
        if array.ndim < 2 or array.dtype == self._dtype:
            return graph.constant(array, name=name)
        stored = graph.constant(
            cast(name, array, self._dtype), name=f"{name}/{self._dtype}"
        )
        return graph("Cast", stored, name=name, to=graph.type_of(array.dtype))
