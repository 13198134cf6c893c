"""What passes over whole graphs share: names, sorting, constants, inferred types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, TypeVar

from repo_builder.errors import ModelError
from repo_builder.onnx_model import constant_integers, graphs_of, subgraphs

if TYPE_CHECKING:
    import onnx

_Constant = TypeVar("_Constant")

_SMALL = 1 << 10
"""Bytes; larger constants tell type inference nothing that their shape does not."""


def inlined(source: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``source`` without local functions, in whose place are their nodes."""
    from onnx import inliner

    return inliner.inline_local_functions(source) if source.functions else deepcopy(source)


def own_names(graph: onnx.GraphProto) -> set[str]:
    """The tensors that ``graph`` itself has: inputs, constants, and what its nodes make."""
    return {
        *(value.name for value in graph.input),
        *(tensor.name for tensor in graph.initializer),
        *(tensor.values.name for tensor in graph.sparse_initializer),
        *(name for node in graph.node for name in node.output),
    }


def constants_in(graph: onnx.GraphProto, outer: Mapping[str, _Constant]) -> dict[str, onnx.TensorProto | _Constant]:
    """The initialisers that nodes of ``graph`` can read, by name: its own, and ``outer``, of the graphs around it."""
    own = own_names(graph)
    return {
        **{name: value for name, value in outer.items() if name not in own},
        **{tensor.name: tensor for tensor in graph.initializer},
    }


def integer_attributes(node: onnx.NodeProto) -> dict[str, int]:
    """The attributes of ``node`` that are single integers, by name; 0 stands for those that are not."""
    return {attribute.name: attribute.i for attribute in node.attribute}


def all_names(graph: onnx.GraphProto) -> set[str]:
    """Every tensor name in ``graph`` and its subgraphs."""
    return {name for inner in graphs_of(graph) for name in own_names(inner)}


def fresh_name(stem: str, names: set[str]) -> str:
    """``stem``, with a number behind it where it is one of ``names``, to which the result is added."""
    name, number = stem, 1
    while name in names:
        number += 1
        name = f"{stem}_{number}"
    names.add(name)
    return name


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Order the nodes of ``graph`` and its subgraphs in place so that each comes behind those it reads from.

    Raises:
        ModelError: the graph has a cycle.
    """
    for node in graph.node:
        for subgraph in subgraphs(node):
            sort_nodes(subgraph)
    made_here = {name for node in graph.node for name in node.output if name}
    made: set[str] = set()
    waiting = list(graph.node)
    order: list[onnx.NodeProto] = []
    while waiting:
        later = []
        for node in waiting:
            if all(name in made or name not in made_here for name in names_read(node)):
                order.append(node)
                made.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            name = later[0].name or later[0].output[0]
            raise ModelError(f"the graph has a cycle through node {name!r}", "export the model again")
        waiting = later
    if any(one is not other for one, other in zip(order, graph.node, strict=True)):
        replace_nodes(graph, order)


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """Names a node reads, those that its subgraphs capture too; their own names may be those of others elsewhere."""
    yield from node.input
    for graph in subgraphs(node):
        own = own_names(graph)
        read = [name for inner in graph.node for name in names_read(inner)]
        yield from (name for name in (*read, *(value.name for value in graph.output)) if name not in own)


def replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Make ``nodes``, some of them perhaps the graph's own, all of its nodes."""
    copies = deepcopy(nodes)
    del graph.node[:]
    graph.node.extend(copies)


def drop_initialiser_inputs(proto: onnx.ModelProto) -> None:
    """Make weights that ir_version 3 listed as inputs too the constants that they are, in place."""
    initialisers = {tensor.name for tensor in proto.graph.initializer}
    for index in reversed(range(len(proto.graph.input))):
        if proto.graph.input[index].name in initialisers:
            del proto.graph.input[index]
    proto.ir_version = max(proto.ir_version, 4)


def integer_constants(graph: onnx.GraphProto) -> dict[str, list[int]]:
    """The rows of integers that ``graph`` has as constants by name; other Constant nodes have empty ones."""
    found = {tensor.name: constant_integers(tensor) for tensor in graph.initializer if len(tensor.dims) == 1}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute:
            found[node.output[0]] = constant_integers(node.attribute[0].t) or list(node.attribute[0].ints)
    return found


def infer_types(proto: onnx.ModelProto) -> None:
    """Write what ONNX infers of inner values into the ``value_info`` of every graph of ``proto``.

    Raises:
        ModelError: types contradict each other.
    """
    import onnx

    light = deepcopy(proto)
    for tensor in light.graph.initializer:
        if tensor.ByteSize() > _SMALL:
            dims, dtype, name = list(tensor.dims), tensor.data_type, tensor.name
            tensor.Clear()
            tensor.dims.extend(dims)
            tensor.data_type, tensor.name = dtype, name
            tensor.data_location = onnx.TensorProto.EXTERNAL
    try:
        inferred = onnx.shape_inference.infer_shapes(light, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"the types inside the graph contradict each other: {reason}", "export the model again"
        ) from None
    _copy_value_info(inferred.graph, proto.graph)


def _copy_value_info(source: onnx.GraphProto, target: onnx.GraphProto) -> None:
    del target.value_info[:]
    target.value_info.extend(source.value_info)
    for node, twin in zip(target.node, source.node, strict=True):
        for subgraph, other in zip(subgraphs(node), subgraphs(twin), strict=True):
            _copy_value_info(other, subgraph)


def sizes_of(value: onnx.ValueInfoProto) -> list[int | None] | None:
    """Of each axis, None in place of a free one's; None where not even the rank is known."""
    if not value.type.tensor_type.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
