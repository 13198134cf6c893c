"""What turns an ONNX model into the file that a Triton backend loads; one module a target."""

from __future__ import annotations

from repo_builder.compilers.base import Compiler, Target
from repo_builder.errors import CompileError, MissingExtraError, UsageError
from repo_builder.trt.options import TensorRTOptions


def choose_compiler(target: Target, tensorrt: TensorRTOptions | None = None) -> tuple[Compiler, str]:
    """The compiler for ``target`` and why it was taken.

    Raises:
        UsageError: options for TensorRT with a target that is not TensorRT.
        MissingExtraError, CompileError: TensorRT was asked for and is not there or does not load.
    """
    from repo_builder.compilers.onnxruntime import OnnxRuntimeCompiler

    options = tensorrt or TensorRTOptions()
    if target in {Target.TENSORRT, Target.TENSORRT_RTX}:
        from repo_builder.compilers.tensorrt import TensorRTCompiler

        return TensorRTCompiler.open(target, options), "asked for"
    obstacle = "onnxruntime was asked for" if target is Target.ONNXRUNTIME else _obstacle_to_tensorrt()
    if obstacle is None:
        from repo_builder.compilers.tensorrt import TensorRTCompiler

        return TensorRTCompiler.open(Target.TENSORRT, options), "TensorRT and a GPU are here"
    if options != TensorRTOptions():
        raise UsageError(
            f"these options are TensorRT's, and {obstacle}",
            "--target tensorrt needs TensorRT and a GPU, --target tensorrt-rtx builds without a GPU; or drop them",
        )
    return OnnxRuntimeCompiler(), "asked for" if target is Target.ONNXRUNTIME else obstacle


def _obstacle_to_tensorrt() -> str | None:
    """Why TensorRT can't be used here, None if it can."""
    from repo_builder.trt.cuda import find_gpu
    from repo_builder.trt.library import is_installed, load_library

    if not is_installed(Target.TENSORRT):
        return "TensorRT is not installed here"
    try:
        if find_gpu() is None:
            return "there is no GPU here"
        load_library(Target.TENSORRT)
    except (MissingExtraError, CompileError) as error:
        return error.message
    return None
