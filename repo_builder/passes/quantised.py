"""Quantised models for TensorRT, which has INT8 alone: INT32 biases become the numbers that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repo_builder.model import DataType
from repo_builder.onnx_model import nodes_of, subgraphs
from repo_builder.passes.graph import own_names, replace_nodes

if TYPE_CHECKING:
    import onnx

    Constants = Mapping[str, onnx.TensorProto]


def output_steps(proto: onnx.ModelProto) -> dict[str, float]:
    """The scales, the largest where there are several, of outputs that a DequantizeLinear makes: one step of each."""
    from onnx import TensorProto, numpy_helper

    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    outputs = {value.name for value in proto.graph.output}
    scales = {
        node.output[0]: constants.get(node.input[1], TensorProto(data_location=TensorProto.EXTERNAL))
        for node in proto.graph.node
        if node.op_type == "DequantizeLinear" and node.output[0] in outputs
    }
    return {
        name: float(numpy_helper.to_array(scale).astype(float).max(initial=0.0))
        for name, scale in scales.items()
        if scale.data_location != TensorProto.EXTERNAL
    }


def dequantise_biases(source: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """The graph with every DequantizeLinear of INT32 constants, as quantisers make of biases, computed.

    ``folder`` has the external data.
    """
    if not any(node.op_type == "DequantizeLinear" for node in nodes_of(source.graph)):
        return source
    proto = deepcopy(source)
    return proto if _dequantise(proto.graph, {}, folder) else source


def _dequantise(graph: onnx.GraphProto, outer: Constants, folder: Path) -> bool:
    """Whether there were any in ``graph`` or its subgraphs; ``outer`` are constants of the graphs around it."""
    own = own_names(graph)
    constants = {name: tensor for name, tensor in outer.items() if name not in own}
    constants.update({tensor.name: tensor for tensor in graph.initializer})
    rest, found = [], False
    for node in graph.node:
        if node.op_type == "Constant":
            constants.update((node.output[0], value.t) for value in node.attribute if value.name == "value")
        for body in subgraphs(node):
            found |= _dequantise(body, constants, folder)
        if _is_bias(node, constants):
            graph.initializer.append(_dequantised(node, constants, folder))
        else:
            rest.append(node)
    if len(rest) < len(graph.node):
        replace_nodes(graph, rest)
        return True
    return found


def _options(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: attribute.i for attribute in node.attribute}


def _is_bias(node: onnx.NodeProto, constants: Constants) -> bool:
    """Whether all of it is known, and one scale is for all values or one for each along an axis."""
    if node.op_type != "DequantizeLinear" or not all(name in constants for name in node.input if name):
        return False
    options = _options(node)
    values, scale = (constants[name] for name in node.input[:2])
    if values.data_type != DataType.INT32.onnx or options.get("output_dtype", scale.data_type) != scale.data_type:
        return False
    axis, rank = options.get("axis", 1), len(values.dims)
    along_axis = -rank <= axis < rank and list(scale.dims) == [values.dims[axis]]
    return along_axis or list(scale.dims) in ([], [1])


def _dequantised(node: onnx.NodeProto, constants: Constants, folder: Path) -> onnx.TensorProto:
    """What ``node`` computes: (x - zero point) scale."""
    import numpy as np
    from onnx import numpy_helper

    x, scale, *zero = (numpy_helper.to_array(constants[name], str(folder)) for name in node.input if name)
    shape = [1] * x.ndim
    if scale.size > 1:
        shape[_options(node).get("axis", 1)] = scale.size
    shifted = x - zero[0].reshape(shape) if zero else x
    made = shifted.astype(np.float32) * scale.reshape(shape)
    return numpy_helper.from_array(made.astype(scale.dtype), node.output[0])
