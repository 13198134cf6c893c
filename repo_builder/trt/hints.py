"""Sentences for the person who had an engine built: what serving it takes, and what the build had to say."""

from __future__ import annotations

import re
from collections.abc import Sequence

from repo_builder.compilers.base import Target
from repo_builder.model import DataType, ModelSpec
from repo_builder.trt.engine import EngineInfo
from repo_builder.trt.library import Library
from repo_builder.trt.log import BuildLog
from repo_builder.trt.messages import tidy
from repo_builder.trt.options import TensorRTOptions

_WARNINGS_THAT_MATTER = re.compile(
    r"overflow|subnormal|truncat|clamp|out of range|precision|not supported", re.IGNORECASE
)


def build_hints(
    library: Library, options: TensorRTOptions, plugins: Sequence[str], log: BuildLog, *, served: bool
) -> tuple[str, ...]:
    """Hints on a finished build; ``plugins`` are the paths in the version's folder that libraries were copied to."""
    hints = [log.place] if log.trouble else []
    if options.version_compatible and library.target is Target.TENSORRT:
        hints.append("Triton loads it only with --backend-config=tensorrt,version-compatible=true")
    if options.plugins and not served:
        hints.append("its custom layers are not in the plan: whatever runs it loads their library first")
    elif plugins:
        files = ";".join(f"/models/NAME/VERSION/{file}" for file in plugins)
        hints.append(
            "its custom layers are published with it; repo-builder serve loads them, a Triton started otherwise "
            f"needs --backend-config=tensorrt,plugins='{files}', or LD_PRELOAD"
        )
    if library.target is Target.TENSORRT_RTX and (idle := _without_effect(options)):
        hints.append(f"{', '.join(idle)}: no effect, TensorRT-RTX makes the same engine without")
    matter = [message for message in log.warnings if _WARNINGS_THAT_MATTER.search(message)]
    if matter:
        more = f" (and {len(matter) - 1} more; {log.place})" if len(matter) > 1 else ""
        hints.append(f"{library.name} warns: {tidy(matter[0])[:200]}{more}")
    return tuple(hints)


def describe_types(source: ModelSpec, engine: EngineInfo) -> tuple[str, ...]:
    """A sentence where the engine has other types than the model: no TensorRT has FP64, and 8.6 no INT64.

    Half precision for FP32 was asked for, so is not told.
    """
    had = {tensor.name: tensor.dtype for tensor in (*source.inputs, *source.outputs)}
    other = [
        f"{tensor.name!r} is {tensor.dtype.value}, not {had[tensor.name].value}"
        for tensor in (*engine.inputs, *engine.outputs)
        if had.get(tensor.name, DataType.FP32) not in {tensor.dtype, DataType.FP32}
    ]
    return (f"other types in the engine than in the model: {', '.join(other)}",) if other else ()


def describe_half_model(
    library: Library, options: TensorRTOptions, source: ModelSpec, info: EngineInfo
) -> tuple[str, ...]:
    """A sentence where the model's tensors are half precision and the builder, which may choose, was not allowed it."""
    half = next((tensor.dtype for tensor in source.outputs if tensor.dtype in {DataType.FP16, DataType.BF16}), None)
    if half is None or options.half or not library.has_precision_flags or info.layers.keys() - {"FP32", "TF32"}:
        return ()
    return (
        f"the model's outputs are {half.value}, its engine computes in FP32: --{half.value.lower()} lets it in that",
    )


def _without_effect(options: TensorRTOptions) -> list[str]:
    """Options that TensorRT-RTX 1.7 takes and makes the same bytes of: its engines are finished where they run."""
    given = {
        "--builder-optimization-level": options.builder_optimization_level is not None,
        "--hardware-compatibility": bool(options.hardware_compatibility),
        "--sparsity": options.sparsity,
    }
    return [flag for flag, asked in given.items() if asked]
