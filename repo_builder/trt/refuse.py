"""Models that no TensorRT takes: told here since its parser names none, writes to stderr, or dies of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

from repo_builder.compilers.base import Target
from repo_builder.errors import CompileError
from repo_builder.model import DataType
from repo_builder.trt.library import LIBRARY_NAMES
from repo_builder.trt.messages import described, name_of
from repo_builder.trt.options import QUANTISED_FOR_TENSORRT, Profile
from repo_builder.trt.profiles import inputs_of, refuse_incomplete

if TYPE_CHECKING:
    import onnx

    from repo_builder.onnx_model import OnnxModel

_AGAIN = "the graph is broken there: export the model again, or, after surgery on it, clean it up"

_NEVER = {DataType.STRING, DataType.INT16, DataType.UINT16, DataType.UINT32, DataType.UINT64}


def refuse_model(
    target: Target, model: OnnxModel, profiles: Sequence[Profile], *, batchable: bool, max_batch_size: int
) -> None:
    """Raise what TensorRT can't take of ``model``, told from it alone: before anything runs, which may take long.

    ``batchable`` says that the first axes are a batch, or may prove to be one.

    Raises:
        CompileError: the graph can't be parsed; or an axis is free, not the batch, and has no range.
        UsageError: ``profiles`` name what is no input; the batch is too large for any.
    """
    _refuse_graph(LIBRARY_NAMES[target], model.proto)
    inputs, _ = model.ports()
    named = inputs_of(inputs, batchable=batchable)
    refuse_incomplete(named, profiles, batchable=batchable, max_batch_size=max_batch_size)


def _refuse_graph(library: str, proto: onnx.ModelProto) -> None:
    """Raise CompileError for a graph that can't be parsed, with the port, node or tensor that it fails of."""
    from repo_builder.onnx_model import graphs_of

    _refuse_types(library, proto)
    _refuse_passed_through(library, proto)
    _refuse_unmade(library, proto.graph, frozenset())
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    for graph in graphs_of(proto.graph):
        _refuse_nodes(library, graph, opsets)
        _refuse_cycle(library, graph)
        _refuse_tensors(library, graph)


def _refuse_types(library: str, proto: onnx.ModelProto) -> None:
    """Raise CompileError for tensors of types that no TensorRT has: its parser names none of them."""
    graph = proto.graph
    types = [("input", value.name, value.type.tensor_type.elem_type) for value in graph.input]
    types += [("output", value.name, value.type.tensor_type.elem_type) for value in graph.output]
    types += [("initializer", tensor.name, tensor.data_type) for tensor in graph.initializer]
    stated = [(role, name, DataType.from_onnx(number)) for role, name, number in types]
    never = [f"its {role} {name!r} is {dtype.value}" for role, name, dtype in stated if dtype in _NEVER]
    if never:
        hint = "give it another type in the model and convert outside"
        if any(node.op_type == "QuantizeLinear" for node in graph.node):
            hint = QUANTISED_FOR_TENSORRT
        hint = f"{hint}, or serve it by add --target onnxruntime"
        raise _refusal(library, ", ".join(never), hint)


def _refuse_passed_through(library: str, proto: onnx.ModelProto) -> None:
    """Raise CompileError for an output that is an input: TensorRT would call the input ``__NAME``."""
    outputs = {value.name for value in proto.graph.output}
    for value in proto.graph.input:
        if value.name in outputs:
            hint = "export it without that output, which repeats the input, or serve it by add --target onnxruntime"
            raise _refusal(library, f"its input {value.name!r} is one of its outputs, too", hint)


def _refuse_unmade(library: str, graph: onnx.GraphProto, outer: frozenset[str]) -> None:
    """The parser dies of a name in a branch or loop that neither it nor a graph around it, ``outer``, has."""
    from repo_builder.onnx_model import subgraphs
    from repo_builder.passes.graph import own_names

    known = outer | own_names(graph)
    for value in graph.output:
        if value.name not in known:
            raise _refusal(library, f"nothing makes the output {value.name!r}")
    for node in graph.node:
        for name in filter(None, node.input):
            if name not in known:
                raise _refusal(library, f"{described(node)} reads {name!r}, which nothing makes")
        for body in subgraphs(node):
            _refuse_unmade(library, body, known)


def _refuse_nodes(library: str, graph: onnx.GraphProto, opsets: Mapping[str, int]) -> None:
    """The parser's end, by a segmentation fault, is a node that makes nothing, unless it is an If or a Loop."""
    makers = {value.name: "an input" for value in graph.input}
    makers |= {tensor.name: "an initializer" for tensor in graph.initializer}
    for node in graph.node:
        why = ""
        if not any(node.output) and node.op_type not in {"If", "Loop"}:
            why = f"{described(node)} has no output"
        elif len(node.input) < (least := _least_inputs(node, opsets)):
            why = f"{described(node)} has {len(node.input)} of {least} inputs"
        elif node.op_type == "Loop":
            why = _fault_of_body(node)
        for name in filter(None, node.output):
            why = f"{name!r} is {makers[name]}, and made by {described(node)}" if name in makers else why
            makers[name] = f"made by {described(node)}"
        if why:
            raise _refusal(library, why)


def _least_inputs(node: onnx.NodeProto, opsets: Mapping[str, int]) -> int:
    import onnx

    try:
        return int(onnx.defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain).min_input)
    except onnx.defs.SchemaError:  # not one of ONNX's
        return 0


def _fault_of_body(node: onnx.NodeProto) -> str:
    """Why the body of a Loop is not one, empty if it is: the parser dies of a state or an output that it lacks.

    It takes the turn's number, the condition and the states; it makes the condition, and of each turn the outputs.
    """
    from repo_builder.onnx_model import subgraphs

    body = next(subgraphs(node), None)
    has = (len(body.input), len(body.output)) if body else (0, 0)
    asked = (max(len(node.input), 2), 1 + len(node.output))
    if has == asked:
        return ""
    return f"the body of {described(node)} has {has[0]} of {asked[0]} inputs and {has[1]} of {asked[1]} outputs"


def _refuse_cycle(library: str, graph: onnx.GraphProto) -> None:
    from repo_builder.passes.graph import names_read

    maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    order = {
        index: {maker[name] for name in names_read(node) if name in maker} for index, node in enumerate(graph.node)
    }
    try:
        TopologicalSorter(order).prepare()
    except CycleError as error:
        node = graph.node[error.args[1][0]]
        waits = f"{described(node)} waits for its own output"
        raise _refusal(library, waits, "the graph has a cycle: export the model again") from None


def _refuse_tensors(library: str, graph: onnx.GraphProto) -> None:
    from onnx import TensorProto, numpy_helper

    constants = ((part.t, name_of(node)) for node in graph.node for part in node.attribute if part.HasField("t"))
    for tensor, name in (*((tensor, tensor.name) for tensor in graph.initializer), *constants):
        if tensor.data_location == TensorProto.EXTERNAL:  # was looked at when the model was read
            continue
        try:
            numpy_helper.to_array(tensor).reshape([max(size, 0) for size in tensor.dims])  # which takes -1 for any
        except (ValueError, TypeError, KeyError) as error:
            broken = f"the values of {name!r} are not those of a tensor {list(tensor.dims)}: {error}"
            raise _refusal(library, broken) from None


def _refusal(library: str, why: str, hint: str = _AGAIN) -> CompileError:
    return CompileError(f"{library} can't take the model: {why}", hint)
