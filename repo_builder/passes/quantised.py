"""Quantised models for TensorRT, which has INT8 alone: INT32 biases become the numbers that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

from repo_builder.model import DataType
from repo_builder.onnx_model import nodes_of, subgraphs
from repo_builder.passes.graph import constants_in, integer_attributes, replace_nodes

if TYPE_CHECKING:
    import onnx

    Constants = Mapping[str, onnx.TensorProto]


def output_steps(proto: onnx.ModelProto) -> dict[str, float]:
    """The scales, the largest where there are several, of outputs that a DequantizeLinear makes: one step of each."""
    from onnx import TensorProto, numpy_helper

    inside = {t.name: t for t in proto.graph.initializer if t.data_location != TensorProto.EXTERNAL}
    outputs = {value.name for value in proto.graph.output}
    return {
        node.output[0]: float(numpy_helper.to_array(inside[node.input[1]]).astype(float).max(initial=0.0))
        for node in proto.graph.node
        if node.op_type == "DequantizeLinear" and node.output[0] in outputs and node.input[1] in inside
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
    constants = constants_in(graph, outer)
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


def _is_bias(node: onnx.NodeProto, constants: Constants) -> bool:
    """Whether all of it is known, and one scale is for all values or one for each along an axis."""
    if node.op_type != "DequantizeLinear" or not all(name in constants for name in node.input if name):
        return False
    options = integer_attributes(node)
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
        shape[integer_attributes(node).get("axis", 1)] = scale.size
    shifted = x - zero[0].reshape(shape) if zero else x
    made = shifted.astype(np.float32) * scale.reshape(shape)
    return numpy_helper.from_array(made.astype(scale.dtype), node.output[0])
