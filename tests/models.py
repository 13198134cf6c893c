"""Small ONNX files, each with one property that the tests are about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from repo_builder.model import DataType

Shape = Sequence[int | str | None] | None
"""Sizes, symbols and, for axes without either, None; None in place of a shape when even the rank is not stated."""

Tensors = Mapping[str, tuple[DataType, Shape]]
Constants = Mapping[str, npt.NDArray[Any]]

FP32, INT64, STRING = DataType.FP32, DataType.INT64, DataType.STRING


def node(operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> NodeProto:
    return helper.make_node(operator, inputs, outputs, **attributes)


def value(name: str, dtype: DataType | int, shape: Shape) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype.onnx if isinstance(dtype, DataType) else dtype, shape)


def model(
    nodes: Sequence[NodeProto],
    inputs: Tensors,
    outputs: Tensors,
    constants: Constants | None = None,
    *,
    opset: int = 17,
    ir_version: int = 8,
    domains: Mapping[str, int] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """A model with ``constants`` as initialisers; below ir_version 4 they are listed as inputs too, as was the rule."""
    tensors = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    stated = [value(name, *spec) for name, spec in inputs.items()]
    if ir_version < 4:
        stated += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in tensors]
    graph = helper.make_graph(nodes, "graph", stated, [value(name, *spec) for name, spec in outputs.items()], tensors)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(*entry) for entry in (domains or {}).items())]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, functions=functions)


def save(proto: onnx.ModelProto, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(proto.SerializeToString())
    return path


def weights(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def linear(batch: int | str | None = "batch", classes: int = 3) -> onnx.ModelProto:
    """``y = x W``, four features in."""
    return model(
        [node("MatMul", ["x", "W"], ["y"])],
        {"x": (FP32, [batch, 4])},
        {"y": (FP32, [batch, classes])},
        {"W": weights(4, classes)},
    )


def identity(dtype: DataType, shape: Shape = ("batch", 3), output: Shape = ("batch", 3)) -> onnx.ModelProto:
    return model([node("Identity", ["x"], ["y"])], {"x": (dtype, shape)}, {"y": (dtype, output)})


def convolution(*, batch: int | str = "batch", height: int | str = 8, width: int | str = 8) -> onnx.ModelProto:
    return model(
        [node("Conv", ["x", "w"], ["c"], name="conv"), node("Relu", ["c"], ["r"]), node("GlobalMaxPool", ["r"], ["y"])],
        {"x": (FP32, [batch, 3, height, width])},
        {"y": (FP32, [batch, 4, 1, 1])},
        {"w": weights(4, 3, 3, 3)},
    )


def mean_over_rows(shape: Shape = ("batch", 4)) -> onnx.ModelProto:
    """Every row's answer depends on the other rows."""
    return model(
        [node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1), node("Sub", ["x", "mean"], ["y"])],
        {"x": (FP32, shape)},
        {"y": (FP32, shape)},
    )


def rows_meet_from(start: int) -> onnx.ModelProto:
    """x FP32 [N, 3] -> y, plus the sum of the rows after the first ``start``: smaller batches look independent."""
    return model(
        [
            node("Slice", ["x", "start", "end", "axis"], ["late"]),
            node("ReduceSum", ["late", "axis"], ["sum"], keepdims=1),
            node("Add", ["x", "sum"], ["y"]),
        ],
        {"x": (FP32, ["N", 3])},
        {"y": (FP32, ["N", 3])},
        {"start": np.array([start]), "end": np.array([2**31]), "axis": np.array([0])},
    )


def branch_on_the_batch() -> onnx.ModelProto:
    """x FP32 [N, 1] -> y: x, or -x where the sum over the whole batch is above 0."""
    branches = {
        name: onnx.helper.make_graph([node(operator, ["x"], [name])], name, [], [value(name, FP32, ["N", 1])])
        for name, operator in (("same", "Identity"), ("minus", "Neg"))
    }
    return model(
        [
            node("ReduceSum", ["x"], ["sum"], keepdims=0),
            node("Greater", ["sum", "zero"], ["above"]),
            node("If", ["above"], ["y"], then_branch=branches["minus"], else_branch=branches["same"]),
        ],
        {"x": (FP32, ["N", 1])},
        {"y": (FP32, ["N", 1])},
        {"zero": np.zeros((), np.float32)},
    )


