"""TensorRT's builder where the GPU can't be used, and what it is told where it chooses the precisions."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from repo_builder.compilers.base import Target
from repo_builder.errors import CompileError
from repo_builder.trt import cuda
from repo_builder.trt.build import configure, make_builder
from repo_builder.trt.library import Library
from repo_builder.trt.log import BuildLog
from repo_builder.trt.options import TensorRTOptions
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


@pytest.mark.parametrize(
    ("layers", "flags"), [(["MATRIX_MULTIPLY"], {"FP16"}), (["QUANTIZE", "DEQUANTIZE"], {"FP16", "INT8"})]
)
def test_a_quantised_network_may_compute_in_int8(layers: list[str], flags: set[str]) -> None:
    module = SimpleNamespace(
        __version__="8.6.0",
        BuilderFlag=SimpleNamespace(FP16="FP16", INT8="INT8"),
        LayerType=SimpleNamespace(QUANTIZE="QUANTIZE", DEQUANTIZE="DEQUANTIZE"),
        NetworkDefinitionCreationFlag=SimpleNamespace(EXPLICIT_BATCH=0),
        ProfilingVerbosity=SimpleNamespace(DETAILED=2),
    )
    found: set[str] = set()
    builder = SimpleNamespace(create_builder_config=lambda: SimpleNamespace(set_flag=found.add))
    network = SimpleNamespace(num_layers=len(layers), get_layer=lambda index: SimpleNamespace(type=layers[index]))

    configure(Library(module, Target.TENSORRT), builder, network, TensorRTOptions(fp16=True), ())

    assert found == flags
