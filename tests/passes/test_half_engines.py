"""What becomes of a half graph that nothing here can run, by way of real TensorRT-RTX builds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from repo_builder.add import BuildOptions, add_model
from repo_builder.compilers.base import Target
from repo_builder.errors import CompileError
from repo_builder.model import DataType
from repo_builder.plans import compile_plan
from repo_builder.trt.options import TensorRTOptions
from tests.models import FP32, INT64, linear, model, node, save, weights
from tests.support import rtx

pytestmark = [rtx, pytest.mark.usefixtures("own_folders")]


def publish(tmp_path: Path, proto: onnx.ModelProto, **precision: Any) -> Any:
    tmp_path.mkdir(exist_ok=True)
    build = BuildOptions(target=Target.TENSORRT_RTX, tensorrt=TensorRTOptions(**precision))
    return add_model(save(proto, tmp_path / "net.onnx"), repository=tmp_path / "models", build=build)


def scaled_up() -> onnx.ModelProto:
    return model(
        [node("Mul", ["x", "scale"], ["h"], name="/scaled"), node("Softmax", ["h"], ["y"])],
        {"x": (FP32, ["batch", 64])},
        {"y": (FP32, ["batch", 64])},
        {"scale": np.array(60000, np.float32)},
    )


def test_a_value_beyond_fp16_publishes_nothing(tmp_path: Path) -> None:
    if publish(tmp_path / "fp32", scaled_up()).manifest["engine"]["verified_by_running"]:
        pytest.skip("this machine's GPU runs the engine")
    with pytest.raises(CompileError, match=r"node /scaled \(Mul\) reaches .* FP16 holds 65504"):
        publish(tmp_path, scaled_up(), fp16=True)
    assert not (tmp_path / "models" / "net").exists()


def test_what_the_comparison_is_worth_is_said(tmp_path: Path) -> None:
    manifest = publish(tmp_path, linear(), fp16=True).manifest
    if manifest["engine"]["verified_by_running"]:
        pytest.skip("this machine's GPU runs the engine")
    assert "no value leaves FP16's range" in manifest["unverified"]
    assert "which computes most of it in FP32" in manifest["unverified"]


def test_a_model_that_is_fp16_already_goes_through(tmp_path: Path) -> None:
    half = DataType.FP16
    proto = model(
        [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["y"])],
        {"x": (half, ["batch", 16])},
        {"y": (half, ["batch", 4])},
        {"w": weights(16, 4).astype(np.float16)},
    )
    assert publish(tmp_path, proto, fp16=True).manifest["engine"]["layers_by_precision"]["FP16"] >= 1


def test_what_tensorrt_takes_in_fp32_alone_is_left_so(tmp_path: Path) -> None:
    """Rows of unequal lengths in FP16, some operators in BF16; the compiler fails on them right behind a cast."""
    recurrent = model(
        [
            node("MatMul", ["x", "before"], ["h"]),
            node("Transpose", ["h"], ["t"], perm=[0, 1, 2]),
            node("GRU", ["t", "w", "r", "", "lengths"], ["all", "last"], hidden_size=8),
            node("MatMul", ["last", "after"], ["y"]),
        ],
        {"x": (FP32, [6, 2, 4]), "lengths": (DataType.INT32, [2])},
        {"y": (FP32, [1, 2, 3])},
        {"before": weights(4, 4), "w": weights(1, 24, 4), "r": weights(1, 24, 8, seed=1), "after": weights(8, 3)},
    )
    refused = model(
        [
            node("Conv", ["x", "w"], ["c"]),
            node("HardSwish", ["c"], ["h"]),
            node("ConvTranspose", ["h", "w"], ["t"]),
            node("Mish", ["t"], ["m"]),
            node("LpPool", ["m"], ["p"], kernel_shape=[2, 2]),
            node("LpNormalization", ["p"], ["n"]),
            node("GlobalLpPool", ["n"], ["y"]),
        ],
        {"x": (FP32, ["batch", 4, 8, 8])},
        {"y": (FP32, ["batch", 4, 1, 1])},
        {"w": weights(4, 4, 3, 3)},
        opset=18,
    )
    layers = publish(tmp_path / "recurrent", recurrent, fp16=True).manifest["engine"]["layers_by_precision"]
    assert min(layers["FP16"], layers["FP32"]) >= 1
    layers = publish(tmp_path / "refused", refused, bf16=True).manifest["engine"]["layers_by_precision"]
    assert min(layers["BF16"], layers["FP32"]) >= 1


def integers() -> onnx.ModelProto:
    return model([node("Add", ["x", "x"], ["y"])], {"x": (INT64, ("batch", 4))}, {"y": (INT64, ("batch", 4))})


def pool_of_an_old_opset() -> onnx.ModelProto:
    """MaxPool takes BF16 from opset 22 on, to which ONNX can't convert a model with sparse weights."""
    image = (FP32, (1, 3, 8, 8))
    pool, copy = node("MaxPool", ["x"], ["y"], kernel_shape=[1, 1]), node("Identity", ["s"], ["z"])
    proto = model([pool, copy], {"x": image}, {"y": image, "z": (FP32, (4,))})
    value, index = (numpy_helper.from_array(np.array([1], kind), "s") for kind in (np.float32, np.int64))
    proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(value, index, [4]))
    return proto


@pytest.mark.parametrize(
    ("proto", "hint"),
    [
        (integers(), "drop --bf16"),
        (pool_of_an_old_opset(), "drop --bf16, or export the model with opset 22 or newer"),
    ],
)
def test_a_newer_opset_is_advised_where_bf16_needs_one(tmp_path: Path, proto: onnx.ModelProto, hint: str) -> None:
    source = save(proto, tmp_path / "net.onnx")
    with pytest.raises(CompileError, match="nothing of the model can compute in BF16") as error:
        compile_plan(source, tmp_path / "p", target=Target.TENSORRT_RTX, options=TensorRTOptions(bf16=True))
    assert error.value.hint == hint
