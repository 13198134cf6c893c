"""Options that trtexec has and no command here: a pasted line is told of all of them at once, each with its mend."""

from __future__ import annotations

from collections.abc import Sequence

from repo_builder.errors import UsageError

_MENDS = {
    "leave out what only measures: repo-builder compile --benchmark measures by trtexec's formulas": (
        *("iterations", "duration", "warmUp", "avgRuns", "percentile", "idleTime", "sleepTime", "streams"),
        *("infStreams", "exposeDMA", "noDataTransfers", "useManagedMemory", "useSpinWait", "threads"),
        *("separateProfileRun", "exportTimes", "exportOutput", "exportProfile", "dumpProfile", "dumpOutput"),
        *("dumpRawBindingsToFile", "timeDeserialize", "timeRefit", "loadInputs", "useProfile", "noSpinWait"),
        *("includeDataTransfers", "noCudaGraph", "persistentCacheRatio", "monitorMemory", "asyncFileReader"),
    ),
    "leave it out: repo-builder add compares what it builds with ONNX Runtime": (
        *("loadRefOutputs", "refPair", "accuracyAlgorithm", "accuracyThreshold"),
    ),
    "leave it out: repo-builder add --cuda-graphs serves with CUDA graphs": ("useCudaGraph",),
    "repo-builder inspect model.plan tells what is in a plan": (
        *("loadEngine", "dumpLayerInfo", "exportLayerInfo", "profilingVerbosity", "getPlanVersionOnly"),
        *("dumpOptimizationProfile", "dumpRefit"),
    ),
    "repo-builder compile -o FILE writes a plan alone; add publishes it in --repository": ("saveEngine",),
    "put Cast nodes into the model: --strict computes in exactly the graph's precisions": (
        *("layerPrecisions", "layerOutputTypes", "precisionConstraints"),
    ),
    "quantise the model, with QuantizeLinear and DequantizeLinear nodes; then it needs no flag": (
        *("fp8", "int4", "calib", "minShapesCalib", "optShapesCalib", "maxShapesCalib"),
    ),
    "--max-batch-size N, or the first sizes of --minShapes, --optShapes and --maxShapes": ("batch", "maxBatch"),
    "leave it out: --minShapes, --optShapes and --maxShapes given again make the next profile": ("profile",),
    "leave it out: CUDA_VISIBLE_DEVICES=N in the environment chooses the GPU": ("device",),
    "--strip-weights, with --refit where all of them are to be replaced later": ("stripAllWeights",),
    "leave it out: engines are built for GPUs only": (
        *("useDLACore", "allowGPUFallback", "layerDeviceTypes", "buildDLAStandalone", "adjustForDLA"),
        *("reportCapabilityDLA", "uint8AsymmetricQuantizationDLA"),
    ),
    "convert the model to ONNX": ("deploy", "model", "uff", "uffInput", "uffNHWC"),
    "leave it out: TensorRT's default is taken": (
        *("noBuilderCache", "tempdir", "tempfileControls", "maxAuxStreams", "tilingOptimizationLevel", "heuristic"),
        *("directIO", "consistency", "safe", "restricted", "preview", "weightStreamingBudget"),
        *("excludeLeanRuntime", "leanDLLPath", "setPluginsToSerialize", "ignoreParsedPluginLibs"),
        *("errorOnTimingCacheMiss", "allowWeightStreaming", "markDebug", "l2LimitForTiling", "allocationStrategy"),
        *("runtimePlatform", "avgTiming", "minTiming", "maxTactics", "distributiveIndependence", "pluginInstanceNorm"),
        *("useRuntime", "decomposableAttentions", "enablePluginOverride", "refitFromOnnx", "noCompilationCache"),
        *("saveDebugTensors", "saveAllDebugTensors", "markUnfusedTensorsAsDebugTensors", "tuningCacheFile"),
        *("remoteAutoTuningConfig", "nvtxVerbosity", "nvtxMode", "weightless"),
    ),
}
"""Options without their dashes by what to do instead."""

_MEND_OF = {f"--{name}": mend for mend, names in _MENDS.items() for name in names}

_DASHES = "\N{EN DASH}\N{EM DASH}"


def explain_dashes(arguments: Sequence[str]) -> UsageError | None:
    """What to say of options whose hyphens a web page has made one dash of; None where there are none."""
    dashed = [text for text in arguments if text.startswith(tuple(_DASHES))]
    if not dashed:
        return None
    meant = " ".join("--" + text.lstrip(f"{_DASHES}-") for text in dashed)
    return UsageError(f"{', '.join(dashed)}: begins with a dash, and options begin with two hyphens", meant)


def explain(unknown: str, arguments: Sequence[str], command: str) -> UsageError | None:
    """What to say of ``unknown``, which ``command`` lacks, and of all others like it; None if trtexec lacks it, too."""
    if dashes := explain_dashes(arguments):
        return dashes
    if unknown not in _MEND_OF:
        return None
    given = [name for name in dict.fromkeys(text.partition("=")[0] for text in arguments) if name in _MEND_OF]
    if command == "compile":
        given = [name for name in given if name != "--saveEngine"]  # which it has
    mends: dict[str, list[str]] = {}
    for name in given:
        mends.setdefault(_MEND_OF[name], []).append(name)
    hints = [mend if len(mends) == 1 else f"{', '.join(names)}: {mend}" for mend, names in mends.items()]
    options = "an option" if len(given) == 1 else "options"
    return UsageError(f"{', '.join(given)}: {options} of trtexec that {command} does not have", "; ".join(hints))
