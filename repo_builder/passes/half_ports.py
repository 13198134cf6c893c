"""Which inputs and outputs of a node ONNX lets be half."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from repo_builder.model import DataType
from repo_builder.passes.ranges import operator_of

if TYPE_CHECKING:
    import onnx


def half_ports(
    node: onnx.NodeProto, opset: int, half: DataType, floats: Collection[int]
) -> tuple[frozenset[int], frozenset[int]]:
    """Which of the inputs ``floats`` of ``node``, FP32 now, may be half, and the outputs that share their type.

    The operator's own schema of ``opset``, the version of ONNX's own domain, is asked; both are empty for what ONNX
    does not define.
    """
    import onnx.defs

    operator = operator_of(node)
    try:
        schema = onnx.defs.get_schema(operator, opset, "")
    except onnx.defs.SchemaError:
        return frozenset(), frozenset()
    half_type = f"tensor({'float16' if half is DataType.FP16 else 'bfloat16'})"
    free = {c.type_param_str for c in schema.type_constraints if half_type in c.allowed_type_strs}
    kinds = {index: _formal(schema.inputs, index).type_str for index in floats}
    if operator == "Resize":  # roi may be half by its own type, but nothing is gained
        kinds = {index: kind for index, kind in kinds.items() if index == 0}
    inputs = frozenset(index for index, kind in kinds.items() if kind in free)
    shared = {kinds[index] for index in inputs}
    outputs = (index for index in range(len(node.output)) if _formal(schema.outputs, index).type_str in shared)
    return inputs, frozenset(outputs)


def _formal(formals: Sequence[onnx.defs.OpSchema.FormalParameter], index: int) -> onnx.defs.OpSchema.FormalParameter:
    """The schema's parameter number ``index``; the last one stands for all of a variadic operator."""
    return formals[min(index, len(formals) - 1)]