def picture(
    height: int | str = 8, width: int | str = 8, *, layout: str = "NCHW", channels: int = 3, classes: int = 5
) -> onnx.ModelProto:
    """A classifier of pictures: the mean colour times weights."""
    shape = ["batch", channels, height, width] if layout == "NCHW" else ["batch", height, width, channels]
    axes = [2, 3] if layout == "NCHW" else [1, 2]
    return model(
        [
            node("ReduceMean", ["image"], ["colour"], axes=axes, keepdims=0),
            node("MatMul", ["colour", "W"], ["scores"]),
        ],
        {"image": (FP32, shape)},
        {"scores": (FP32, ["batch", classes])},
        {"W": weights(channels, classes)},
    )


def two_outputs() -> onnx.ModelProto:
    """Scores and features, both of floating point."""
    return model(
        [node("MatMul", ["x", "W"], ["scores"]), node("Relu", ["x"], ["features"])],
        {"x": (FP32, ["batch", 4])},
        {"scores": (FP32, ["batch", 3]), "features": (FP32, ["batch", 4])},
        {"W": weights(4, 3)},
    )


def random_numbers() -> onnx.ModelProto:
    return model(
        [node("RandomNormalLike", ["x"], ["noise"]), node("Add", ["x", "noise"], ["y"])],
        {"x": (FP32, ["batch", 4])},
        {"y": (FP32, ["batch", 4])},
    )


def not_a_number() -> onnx.ModelProto:
    """The square root of random numbers, half of them negative."""
    return model(
        [node("Sqrt", ["x"], ["y"])],
        {"x": (FP32, ["batch", 4])},
        {"y": (FP32, ["batch", 4])},
    )


def lookup(rows: int = 10) -> onnx.ModelProto:
    """``table[ids * 100]``: random ids are out of range, and nothing in the file says which are not."""
    return model(
        [node("Mul", ["ids", "hundred"], ["scaled"]), node("Gather", ["table", "scaled"], ["y"])],
        {"ids": (INT64, ["batch", 2])},
        {"y": (FP32, ["batch", 2, 3])},
        {"hundred": np.array(100, np.int64), "table": weights(rows, 3)},
    )


def places(rows: int | str = "n") -> onnx.ModelProto:
    """Where the input is not zero: as many columns as there are such places."""
    return model([node("NonZero", ["x"], ["places"])], {"x": (FP32, [rows, 4])}, {"places": (INT64, [2, "k"])})


def beginning() -> onnx.ModelProto:
    """The first columns of the input, negated: how many is the value of another one."""
    return model(
        [node("Slice", ["x", "start", "end", "axis"], ["cut"]), node("Neg", ["cut"], ["y"])],
        {"x": (FP32, [4, 6]), "end": (INT64, [1])},
        {"y": (FP32, [4, "n"])},
        {"start": np.array([0]), "axis": np.array([1])},
    )


def with_external_data(folder: Path, location: str, *, name: str = "net.onnx") -> Path:
    """:func:`linear` whose weights the file says are in ``location``; they are written to ``folder``/weights.bin."""
    proto = linear()
    tensor = proto.graph.initializer[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return save(proto, folder / name)


class Batches:
    """What ONNX Runtime is to calibrate with, batch by batch."""

    def __init__(self, batches: Iterable[Constants]) -> None:
        self._left = iter(batches)

    def get_next(self) -> Constants | None:
        return next(self._left, None)


def quantised(path: Path, batch: int | str = "batch", *, opset: int = 21) -> onnx.ModelProto:
    """x FP32 [batch, 16] -> y [batch, 8] in INT8, quantised by ONNX Runtime and written to ``path``.

    Its first products are large and of one sign; its output is quantised twice, coarsely at last.
    """
    from onnxruntime.quantization import QuantFormat, quantize_static

    proto = model(
        [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "v"], ["product"])],
        {"x": (FP32, [batch, 16])},
        {"product": (FP32, [batch, 8])},
        {"w": weights(16, 16) + 3, "v": weights(16, 8, seed=1)},
        opset=opset,
    )
    rows = Batches({"x": row + 3} for row in np.split(weights(16, 16), 16))
    settings = {"ActivationSymmetric": True}
    quantize_static(save(proto, path), path, rows, quant_format=QuantFormat.QDQ, extra_options=settings)
    proto = onnx.load(path)
    (scale,) = (numpy_helper.to_array(tensor) for tensor in proto.graph.initializer if tensor.name == "product_scale")
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(20) * scale, "coarse"))
    proto.graph.node.append(node("QuantizeLinear", ["product", "coarse", "product_zero_point"], ["q"]))
    proto.graph.node.append(node("DequantizeLinear", ["q", "coarse", "product_zero_point"], ["y"]))
    proto.graph.output[0].name = "y"
    save(proto, path)
    return proto
