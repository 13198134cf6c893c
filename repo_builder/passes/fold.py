"""Constants that a graph computes from its own constants, as initialisers: then it can be seen what they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from repo_builder.onnx_model import subgraphs
from repo_builder.passes.graph import constants_in, replace_nodes

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx

_NEVER_FOLDED = frozenset({
    "Bernoulli", "DequantizeLinear", "Dropout", "Multinomial", "QuantizeLinear", "RandomNormalLike",
    "RandomUniformLike",
})  # fmt: skip
"""What differs from run to run, and quantised weights, which are to stay such."""
_COMPUTED_OTHERWISE = frozenset({
    "AveragePool", "BatchNormalization", "GRU", "Hardmax", "LSTM", "LogSoftmax", "LpPool", "MaxPool", "RNN", "RoiAlign",
    "Softmax",
})  # fmt: skip
"""By ONNX's reference evaluator than by ONNX Runtime, in some opset or for some attribute, as running both showed."""
_LARGE = 1 << 20
"""Elements; a node that computes more than that, and more than it reads, is left to the engine's builder."""


def fold_constants(proto: onnx.ModelProto) -> None:
    """Replace FP32 values made of constants alone by initialisers, in place; the nodes must be sorted.

    What ONNX's reference evaluator can't compute, and values that are outputs of a graph, stay nodes.
    """
    _fold(proto.graph, list(proto.opset_import), {})


def _fold(
    graph: onnx.GraphProto,
    opsets: Iterable[onnx.OperatorSetIdProto],
    outer: Mapping[str, onnx.TensorProto | npt.NDArray[Any]],
) -> None:
    import numpy as np
    from onnx import numpy_helper

    known = constants_in(graph, outer)
    outputs = {value.name for value in graph.output}
    rest = []
    for node in graph.node:
        for body in subgraphs(node):
            _fold(body, opsets, known)
        made = _evaluate(node, opsets, known)
        known.update(made)
        if made and outputs.isdisjoint(made) and all(array.dtype == np.float32 for array in made.values()):
            graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in made.items())
        else:
            rest.append(node)
    if len(rest) != len(graph.node):
        replace_nodes(graph, rest)


def _evaluate(
    node: onnx.NodeProto,
    opsets: Iterable[onnx.OperatorSetIdProto],
    known: Mapping[str, onnx.TensorProto | npt.NDArray[Any]],
) -> dict[str, npt.NDArray[Any]]:
    """The outputs of ``node`` by name, empty where they are not constant or can't be computed."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    names = [name for name in node.input if name]
    foldable = node.op_type == "Constant" or (names and all(name in known for name in names))
    kept = node.domain not in {"", "ai.onnx"} or node.op_type in _NEVER_FOLDED | _COMPUTED_OTHERWISE
    if kept or any(subgraphs(node)) or not foldable:
        return {}
    feeds = {
        name: numpy_helper.to_array(value) if isinstance(value, TensorProto) else value
        for name, value in ((name, known[name]) for name in names)
    }
    made = [name for name in node.output if name]
    try:
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in feeds.items()
        ]
        outputs = [helper.make_empty_tensor_value_info(name) for name in made]
        graph = helper.make_graph([node], "constant", inputs, outputs)
        with np.errstate(all="ignore"):
            arrays: Any = ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets)).run(None, feeds)
    except Exception:  # an operator that the evaluator lacks, or one that refuses: whatever Python raises
        return {}
    if not all(isinstance(array, np.ndarray | np.generic) for array in arrays):
        return {}
    limit = max(_LARGE, *(array.size for array in feeds.values()), 0)
    if node.op_type != "Constant" and any(array.size > limit for array in arrays):
        return {}
    return {name: np.asarray(array) for name, array in zip(made, arrays, strict=True)}
