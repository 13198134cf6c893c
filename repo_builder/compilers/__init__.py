"""What turns an ONNX model into the file that a Triton backend loads; one module a target."""

from __future__ import annotations

from repo_builder.compilers.base import Compiler, Target


def choose_compiler(target: Target) -> tuple[Compiler, str]:
    """The compiler for ``target`` and why it was taken."""
    from repo_builder.compilers.onnxruntime import OnnxRuntimeCompiler

    if target is Target.ONNXRUNTIME:
        return OnnxRuntimeCompiler(), "asked for"
    return OnnxRuntimeCompiler(), "TensorRT is not installed here"
