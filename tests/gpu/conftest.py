"""What every test on a GPU needs."""

from __future__ import annotations

import pytest

from repo_builder.compilers.base import Target
from repo_builder.errors import MissingExtraError
from repo_builder.trt.cuda import find_gpu
from repo_builder.trt.library import is_installed


@pytest.fixture(scope="session")
def tensorrt_on_a_gpu() -> None:
    """Skip where there is none."""
    try:
        found = is_installed(Target.TENSORRT) and find_gpu()
    except MissingExtraError:
        found = None
    if not found:
        pytest.skip("needs a GPU, TensorRT and cuda-python")
