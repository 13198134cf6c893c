"""Making a graph say its shapes the way ONNX Runtime and Triton's backends read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def free_zero_axes(source: onnx.ModelProto) -> onnx.ModelProto:
    """Turn the sizes 0 and -1 of inputs and outputs into free axes.

    Exporters write 0 for "any size"; ONNX Runtime takes it as a size and refuses every request.
    """
    if not any(dim.dim_value < 1 for dim in _sizes(source)):
        return source
    proto = _copy(source)
    for dim in _sizes(proto):
        if dim.dim_value < 1:
            dim.Clear()
    return proto


def state_output_ranks(source: onnx.ModelProto, ranks: Mapping[str, int]) -> onnx.ModelProto:
    """Give outputs that state no shape, or one of another rank than they have, as many free axes as ``ranks`` says.

    Triton's onnxruntime backend refuses a configuration whose dims are not those that the model states.
    """
    wrong = {value.name for value in source.graph.output if len(value.type.tensor_type.shape.dim) != ranks[value.name]}
    if not wrong:
        return source
    proto = _copy(source)
    for value in proto.graph.output:
        if value.name in wrong:
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            for _ in range(ranks[value.name]):
                shape.dim.add()
            shape.SetInParent()
    return proto


def _copy(source: onnx.ModelProto) -> onnx.ModelProto:
    proto = type(source)()
    proto.CopyFrom(source)
    return proto


def _sizes(proto: onnx.ModelProto) -> Iterable[onnx.TensorShapeProto.Dimension]:
    initialisers = {tensor.name for tensor in proto.graph.initializer}
    for value in (*proto.graph.input, *proto.graph.output):
        if value.name not in initialisers:
            yield from (dim for dim in value.type.tensor_type.shape.dim if dim.HasField("dim_value"))
