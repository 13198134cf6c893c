"""Quantised models for TensorRT, which has INT8 alone: INT32 biases become the FP32 that they stand for."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

from repo_builder.model import DataType
from repo_builder.onnx_model import graphs_of
from repo_builder.passes.graph import replace_nodes

if TYPE_CHECKING:
    import onnx


def dequantise_biases(source: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """The graph with every DequantizeLinear of INT32 constants, as quantisers make of biases, computed.

    ``folder`` has the external data.
    """
    if not any(_is_bias(node, _constants(graph)) for graph in graphs_of(source.graph) for node in graph.node):
        return source
    proto = deepcopy(source)
    for graph in graphs_of(proto.graph):
        constants = _constants(graph)
        rest = []
        for node in graph.node:
            if _is_bias(node, constants):
                graph.initializer.append(_dequantised(node, constants, folder))
            else:
                rest.append(node)
        replace_nodes(graph, rest)
    return proto


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in graph.initializer}


def _is_bias(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type != "DequantizeLinear" or not all(name in constants for name in node.input if name):
        return False
    values, scale = (constants[name] for name in node.input[:2])
    return values.data_type == DataType.INT32.onnx and len(scale.dims) <= 1


def _dequantised(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], folder: Path) -> onnx.TensorProto:
    """What ``node`` computes, (x - zero point) scale, where these are one for all or one for each along ``axis``."""
    import numpy as np
    from onnx import numpy_helper

    x, scale, *zero = (numpy_helper.to_array(constants[name], str(folder)) for name in node.input if name)
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    shape = [1] * x.ndim
    if scale.size > 1:
        shape[axis] = scale.size
    shifted = x - zero[0].reshape(shape) if zero else x
    return numpy_helper.from_array(
        (shifted.astype(np.float32) * scale.reshape(shape)).astype(scale.dtype), node.output[0]
    )
