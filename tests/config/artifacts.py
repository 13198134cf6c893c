"""Artifacts as a compiler would describe them, for tests of what is written about them."""

from __future__ import annotations

from typing import Any

from repo_builder.compilers.base import Artifact
from repo_builder.model import DataType, TensorSpec

FP32, INT64 = DataType.FP32, DataType.INT64


def artifact(
    inputs: tuple[TensorSpec, ...] = (TensorSpec("x", FP32, ("batch", 4)),),
    outputs: tuple[TensorSpec, ...] = (TensorSpec("y", FP32, ("batch", 3)),),
    **fields: Any,
) -> Artifact:
    defaults: dict[str, Any] = {
        "platform": "onnxruntime_onnx",
        "filename": "model.onnx",
        "max_batch_size": None,
        "run": None,
    }
    return Artifact(inputs=inputs, outputs=outputs, **{**defaults, **fields})
