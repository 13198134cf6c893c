"""TensorRT's options on the command line, in our spelling and in trtexec's, for every command that builds."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from repo_builder.cli.trtexec import explain_dashes
from repo_builder.errors import UsageError

if TYPE_CHECKING:
    from repo_builder.trt.options import TensorRTOptions


class PlanTarget(str, Enum):
    auto = "auto"
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"


def _option(*names: str, **settings: Any) -> Any:
    return typer.Option(*names, show_default=False, **settings)


def _take_as_model(context: typer.Context, value: str) -> str:
    """Trtexec's ``--onnx=FILE`` is the argument MODEL where there is none; eager, so that it is not missed first."""
    if value:
        context.default_map = {**(context.default_map or {}), "model": value}
    return value


def tensorrt_options(
    fp16: Annotated[bool, _option("--fp16", "--best", help="TensorRT: allow FP16.")] = False,
    bf16: Annotated[bool, _option("--bf16", help="TensorRT: allow BF16.")] = False,
    int8: Annotated[bool, _option("--int8", hidden=True)] = False,
    tf32: Annotated[bool, _option("--tf32/--no-tf32", " /--noTF32", help="TensorRT: FP32 products in TF32.")] = True,
    strict: Annotated[
        bool, _option("--strict", "--stronglyTyped", help="TensorRT: precisions exactly as in the converted graph.")
    ] = False,
    half_io: Annotated[bool, _option("--half-io", help="TensorRT: FP32 inputs and outputs become half too.")] = False,
    input_formats: Annotated[str, _option("--input-io-formats", "--inputIOFormats", hidden=True)] = "",
    output_formats: Annotated[str, _option("--output-io-formats", "--outputIOFormats", hidden=True)] = "",
    min_shapes: Annotated[
        list[str] | None,
        _option("--min-shapes", "--minShapes", metavar="NAME:1x3x64x64,...", help="TensorRT: smallest shapes."),
    ] = None,
    opt_shapes: Annotated[
        list[str] | None,
        _option("--opt-shapes", "--optShapes", metavar="NAME:8x3x64x64,...", help="TensorRT: shapes tuned for."),
    ] = None,
    max_shapes: Annotated[
        list[str] | None,
        _option(
            "--max-shapes",
            "--maxShapes",
            metavar="NAME:32x3x64x64,...",
            help="TensorRT: largest shapes; all three again for each further profile.",
        ),
    ] = None,
    shapes: Annotated[list[str] | None, _option("--shapes", hidden=True)] = None,
    workspace: Annotated[
        int | None, _option("--workspace", metavar="MIB", min=0, help="TensorRT: scratch memory while building.")
    ] = None,
    mem_pool_size: Annotated[
        list[str] | None,
        _option(
            "--mem-pool-size",
            "--memPoolSize",
            metavar="POOL:SIZE,...",
            help="TensorRT: memory pools, as in workspace:4G; MiB without a unit.",
        ),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        _option("--timing-cache", "--timingCacheFile", metavar="FILE", help="TensorRT: measured tactics to reuse."),
    ] = None,
    builder_optimization_level: Annotated[
        int | None,
        _option(
            "--builder-optimization-level",
            "--builderOptimizationLevel",
            metavar="0..5",
            min=0,
            max=5,
            help="TensorRT: how long to look for tactics.",
        ),
    ] = None,
    version_compatible: Annotated[
        bool, _option("--version-compatible", "--versionCompatible", "--vc", help="TensorRT: for later versions too.")
    ] = False,
    hardware_compatibility: Annotated[
        str,
        _option(
            "--hardware-compatibility",
            "--hardwareCompatibilityLevel",
            metavar="LEVEL",
            help="TensorRT: none, ampere+ or same-compute-capability.",
        ),
    ] = "",
    compute_capability: Annotated[
        list[str] | None,
        _option(
            "--compute-capability",
            "--computeCapabilities",
            metavar="8.6,8.9",
            help="TensorRT-RTX: the GPUs to build for; default all.",
        ),
    ] = None,
    plugin: Annotated[
        list[Path] | None,
        _option(
            "--plugin",
            "--plugins",
            "--staticPlugins",
            "--dynamicPlugins",
            metavar="LIB.so",
            help="TensorRT: custom layers.",
        ),
    ] = None,
    sparsity: Annotated[
        str, _option("--sparsity", metavar="enable|disable", help="TensorRT: use 2:4 sparse weights.")
    ] = "",
    tactic_sources: Annotated[
        str, _option("--tactic-sources", "--tacticSources", metavar="-CUBLAS,+CUDNN", help="TensorRT: tactic sources.")
    ] = "",
    strip_weights: Annotated[
        bool, _option("--strip-weights", "--stripWeights", help="TensorRT: a plan without its weights.")
    ] = False,
    refit: Annotated[bool, _option("--refit", help="TensorRT: weights can be replaced later.")] = False,
    verbose_build: Annotated[
        bool, _option("--verbose-build", "--verbose", help="TensorRT: everything it says goes to the build's log.")
    ] = False,
    as_always: Annotated[  # noqa: ARG001
        bool,
        _option("--explicitBatch", "--explicitPrecision", "--skipInference", "--buildOnly", "--cpuOnly", hidden=True),
    ] = False,
    onnx: Annotated[  # noqa: ARG001
        str, _option("--onnx", hidden=True, is_eager=True, callback=_take_as_model)
    ] = "",
) -> TensorRTOptions:
    """What the options say, as the library takes it; raises UsageError."""
    from repo_builder.trt.options import QUANTISED_FOR_TENSORRT, TensorRTOptions, parse_profiles, parse_shapes

    if int8:
        raise UsageError(
            "--int8 needs a model that holds its quantisation: QuantizeLinear and DequantizeLinear nodes",
            f"{QUANTISED_FOR_TENSORRT}; what that makes is built without --int8",
        )
    if shapes and (min_shapes or opt_shapes or max_shapes):
        raise UsageError(
            "--shapes is min, opt and max in one, and there are --min-shapes, --opt-shapes or --max-shapes, too",
            "drop --shapes: what trtexec measures at by it, --benchmark measures at the opt shapes",
        )
    for text in shapes or []:
        parse_shapes("--shapes", text)  # its errors name the flag that was given
    pools = _pools(mem_pool_size or [])
    if workspace is not None:
        pools["workspace"] = workspace
    half = "fp16" if fp16 or not bf16 else "bf16"
    half_inputs = half_io or _is_half_format("--inputIOFormats", input_formats, half)
    half_outputs = half_io or _is_half_format("--outputIOFormats", output_formats, half)
    return TensorRTOptions(
        fp16=fp16,
        bf16=bf16,
        strict=strict,
        tf32=tf32,
        half_inputs=half_inputs,
        half_outputs=half_outputs,
        profiles=parse_profiles(shapes or min_shapes or [], shapes or opt_shapes or [], shapes or max_shapes or []),
        memory_pools=pools,
        builder_optimization_level=builder_optimization_level,
        version_compatible=version_compatible,
        hardware_compatibility=_level(hardware_compatibility),
        compute_capabilities=tuple(part for text in compute_capability or [] for part in text.split(",") if part),
        plugins=tuple(plugin or ()),
        sparsity=_is_enabled(sparsity),
        tactic_sources=tactic_sources,
        strip_weights=strip_weights,
        refit=refit,
        timing_cache=timing_cache,
        verbose=verbose_build,
    )


