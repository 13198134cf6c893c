"""UINT8 values that are moved as FP32: the same numbers, in a graph that TensorRT takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from repo_builder.compilers.base import Target
from repo_builder.model import DataType
from repo_builder.passes.uint8 import move_uint8_as_fp32
from repo_builder.plans import compile_plan
from repo_builder.trt.options import TensorRTOptions
from tests.models import FP32, Tensors, model, node, save, weights
from tests.support import rtx

UINT8 = DataType.UINT8
PICTURE: Tensors = {"picture": (UINT8, ["batch", 8, 8, 3])}


def preprocessing(*more: onnx.NodeProto, outputs: Tensors | None = None) -> onnx.ModelProto:
    """BGR pictures, turned to RGB, letterboxed with grey and divided by 255, for a convolution."""
    last = np.array([-1])
    return model(
        [
            node("Slice", ["picture", "from_last", "to_first", "last", "backwards"], ["rgb"]),
            node("Constant", [], ["grey"], value=numpy_helper.from_array(np.array(114, np.uint8))),
            node("Pad", ["rgb", "margins", "grey"], ["padded"]),
            node("Transpose", ["padded"], ["planes"], perm=[0, 3, 1, 2]),
            node("Cast", ["planes"], ["float"], to=TensorProto.FLOAT),
            node("Div", ["float", "scale"], ["unit"]),
            node("Conv", ["unit", "w"], ["y"]),
            *more,
        ],
        PICTURE,
        {"y": (FP32, ["batch", 4, 8, 6]), **(outputs or {})},
        {
            "from_last": last,
            "to_first": np.array([-9]),
            "last": last,
            "backwards": last,
            "margins": np.array([0, 1, 0, 0, 0, 1, 0, 0]),
            "scale": np.array(255, np.float32),
            "white": np.array(255, np.uint8),
            "w": weights(4, 3, 3, 3),
        },
        opset=18,
    )


def test_the_numbers_stay_the_same() -> None:
    """What is asked of the values is answered as before, too, and what reads UINT8 gets it."""
    source = preprocessing(
        node("Equal", ["planes", "white"], ["is_white"]),
        node("Where", ["is_white", "planes", "white"], ["chosen"]),
        node("Cast", ["scale"], ["computed"], to=TensorProto.UINT8),
        node("Pad", ["planes", "margins", "computed"], ["framed"]),
        node("Split", ["planes"], ["red", "green", "blue"], axis=1, num_outputs=3),
        node("Concat", ["chosen", "red"], ["both"], axis=1),
        node("Shape", ["both"], ["shape"]),
        outputs={
            "chosen": (UINT8, ["batch", 3, 10, 8]),
            "framed": (UINT8, ["batch", 5, 10, 8]),
            "green": (UINT8, ["batch", 1, 10, 8]),
            "both": (UINT8, ["batch", 4, 10, 8]),
            "shape": (DataType.INT64, [4]),
        },
    )
    before = source.SerializeToString(deterministic=True)
    moved = move_uint8_as_fp32(source)
    onnx.checker.check_model(moved, full_check=True)
    assert source.SerializeToString(deterministic=True) == before
    picture = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    expected, actual = (
        onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"picture": picture})
        for proto in (source, moved)
    )
    for one, other in zip(expected, actual, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_a_graph_that_casts_first_is_left_as_it_is() -> None:
    source = model(
        [node("Cast", ["picture"], ["float"], to=TensorProto.FLOAT), node("Transpose", ["float"], ["y"])],
        PICTURE,
        {"y": (FP32, [3, 8, 8, "batch"])},
    )
    assert move_uint8_as_fp32(source) is source


@rtx
@pytest.mark.usefixtures("own_folders")
@pytest.mark.parametrize("options", [TensorRTOptions(), TensorRTOptions(fp16=True), TensorRTOptions(bf16=True)])
def test_tensorrt_takes_pictures_that_are_moved_before_they_are_cast(tmp_path: Path, options: TensorRTOptions) -> None:
    copy = node("Identity", ["planes"], ["seen"])
    source = preprocessing(copy, outputs={"seen": (UINT8, ["batch", 3, 10, 8])})
    plan = compile_plan(
        save(source, tmp_path / "net.onnx"), tmp_path / "p", target=Target.TENSORRT_RTX, options=options
    )
    assert (plan.inputs, plan.outputs[1:]) == (("picture UINT8 [?, 8, 8, 3]",), ("seen UINT8 [?, 3, 10, 8]",))
