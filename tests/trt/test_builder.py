"""TensorRT's builder where the GPU can't be used, and what it is told where it chooses the precisions."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from repo_builder.compilers.base import Target
from repo_builder.compilers.tensorrt import TOLERANCES, check_precision, constrain_layers, tolerance_of
from repo_builder.errors import CompileError
from repo_builder.model import DataType, ModelSpec, TensorSpec
from repo_builder.trt import cuda
from repo_builder.trt.build import build, configure, make_builder
from repo_builder.trt.engine import FUSED, EngineInfo
from repo_builder.trt.hints import describe_half_model
from repo_builder.trt.library import Library
from repo_builder.trt.log import BuildLog
from repo_builder.trt.options import Profile, TensorRTOptions
from tests.models import FP32
from tests.servers.fake_gpu import CODES, FakeCuda, ILogger, Severity

FAILURE = "6: CUDA initialization failure with error: 2"


@pytest.mark.parametrize(("said", "told"), [(FAILURE, FAILURE), (None, "cudaErrorMemoryAllocation")])
def test_a_builder_that_does_not_start_says_why(
    said: str | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def builder(logger: Any) -> Any:
        if said:
            logger.log(Severity.ERROR, f"{said}. Please check your CUDA installation")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(FakeCuda, "do_cudaFree", lambda *_: CODES.cudaErrorMemoryAllocation)
    monkeypatch.setattr(cuda, "runtime", FakeCuda)
    library = Library(SimpleNamespace(__version__="8.6.0", ILogger=ILogger, Builder=builder), Target.TENSORRT)
    with contextlib.closing(BuildLog(library, tmp_path / "build.log")) as log, pytest.raises(CompileError) as caught:
        make_builder(library, log)
    assert f"can't start on the GPU: {told}" in caught.value.message
    assert "is memory left on it? nvidia-smi tells" in str(caught.value.hint)


def library_that_chooses(**members: Any) -> Library:
    """TensorRT 8.6, which computes in half precision where that is allowed and faster."""
    module = SimpleNamespace(
        __version__="8.6.0",
        BuilderFlag=SimpleNamespace(FP16="FP16", INT8="INT8"),
        NetworkDefinitionCreationFlag=SimpleNamespace(EXPLICIT_BATCH=0),
        **members,
    )
    return Library(module, Target.TENSORRT)


@pytest.mark.parametrize(
    ("layers", "flags"), [(["MATRIX_MULTIPLY"], {"FP16"}), (["QUANTIZE", "DEQUANTIZE"], {"FP16", "INT8"})]
)
def test_a_quantised_network_may_compute_in_int8(layers: list[str], flags: set[str]) -> None:
    library = library_that_chooses(
        LayerType=SimpleNamespace(QUANTIZE="QUANTIZE", DEQUANTIZE="DEQUANTIZE"),
        ProfilingVerbosity=SimpleNamespace(DETAILED=2),
    )
    found: set[str] = set()
    builder = SimpleNamespace(create_builder_config=lambda: SimpleNamespace(set_flag=found.add))
    network = SimpleNamespace(num_layers=len(layers), get_layer=lambda index: SimpleNamespace(type=layers[index]))

    configure(library, builder, network, TensorRTOptions(fp16=True), ())

    assert found == flags


def engine_of(**layers: int) -> EngineInfo:
    return EngineInfo((), (), (), layers, None)


@pytest.mark.parametrize(
    ("options", "quantised", "layers"),
    [
        ({}, False, {"FP32": 4}),
        ({"fp16": True}, False, {"FP16": 1, "FP32": 3}),
        ({"fp16": True}, False, {FUSED: 1, "FP32": 3}),
        ({"fp16": True}, True, {"INT8": 1, "FP32": 3}),
        ({"fp16": True, "bf16": True}, False, {"BF16": 1, "FP32": 3}),
    ],
)
def test_a_precision_that_came_out(options: dict[str, Any], quantised: bool, layers: dict[str, int]) -> None:
    check_precision(library_that_chooses(), TensorRTOptions(**options), engine_of(**layers), quantised=quantised)


@pytest.mark.parametrize(
    ("options", "quantised", "layers", "hint"),
    [
        ({"fp16": True}, False, {"FP32": 3, "TF32": 1}, "--strict takes the precision of every layer from a converted"),
        ({"fp16": True, "strict": True}, True, {"FP32": 3, "TF32": 1}, "drop the flag"),
        ({"bf16": True, "strict": True}, False, {"INT8": 1, "FP32": 3}, "drop the flag"),
    ],
)
def test_half_precision_that_did_not_come_out_is_an_error(
    options: dict[str, Any], quantised: bool, layers: dict[str, int], hint: str
) -> None:
    """INT8 is what reads an INT8 input, too."""
    with pytest.raises(CompileError, match=r"was asked for, but no layer of the engine computes in it: \d ") as caught:
        check_precision(library_that_chooses(), TensorRTOptions(**options), engine_of(**layers), quantised=quantised)
    assert (caught.value.hint or "").startswith(hint)


@pytest.mark.parametrize(
    ("options", "dtype", "layers", "told"),
    [
        ({}, DataType.FP16, {"FP32": 2, "TF32": 1}, True),
        ({}, DataType.FP16, {FUSED: 3}, False),
        ({}, DataType.FP16, {"INT8": 5, "FP32": 1}, False),
        ({"fp16": True}, DataType.FP16, {"FP32": 3}, False),
        ({}, FP32, {"FP32": 3}, False),
    ],
)
def test_a_model_in_half_precision_that_is_computed_in_single(
    options: dict[str, Any], dtype: DataType, layers: dict[str, int], told: bool
) -> None:
    source = ModelSpec(Path("net.onnx"), (), (TensorSpec("y", dtype, (4,)),), (), 8, 17)
    hints = describe_half_model(library_that_chooses(), TensorRTOptions(**options), source, engine_of(**layers))
    sentence = "the model's outputs are FP16, its engine computes in FP32: --fp16 lets it in that"
    assert hints == ((sentence,) if told else ())


def test_what_is_no_reason_is_left_out_of_a_failed_build(tmp_path: Path) -> None:
    """TensorRT 8.6.0 on an H100; the first two are errors of builds, too, that go on and end well."""
    library = library_that_chooses(ILogger=ILogger)
    said = [
        "1: [myelinCache.h::deserializeFromBuffer::52] Error Code 1: Myelin (Myelin error from unknown graph)",
        "4: The timing cache will not be used!",
        "Assertion params.weights.type != DataType::kINT8 failed.",
    ]

    def fails(*_: Any) -> None:
        for message in said:
            log.logger.log(Severity.ERROR, message)

    with contextlib.closing(BuildLog(library, tmp_path / "build.log")) as log, pytest.raises(CompileError) as caught:
        build(library, SimpleNamespace(build_serialized_network=fails), None, SimpleNamespace(), log, lambda _: None)
    assert caught.value.message == (
        "TensorRT can't build the engine: Assertion params.weights.type != DataType::kINT8 failed."
    )
    assert (caught.value.hint or "").startswith("a fault of its own: it may build in another precision")


Kind = Enum("Kind", ["ACTIVATION", "CAST", "CONSTANT", "CONVOLUTION", "DEQUANTIZE", "GATHER", "SHAPE", "TRIP_LIMIT"])


class Layer:
    """A layer as 8.6 has it before the build, whatever the graph casts to: FP32, or INT32.

    What belongs to one type of layer, ``own``, is told after a downcast, as TensorRT's Python has it.
    """

    def __init__(self, kind: str, reads: Sequence[str], makes: str, own: Any = None) -> None:
        self.type, self.reads, self.makes, self.own, self.precision = Kind[kind], reads, makes, own, "FLOAT"
        self.num_inputs, self.num_outputs = len(reads), 1

    def get_input(self, index: int) -> Any:
        return SimpleNamespace(name=self.reads[index])

    def get_output(self, _index: int) -> Any:
        return SimpleNamespace(name=self.makes, dtype="INT32" if self.type is Kind["SHAPE"] else "FLOAT")


class CastLayer(Layer):
    @property
    def to_type(self) -> Any:
        return self.own


class ConstantLayer(Layer):
    @property
    def weights(self) -> Any:
        return self.own


def test_strict_holds_layers_of_the_converted_graph_to_fp16() -> None:
    layers = {
        "before": Layer("ACTIVATION", ["image"], "image_0"),
        "cast": Layer("CAST", ["image_0"], "image_fp16", "HALF"),
        "conv": Layer("CONVOLUTION", ["image_fp16"], "features"),
        "shape": Layer("SHAPE", ["features"], "sizes"),
        "count": Layer("TRIP_LIMIT", ["features"], "limit"),
        "sized": Layer("ACTIVATION", ["sizes"], "sizes_1"),
        "table": Layer("CONSTANT", [], "table", np.zeros(4, np.float16)),
        "lookup": Layer("GATHER", ["table", "ids"], "row"),
        "weights": Layer("CONSTANT", [], "weights", SimpleNamespace(dtype="DataType.FLOAT")),
        "plain": Layer("GATHER", ["weights", "ids"], "row_fp32"),
        "half input": Layer("ACTIVATION", ["half"], "half_1"),
        "int8": Layer("DEQUANTIZE", ["features"], "dequantised"),
        "of int8": Layer("CAST", ["dequantised"], "dequantised_fp16", "HALF"),
        "in int8": Layer("CONVOLUTION", ["dequantised_fp16"], "features_1"),
        "behind": Layer("ACTIVATION", ["features_1"], "features_2"),
        "back": Layer("CAST", ["features"], "y", "FLOAT"),
        "after": Layer("ACTIVATION", ["y"], "z"),
    }
    inputs = [SimpleNamespace(name=name, dtype=dtype) for name, dtype in (("image", "FLOAT"), ("half", "HALF"))]
    network = SimpleNamespace(
        num_inputs=len(inputs),
        get_input=lambda index: inputs[index],
        num_layers=len(layers),
        get_layer=lambda index: list(layers.values())[index],
    )
    types = SimpleNamespace(FLOAT="FLOAT", HALF="HALF")
    library = library_that_chooses(LayerType=Kind, DataType=types, ICastLayer=CastLayer, IConstantLayer=ConstantLayer)
    constrain_layers(library, network)
    held = {name for name, layer in layers.items() if layer.precision == "HALF"}
    assert held == {"conv", "lookup", "half input", "behind"}


def test_what_has_a_fixed_shape_is_in_the_profile_too() -> None:
    """Without a profile TensorRT 8.6 has no context for outputs whose size depends on the data."""
    ranges: dict[str, Any] = {}
    shapes = {"free": (-1, 4), "fixed": (3, 4), "number": ()}
    tensors = [SimpleNamespace(name=name, shape=shape, is_shape_tensor=False) for name, shape in shapes.items()]
    network = SimpleNamespace(num_inputs=3, num_layers=0, get_input=lambda index: tensors[index])
    add = Mock(return_value=0)
    config = SimpleNamespace(add_optimization_profile=add)
    builder = SimpleNamespace(
        create_builder_config=lambda: config,
        create_optimization_profile=lambda: SimpleNamespace(
            set_shape=lambda name, *corners: ranges.update({name: corners})
        ),
    )
    library = library_that_chooses(
        LayerType=SimpleNamespace(QUANTIZE=0, DEQUANTIZE=1), ProfilingVerbosity=SimpleNamespace(DETAILED=2)
    )
    profile = Profile({"free": (1, 4)}, {"free": (2, 4)}, {"free": (8, 4)})
    configure(library, builder, network, TensorRTOptions(), (profile,))
    assert ranges == {"free": ((1, 4), (2, 4), (8, 4)), "fixed": ((3, 4),) * 3}
    assert add.call_count == 1
    del tensors[:2]
    network.num_inputs = 1
    configure(library, builder, network, TensorRTOptions(), (Profile(),))
    assert add.call_count == 1


@pytest.mark.parametrize(
    ("options", "quantised", "precision"),
    [
        ({}, False, "TF32"),
        ({"tf32": False}, False, "FP32"),
        ({"fp16": True, "bf16": True}, False, "FP16"),
        ({"fp16": True}, True, "INT8"),
        ({}, True, "INT8"),
        ({"bf16": True}, True, "BF16"),
    ],
)
def test_the_tolerance_is_that_of_the_precision_that_the_graph_gets(
    options: dict[str, Any], quantised: bool, precision: str
) -> None:
    assert tolerance_of(TensorRTOptions(**options), quantised=quantised) == TOLERANCES[precision]