def describe_engine(engine: Mapping[str, Any]) -> str:
    """One line on what a manifest or ``compile`` says of an engine."""
    layers = engine["layers_by_precision"]
    counts = ", ".join(f"{count} {precision}" for precision, count in layers.items()) or "not told"
    cached = " with a timing cache" if engine["timing_cache_hit"] else ""
    gpu = f" on {engine['gpu']['name']}" if engine["gpu"] else ""
    return f"{engine['library']}{gpu}, built in {engine['build_seconds']:.1f} s{cached}; layers: {counts}"


def describe_plans(manifest: Mapping[str, Any]) -> list[str]:
    """A line on each plan of a version that has them for several types of GPU."""
    from repo_builder.cc_plans import plans_of

    return [
        f"{plan.capability}  {plan.file}, {plan.library} on {plan.gpu}" + ("" if plan.verified else ", NOT VERIFIED")
        for plan in plans_of(manifest)
    ]


_LEVELS = {
    "": "",
    "none": "",
    "ampere+": "ampere_plus",
    "samecomputecapability": "same_compute_capability",
    "same-compute-capability": "same_compute_capability",
}


def _level(text: str) -> str:
    """TensorRT's name of a level of hardware compatibility, "" for none."""
    known = {**_LEVELS, **{level: level for level in _LEVELS.values()}}
    if text.lower() not in known:
        raise UsageError(f"--hardware-compatibility {text}: no such level", "none, ampere+ or same-compute-capability")
    return known[text.lower()]


