"""Triton backend ``tensorrt_rtx``: serves engines of TensorRT-RTX.

Such an engine is compiled for the GPU when it is loaded; otherwise all is as in the backend ``tensorrt``.
"""

from __future__ import annotations

from . import tensorrt


class TritonPythonModel(tensorrt.TritonPythonModel):
    """One model instance (the interface is Triton's)."""

    LIBRARY = "tensorrt_rtx"
