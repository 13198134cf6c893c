"""Making a graph say its shapes the way ONNX Runtime and Triton's backends read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def free_zero_axes(source: onnx.ModelProto) -> onnx.ModelProto:
    """Turn the sizes 0 and -1 of inputs and outputs into free axes.

    Exporters write 0 for "any size"; ONNX Runtime takes it as a size and refuses every request.
    """
    if not any(dim.dim_value < 1 for dim in _sizes(source)):
        return source
    proto = deepcopy(source)
    for dim in _sizes(proto):
        if dim.dim_value < 1:
            dim.Clear()
    return proto


def describe_zero_axes(source: onnx.ModelProto) -> tuple[str, ...]:
    """A sentence on each input with a size of 0, which ONNX Runtime and TensorRT would take as it is: as empty."""
    initialisers = {tensor.name for tensor in source.graph.initializer}
    sizes = {
        value.name: [dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim]
        for value in source.graph.input
        if value.name not in initialisers
    }
    return tuple(
        f"the model states input {name!r} as {dims}: 0 is taken as any size, as exporters mean it"
        for name, dims in sizes.items()
        if 0 in dims
    )


def state_output_shapes(source: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """Free what outputs state of their shapes wherever ``shapes``, seen in a run, belie it.

    An output of another rank than it states, or that states none, gets as many free axes as it has.  Triton's
    onnxruntime backend refuses a configuration whose dims are not those that the model states, and clients believe it.
    """
    if not any(_belied(value, shapes[value.name]) for value in source.graph.output):
        return source
    proto = deepcopy(source)
    for value in proto.graph.output:
        seen = shapes[value.name]
        shape = value.type.tensor_type.shape
        if len(shape.dim) != len(seen):
            del shape.dim[:]
            for _ in seen:
                shape.dim.add()
        shape.SetInParent()  # that a scalar's shape is known, too, has to be said
        for dim, size in zip(shape.dim, seen, strict=True):
            if dim.HasField("dim_value") and dim.dim_value != size:
                dim.Clear()
    return proto


def _belied(value: onnx.ValueInfoProto, seen: tuple[int, ...]) -> bool:
    tensor = value.type.tensor_type
    return (
        not tensor.HasField("shape")
        or len(tensor.shape.dim) != len(seen)
        or any(
            dim.HasField("dim_value") and dim.dim_value != size
            for dim, size in zip(tensor.shape.dim, seen, strict=True)
        )
    )


def _sizes(proto: onnx.ModelProto) -> Iterable[onnx.TensorShapeProto.Dimension]:
    initialisers = {tensor.name for tensor in proto.graph.initializer}
    for value in (*proto.graph.input, *proto.graph.output):
        if value.name not in initialisers:
            yield from (dim for dim in value.type.tensor_type.shape.dim if dim.HasField("dim_value"))
