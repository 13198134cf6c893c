"""What may be half: ports of a node, by its operator's schema, what TensorRT refuses, and for BF16 the opset."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from repo_builder.model import DataType
from repo_builder.onnx_model import nodes_of, opset_of, subgraphs
from repo_builder.passes.graph import fresh_name, replace_nodes
from repo_builder.passes.ranges import operator_of, squares

if TYPE_CHECKING:
    import onnx

FP32_OPERATORS = frozenset({
    "Bernoulli", "BitCast", "CastLike", "CumSum", "DequantizeLinear", "Exp", "EyeLike", "MeanVarianceNormalization",
    "Pow", "QLinearMatMul", "QuantizeLinear", "RandomNormalLike", "RandomUniformLike", "Range", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Softplus",
})  # fmt: skip
BF16_OPSET = 22
"""The first whose Conv and Gemm of all versions take BF16."""
_MASK = 3
"""Which of Attention's inputs it is."""
_LARGEST_IN_MASK = 2.0**15
"""Half of FP16's range: scores up to as much may be added, and its negative still makes an exponential of 0."""
_REFUSED_IN_BF16 = frozenset({
    "ConvTranspose", "GRU", "GlobalLpPool", "HardSwish", "LpNormalization", "LpPool", "Mish",
})  # fmt: skip
"""What TensorRT-RTX 1.7 takes in FP32 and FP16 alone, of some 120 operators built one by one."""
_CHANGED = {"GroupNormalization": 21, "Hardmax": 13}
"""The opset from which they mean something else; ONNX's converter does not see to that, as running it showed."""
_RESIZE_BY_MODE = 11
"""The opset from which a Resize says how it finds its pixels; before, it and Upsample do so in one way alone."""


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


def leaves_range(node: onnx.NodeProto) -> bool:
    """Whether it sums, raises to powers or needs FP32 by its own definition, whatever it reads."""
    reduction = next((attribute.s for attribute in node.attribute if attribute.name == "reduction"), b"none")
    return operator_of(node) in FP32_OPERATORS or squares(node) or reduction != b"none"


def refused_by_tensorrt(node: onnx.NodeProto, half: DataType) -> bool:
    """Whether TensorRT-RTX 1.7 does not take in ``half`` what ONNX defines for it.

    Its parser makes the zeros past the end of rows with lengths of FP32.
    """
    operator = operator_of(node)
    if operator in {"GRU", "LSTM", "RNN"} and len(node.input) > 4 and node.input[4]:
        return True
    return half is DataType.BF16 and operator in _REFUSED_IN_BF16


def fails_behind_a_cast(node: onnx.NodeProto) -> bool:
    """Whether TensorRT-RTX 1.7 fails on ``node`` in FP32 when it reads what was cast from half.

    It does on recurrences that go forward, though data movement lies between; arithmetic between mends it.
    """
    direction = next((attribute.s for attribute in node.attribute if attribute.name == "direction"), b"forward")
    return operator_of(node) in {"GRU", "LSTM", "RNN"} and direction == b"forward"


def averages_planes(
    node: onnx.NodeProto, sizes: Sequence[int | None] | None, integers: Mapping[str, Sequence[int]]
) -> bool:
    """Whether ``node`` does what GlobalAveragePool does to pictures of these ``sizes``; TensorRT takes both as one.

    ``integers`` has the constants by name, of which the axes are one from opset 18 on.
    """
    if operator_of(node) != "ReduceMean" or sizes is None or len(sizes) < 4:
        return False
    axes = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "axes"), [])
    if len(node.input) > 1:
        axes = list(integers.get(node.input[1], ()))
    return sorted(axis % len(sizes) for axis in axes) == list(range(2, len(sizes)))


def is_bound(node: onnx.NodeProto, index: int) -> bool:
    """Whether an input only limits others, so that the largest finite number does for anything larger."""
    return node.op_type == "Clip" and index > 0


def _formal(formals: Sequence[onnx.defs.OpSchema.FormalParameter], index: int) -> onnx.defs.OpSchema.FormalParameter:
    """The schema's parameter number ``index``; the last one stands for all of a variadic operator."""
    return formals[min(index, len(formals) - 1)]


def with_bf16_operators(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model at the opset that BF16 asks for, if ONNX can bring it there, else as it is."""
    from onnx import checker, helper, shape_inference, version_converter

    opset = opset_of(proto)
    operators = {node.op_type for node in nodes_of(proto.graph)}
    if not 0 < opset < BF16_OPSET or any(opset < _CHANGED.get(operator, 0) for operator in operators):
        return proto
    refusals = (checker.ValidationError, shape_inference.InferenceError, version_converter.ConvertError)
    try:
        raised: onnx.ModelProto = version_converter.convert_version(proto, BF16_OPSET)
        resizes = [node for node in nodes_of(raised.graph) if node.op_type == "Resize"]
        for node in resizes if opset < _RESIZE_BY_MODE else ():
            node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
            node.attribute.append(helper.make_attribute("nearest_mode", "floor"))
        checker.check_model(raised, full_check=True)
    except (RuntimeError, ValueError, *refusals):  # RuntimeError: no adapter; ValueError: more than 2 GiB
        return proto
    return raised


def limit_masks(graph: onnx.GraphProto, names: set[str]) -> None:
    """Clip the FP32 masks of Attention to what half can hold and add to scores, in ``graph`` and its subgraphs.

    TensorRT takes a mask of its queries' type alone.  The types of inner values must be known; ``names`` are those
    taken, and the new ones are added.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    fp32 = {tensor.name for tensor in graph.initializer if tensor.data_type == DataType.FP32.onnx}
    fp32.update(
        value.name
        for value in (*graph.input, *graph.value_info)
        if value.type.tensor_type.elem_type == DataType.FP32.onnx
    )
    nodes = []
    for node in graph.node:
        for subgraph in subgraphs(node):
            limit_masks(subgraph, names)
        if operator_of(node) == "Attention" and len(node.input) > _MASK and node.input[_MASK] in fp32:
            limited, low, high = (fresh_name(f"{node.output[0]}_mask{part}", names) for part in ("", "_low", "_high"))
            for name, bound in ((low, -_LARGEST_IN_MASK), (high, _LARGEST_IN_MASK)):
                graph.initializer.append(numpy_helper.from_array(np.array(bound, np.float32), name))
            nodes.append(helper.make_node("Clip", [node.input[_MASK], low, high], [limited], name=limited))
            node.input[_MASK] = limited
            graph.value_info.append(helper.make_tensor_value_info(limited, DataType.FP32.onnx, None))
        nodes.append(node)
    if len(nodes) != len(graph.node):
        replace_nodes(graph, nodes)


def split_hard_swishes(graph: onnx.GraphProto, names: set[str]) -> None:
    """Write x * HardSigmoid(x) for HardSwish, which TensorRT refuses in BF16, in ``graph`` and its subgraphs.

    ``names`` are those taken; the new ones are added.
    """
    from onnx import helper

    nodes = []
    for node in graph.node:
        for subgraph in subgraphs(node):
            split_hard_swishes(subgraph, names)
        if operator_of(node) == "HardSwish":
            gate = fresh_name(f"{node.output[0]}_gate", names)
            nodes.append(helper.make_node("HardSigmoid", node.input, [gate], name=gate, alpha=1 / 6, beta=0.5))
            nodes.append(helper.make_node("Mul", [node.input[0], gate], node.output, name=node.name))
        else:
            nodes.append(node)
    if len(nodes) != len(graph.node):
        replace_nodes(graph, nodes)
