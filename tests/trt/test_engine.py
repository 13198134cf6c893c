"""Precision by layer, as the inspectors of TensorRT 8.6 and later describe layers; trtexec's statistics."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from repo_builder.compilers.base import Target
from repo_builder.errors import CompileError
from repo_builder.trt.benchmark import median, percentile
from repo_builder.trt.engine import FUSED, EngineInfo, count_precisions, inspect_engine, read_layers
from repo_builder.trt.library import Library
from repo_builder.trt.options import Profile
from tests.servers.fake_gpu import FakeCuda, FakeEngine, TensorIOMode, TensorLocation, fake_tensorrt


def layer(name: str, kind: str, *types: str, key: str = "Datatype", tactic: str = "") -> dict[str, Any]:
    return {"Name": name, "LayerType": kind, "Inputs": [{key: text} for text in types], "TacticName": tactic}


def test_the_narrowest_type_that_a_layer_reads_counts() -> None:
    layers = [
        layer("conv1", "CaskConvolution", "Row major linear FP16 format", key="Format/Datatype"),
        layer(
            "conv2",
            "CaskConvolution",
            "Thirty-two wide channel vectorized row major Int8 format",
            key="Format/Datatype",
        ),
        layer("norm", "kgen", "Float", "Half"),
        layer("sum", "kgen", "BFloat16", "BFloat16"),
        layer("ids", "kgen", "Int64"),
        layer("fc", "gemm", "Float", tactic="sm80_xmma_gemm_f32f32_tf32f32_f32_tn_n"),
        layer("last", "kgen", "Float"),
        layer("Reformatting CopyNode for Input Tensor 0", "Reformat", "Float"),
    ]
    assert count_precisions(layers) == {"INT8": 1, "FP16": 2, "BF16": 1, "FP32": 1, "TF32": 1}


@pytest.mark.parametrize(
    ("weights", "tactic", "precision"),
    [
        ("Half", "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc_tilesize128x64x64", "FP16"),
        ("Float", "sm80_xmma_fprop_implicit_gemm_indexed_f32f32_f32f32_f32_nchwkcrs_nchw_tilesize32x32x8", "FP32"),
        ("Float", "sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwckrsc_nhwc_tilesize128x128x16", "TF32"),
        (None, "sm50_xmma_pooling_tiled_FP32NCHW_kMAX_tP7_tQ7_tR3_tS3_tU2_tV2_tUnroll5_tThreads225", "FP32"),
        (None, "sm80_xmma_fprop_bf16bf16_bf16f32", "BF16"),
    ],
)
def test_dynamic_shapes_in_8_6_leave_weights_and_kernels_to_tell(
    weights: str | None, tactic: str, precision: str
) -> None:
    described: dict[str, Any] = {
        "Name": "conv",
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "x", "Dimensions": [-1, 1, 28, 28], "Format/Datatype": "N/A due to dynamic shapes"}],
        "TacticName": tactic,
    }
    if weights:
        described["Weights"] = {"Type": weights, "Count": 3136}
    assert count_precisions([described]) == {precision: 1}


def test_control_characters_between_the_names_of_onnx_layers() -> None:
    (described,) = read_layers('{"Layers": [{"Name": "a + b", "Metadata": "[ONNX Layer: a]\x1e[ONNX Layer: b]"}]}')
    assert described["Name"] == "a + b"
    assert read_layers('{"Layers": ["a + b"]}') == []


def test_a_fused_region_does_not_tell() -> None:
    counts = count_precisions([layer("{ForeignNode[a...b]}", "Myelin", "Float")])
    assert counts == {FUSED: 1}
    assert EngineInfo((), (), (), counts, None).ran_in("FP16") is None


@pytest.mark.parametrize(("layers", "told"), [({"FP16": 3}, True), ({"FP32": 3}, False), ({}, None)])
def test_whether_a_precision_came_out(layers: dict[str, int], told: bool | None) -> None:
    assert EngineInfo((), (), (), layers, None).ran_in("FP16") is told


class Engine86(FakeEngine):
    """As TensorRT 8.6.0 tells of one with an input that holds a size."""

    names = ("x", "size")

    def get_tensor_mode(self, _name: str) -> Any:
        return TensorIOMode.INPUT

    def get_tensor_location(self, name: str) -> Any:
        return TensorLocation["HOST" if name == "size" else "DEVICE"]

    def get_profile_shape_input(self, _index: int, _name: str) -> list[tuple[int]]:
        warnings.warn("Use get_tensor_profile_shape instead.", DeprecationWarning, stacklevel=1)
        return [(1,), (5,), (9,)]


class InvalidDims:
    """The shape that TensorRT 8.6.0 tells of what is in no profile."""

    def __len__(self) -> int:
        raise ValueError("__len__() should return >= 0")

    def __getitem__(self, index: int) -> int:
        raise IndexError(index)


def test_a_profile_of_8_6() -> None:
    cuda = FakeCuda()
    engine = Engine86(cuda, None, [(2, 6)], max_batch=8)
    library = Library(fake_tensorrt(cuda, [], 8), Target.TENSORRT)
    [profile] = inspect_engine(library, engine).profiles
    assert profile == Profile({"x": (1, 2), "size": (1,)}, {"x": (8, 6), "size": (5,)}, {"x": (8, 6), "size": (9,)})
    engine.get_tensor_profile_shape = lambda *_: [InvalidDims()] * 3  # type: ignore[method-assign]
    with pytest.raises(CompileError, match="no profile with the shape of input 'x'"):
        inspect_engine(library, engine)


def test_percentiles_as_trtexec_takes_them() -> None:
    values = [float(value) for value in range(1, 101)]
    expected = {0: 1, 50: 50, 90: 90, 99: 100, 100: 100}  # 99: (1 - 0.99) 100 is below 1 in single precision
    assert {share: percentile(values, share) for share in expected} == expected
    assert percentile([5.0, 1.0, 3.0], 99) == 5
    assert median([4.0, 1.0, 3.0]) == 3
    assert median([4.0, 1.0, 3.0, 2.0]) == 2.5
