"""Starting TensorRT's builder where the GPU can't be used."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from repo_builder.compilers.base import Target
from repo_builder.errors import CompileError
from repo_builder.trt import cuda
from repo_builder.trt.build import make_builder
from repo_builder.trt.library import Library
from repo_builder.trt.log import BuildLog
from tests.servers.fake_gpu import ILogger, Severity

FAILURE = "6: CUDA initialization failure with error: 2"
FULL = SimpleNamespace(cudaFree=lambda _: (SimpleNamespace(value=2, name="cudaErrorMemoryAllocation"),))


@pytest.mark.parametrize(("said", "told"), [(FAILURE, FAILURE), (None, "cudaErrorMemoryAllocation")])
def test_a_builder_that_does_not_start_says_why(
    said: str | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def builder(logger: Any) -> Any:
        if said:
            logger.log(Severity.ERROR, f"{said}. Please check your CUDA installation")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(cuda, "runtime", lambda: FULL)
    library = Library(SimpleNamespace(__version__="8.6.0", ILogger=ILogger, Builder=builder), Target.TENSORRT)
    with contextlib.closing(BuildLog(library, tmp_path / "build.log")) as log, pytest.raises(CompileError) as caught:
        make_builder(library, log)
    assert f"can't start on the GPU: {told}" in caught.value.message
    assert "is memory left on it? nvidia-smi tells" in str(caught.value.hint)
