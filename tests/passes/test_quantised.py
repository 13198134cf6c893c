"""Biases that were quantised to INT32: the FP32 numbers that they stand for, in a graph that TensorRT takes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantFormat, quantize_static

from repo_builder.compilers.base import Target
from repo_builder.onnx_model import nodes_of
from repo_builder.passes.quantised import dequantise_biases, output_steps
from repo_builder.plans import compile_plan
from repo_builder.runtime import open_session
from repo_builder.trt.options import TensorRTOptions
from tests.models import FP32, Batches, model, node, save, value, weights
from tests.support import rtx


def quantised(folder: Path, *, per_channel: bool = True) -> Path:
    """A convolution and a fully connected layer, both with biases, as ONNX Runtime quantises them."""
    proto = model(
        [
            node("Conv", ["image", "w", "b"], ["features"], name="conv"),
            node("GlobalAveragePool", ["features"], ["pooled"]),
            node("Flatten", ["pooled"], ["flat"]),
            node("Gemm", ["flat", "v", "c"], ["y"], name="fc"),
        ],
        {"image": (FP32, ["batch", 3, 8, 8])},
        {"y": (FP32, ["batch", 5])},
        {
            "w": weights(4, 3, 3, 3) * np.array([1, 2, 4, 8], np.float32).reshape(4, 1, 1, 1),
            "b": weights(4, seed=1),
            "v": weights(4, 5, seed=2),
            "c": weights(5, seed=3),
        },
    )
    path = save(proto, folder / "net.onnx")
    pictures = Batches({"image": weights(2, 3, 8, 8, seed=seed)} for seed in range(4))
    settings = {"ActivationSymmetric": True}
    quantize_static(path, path, pictures, quant_format=QuantFormat.QDQ, per_channel=per_channel, extra_options=settings)
    return path


def biases(proto: onnx.ModelProto) -> list[str]:
    """The INT32 constants that a DequantizeLinear reads."""
    int32 = {tensor.name for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.INT32}
    return [node.input[0] for node in proto.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in int32]


@pytest.mark.parametrize("per_channel", [False, True])
def test_the_same_numbers(per_channel: bool, tmp_path: Path) -> None:
    source = onnx.load(quantised(tmp_path, per_channel=per_channel))
    assert len(biases(source)) == 2
    changed = dequantise_biases(source, tmp_path)
    assert not biases(changed)
    assert len(biases(source)) == 2
    arrays = {"image": weights(3, 3, 8, 8, seed=9)}
    expected = open_session(tmp_path / "net.onnx", fused=False).run(arrays)["y"]
    actual = open_session(save(changed, tmp_path / "changed.onnx"), fused=False).run(arrays)["y"]
    np.testing.assert_array_equal(actual, expected)


def test_weights_that_are_elsewhere(tmp_path: Path) -> None:
    source = onnx.load(quantised(tmp_path))
    expected = {t.name: numpy_helper.to_array(t) for t in dequantise_biases(source, tmp_path).graph.initializer}
    onnx.save_model(source, tmp_path / "net.onnx", save_as_external_data=True, location="data", size_threshold=0)
    outside = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    made = set(expected) - {tensor.name for tensor in outside.graph.initializer}
    assert len(made) == 2
    changed = {tensor.name: tensor for tensor in dequantise_biases(outside, tmp_path).graph.initializer}
    for name in made:
        np.testing.assert_array_equal(numpy_helper.to_array(changed[name]), expected[name])


def test_the_steps_of_outputs(tmp_path: Path) -> None:
    proto = onnx.load(quantised(tmp_path))
    scales = {tensor.name: tensor for tensor in proto.graph.initializer}
    step = float(numpy_helper.to_array(scales["y_scale"]))
    assert output_steps(proto) == {"y": step}
    proto.graph.node.append(node("Relu", ["y"], ["z"]))
    proto.graph.output[0].name = "z"
    assert output_steps(proto) == {}


def of_bias(
    *scale: float, axis: int | None = None, kind: str = "initialiser", shape: tuple[int, ...] = (3,), **options: Any
) -> onnx.ModelProto:
    """x plus a bias of INT32 1, 2, 3, ...; ``kind``: what makes its values, or "branch" where an If reads them."""
    values, scales = np.arange(1, math.prod(shape) + 1, dtype=np.int32).reshape(shape), np.array(scale, np.float32)
    constants = {"values": values, "scale": scales if len(scale) > 1 else scales[0]}
    if axis is not None:
        options["axis"] = axis
    nodes = [node("DequantizeLinear", ["values", "scale"], ["bias"], **options), node("Add", ["x", "bias"], ["y"])]
    spec = {"x": (FP32, [2, *shape])}
    made = {"y": (FP32, [2, *shape])}
    if kind == "node":
        made_by = node("Constant", [], ["values"], value=numpy_helper.from_array(constants.pop("values")))
        nodes.insert(0, made_by)
    if kind == "branch":
        body = helper.make_graph(nodes, "then", [], [value("y", FP32, [2, *shape])])
        other = helper.make_graph([node("Neg", ["x"], ["z"])], "else", [], [value("z", FP32, [2, *shape])])
        nodes = [node("If", ["choose"], ["out"], then_branch=body, else_branch=other)]
        return model(nodes, spec, {"out": made["y"]}, {**constants, "choose": np.array(True)})
    return model(nodes, spec, made, constants)


@pytest.mark.parametrize(
    "proto",
    [
        of_bias(0.5),
        of_bias(0.5, kind="node"),
        of_bias(0.5, kind="branch"),
        of_bias(0.5, 2.0, 4.0, axis=0),
        of_bias(0.5, 2.0, 4.0, axis=-1),
        of_bias(0.5, 2.0, 4.0, shape=(2, 3)),
        of_bias(0.5, 2.0, axis=0, shape=(2, 3)),
    ],
)
def test_constants_wherever_they_are(proto: onnx.ModelProto, tmp_path: Path) -> None:
    changed = dequantise_biases(proto, tmp_path)
    assert not [node for node in nodes_of(changed.graph) if node.op_type == "DequantizeLinear"]
    (name,) = (value.name for value in proto.graph.output)
    arrays = {"x": weights(2, *(dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim[1:]))}
    expected = open_session(save(proto, tmp_path / "net.onnx"), fused=False).run(arrays)[name]
    actual = open_session(save(changed, tmp_path / "changed.onnx"), fused=False).run(arrays)[name]
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
    "proto",
    [
        of_bias(0.5, 2.0, 4.0),  # whose axis is 1, of one axis
        of_bias(0.5, 2.0, axis=0),
        of_bias(0.5, output_dtype=onnx.TensorProto.FLOAT16),
    ],
)
def test_what_does_not_fit_is_left_to_tensorrt(proto: onnx.ModelProto, tmp_path: Path) -> None:
    assert dequantise_biases(proto, tmp_path) is proto


def test_other_graphs_stay_as_they_are(tmp_path: Path) -> None:
    proto = model([node("Relu", ["x"], ["y"])], {"x": (FP32, [1])}, {"y": (FP32, [1])})
    assert dequantise_biases(proto, tmp_path) is proto


@rtx
@pytest.mark.parametrize("half", [False, True])
def test_tensorrt_computes_in_int8(half: bool, tmp_path: Path) -> None:
    source = quantised(tmp_path)
    plan = compile_plan(source, tmp_path / "net.plan", target=Target.TENSORRT_RTX, options=TensorRTOptions(fp16=half))
    assert plan.engine["layers_by_precision"]["INT8"] >= 2
