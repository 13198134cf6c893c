"""UINT8 for TensorRT, which takes it at inputs and outputs alone: what moves such values moves them as FP32."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

from repo_builder.model import DataType
from repo_builder.passes.graph import all_names, fresh_name, names_read, replace_nodes, sort_nodes
from repo_builder.passes.ranges import operator_of

if TYPE_CHECKING:
    import onnx

_MOVES = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape",
    "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
_COMPARES = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
_READS = frozenset({"Cast", "Shape", "Size"})
_UINT8, _FP32 = DataType.UINT8.onnx, DataType.FP32.onnx


def move_uint8_as_fp32(source: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with UINT8 inputs cast to FP32, which holds all their values, before they are moved or compared.

    Outputs, and what is not the same in FP32 (arithmetic wraps at 256), still get UINT8, which is cast back.

    Raises:
        ModelError: the graph has a cycle.
    """
    from onnx import helper

    if not any(value.type.tensor_type.elem_type == _UINT8 for value in source.graph.input):
        return source
    proto = deepcopy(source)
    graph = proto.graph
    sort_nodes(graph)
    names, uint8 = all_names(graph), _inputs_and_constants(graph)
    in_fp32: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        operator = operator_of(node)
        first = node.input[:3:2] if operator == "Pad" else node.input[:1]  # and what it pads with
        data = node.input if operator in _COMPARES | {"Concat"} else first
        same = operator in _MOVES | _COMPARES and uint8.issuperset(filter(None, data))
        for name in node.input if same else ():
            if name in uint8 and name not in in_fp32:
                in_fp32[name] = fresh_name(f"{name}_fp32", names)
                nodes.append(helper.make_node("Cast", [name], [in_fp32[name]], to=_FP32))
        if same or operator in _READS:
            node.input[:] = [in_fp32.get(name, name) for name in node.input]
        nodes.append(node)
        for index, name in enumerate(node.output if same and operator in _MOVES else ()):
            in_fp32[name] = node.output[index] = fresh_name(f"{name}_fp32", names)
            nodes.append(helper.make_node("Cast", [in_fp32[name]], [name], to=_UINT8))
            uint8.add(name)
    if not in_fp32:
        return source
    read = {name for node in nodes for name in names_read(node)} | {value.name for value in graph.output}
    unread = in_fp32.keys() - read
    replace_nodes(graph, [node for node in nodes if unread.isdisjoint(node.output)])
    return proto


def _inputs_and_constants(graph: onnx.GraphProto) -> set[str]:
    """The names of those that are UINT8."""
    inputs = {value.name for value in graph.input if value.type.tensor_type.elem_type == _UINT8}
    initialisers = {tensor.name for tensor in graph.initializer if tensor.data_type == _UINT8}
    constants = (node for node in graph.node if node.op_type == "Constant")
    return (
        inputs
        | initialisers
        | {node.output[0] for node in constants if any(attribute.t.data_type == _UINT8 for attribute in node.attribute)}
    )
