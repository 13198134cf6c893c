# ruff: noqa: INP001  (no package: Triton's stub loads this file by its path)
"""Python-based Triton backend ``tensorrt_rtx``: serves engines of TensorRT-RTX.

Such an engine is compiled for the GPU when it is loaded; otherwise all is as in the backend ``tensorrt``, whose
file lies beside this one's folder.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load_sibling() -> ModuleType:
    name = "repo_builder_tensorrt_backend"
    path = Path(__file__).resolve().parent.parent / "tensorrt" / "model.py"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} can't be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


class TritonPythonModel(load_sibling().TritonPythonModel):  # type: ignore[misc]
    """One model instance (the interface is Triton's)."""

    LIBRARY = "tensorrt_rtx"
