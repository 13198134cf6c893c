"""Starting TensorRT's builder where the GPU can't be used."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from repo_builder.compilers.base import Target
from repo_builder.errors import CompileError
from repo_builder.trt.build import make_builder
from repo_builder.trt.library import Library
from repo_builder.trt.log import BuildLog
from tests.servers.fake_gpu import ILogger, Severity


def test_a_builder_that_does_not_start_says_why(tmp_path: Path) -> None:
    def builder(logger: Any) -> Any:
        logger.log(Severity.ERROR, "6: CUDA initialization failure with error: 2. Please check your CUDA installation")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    library = Library(SimpleNamespace(__version__="8.6.0", ILogger=ILogger, Builder=builder), Target.TENSORRT)
    with contextlib.closing(BuildLog(library, tmp_path / "build.log")) as log, pytest.raises(CompileError) as caught:
        make_builder(library, log)
    assert "can't start on the GPU: 6: CUDA initialization failure with error: 2" in caught.value.message
    assert "is memory left on it? nvidia-smi tells" in str(caught.value.hint)