def takes_tensorrt_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command all of :func:`tensorrt_options`' parameters; it gets what they say as ``tensorrt``."""
    own = inspect.signature(command)
    added = inspect.signature(tensorrt_options)

    def run(**given: Any) -> None:
        if dashes := explain_dashes(sys.argv):
            raise dashes
        asked = {name: given.pop(name) for name in added.parameters}
        if asked["onnx"] and Path(asked["onnx"]) != Path(given["model"]):
            raise UsageError(f"--onnx {asked['onnx']} and {given['model']} are two models", "name one")
        command(**given, tensorrt=tensorrt_options(**asked))

    hints = {**_hints(command), **_hints(tensorrt_options)}
    parameters = [
        parameter.replace(annotation=hints[parameter.name])
        for parameter in (*own.parameters.values(), *added.parameters.values())
        if parameter.name != "tensorrt"
    ]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = hints
    return run


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Resolved annotations, but for names that only type checkers import."""
    annotations = {name: text for name, text in function.__annotations__.items() if name not in {"tensorrt", "return"}}
    holder = type("Annotations", (), {"__annotations__": annotations, "__module__": function.__module__})
    return get_type_hints(holder, include_extras=True)


_POOL = re.compile(
    r"(?P<name>.+):(?P<size>\d{1,99}(?:\.\d{0,99})?|\.\d{1,99})(?P<unit>[BKMG]?)", re.ASCII | re.IGNORECASE
)
_UNITS = {"B": 2**-20, "K": 2**-10, "M": 1, "": 1, "G": 2**10}
"""In MiB; trtexec reads a size without one so, too."""

_POOLS = {
    "tacticsharedmem": "tactic_shared_memory",
    "dlasram": "dla_managed_sram",
    "dlalocaldram": "dla_local_dram",
    "dlaglobaldram": "dla_global_dram",
}
"""TensorRT's names of memory pools by trtexec's, in lower case."""


def _pools(texts: list[str]) -> dict[str, float]:
    """MiB by pool; whole ones are integers."""
    pools = {}
    for part in (part for text in texts for part in text.split(",")):
        match = _POOL.fullmatch(part)
        if not match:
            hint = "POOL:SIZE in MiB or with B, K, M or G behind it, as in workspace:4096 or workspace:4G"
            raise UsageError(f"--mem-pool-size {part}: can't be read", hint)
        size = float(match["size"]) * _UNITS[match["unit"].upper()]
        name = match["name"].lower()
        pools[_POOLS.get(name, name)] = int(size) if size.is_integer() else size
    return pools


def _is_half_format(flag: str, text: str, half: str) -> bool:
    """Whether every format that trtexec's syntax lists is that of ``half``; FP32 is what is had without it."""
    formats = {part.strip() for part in text.split(",") if part.strip()}
    if not formats <= {f"{half}:chw", "fp32:chw"} or len(formats) > 1:
        raise UsageError(f"{flag} {text}: only {half}:chw or fp32:chw, the same for all", "or use --half-io")
    return f"{half}:chw" in formats


def _is_enabled(text: str) -> bool:
    if text not in {"", "enable", "disable"}:
        raise UsageError(f"--sparsity {text}: enable or disable", "weights are not changed to make them sparse")
    return text == "enable"
