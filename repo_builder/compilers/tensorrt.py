"""TensorRT and TensorRT-RTX as targets: an engine for Triton's tensorrt backend, or for ours of RTX."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from repo_builder.comparison import Tolerance
from repo_builder.compilers.base import Artifact, Maker, Progress, Target
from repo_builder.errors import CompileError, ModelError, UsageError
from repo_builder.model import DataType
from repo_builder.onnx_model import OnnxModel
from repo_builder.passes.half_graph import HalfGraph
from repo_builder.passes.quantised import dequantise_biases
from repo_builder.passes.uint8 import move_uint8_as_fp32
from repo_builder.trt.build import (
    BuildTimes,
    TimingCache,
    build,
    configure,
    has_layer,
    is_strongly_typed,
    make_builder,
    network_flags,
)
from repo_builder.trt.cuda import Gpu, find_gpu, require_gpu
from repo_builder.trt.definition import (
    Definition,
    describe_definition,
    has_batch_axis,
    refuse_conversion,
    refuse_network,
)
from repo_builder.trt.engine import EngineInfo, inspect_build, inspect_engine
from repo_builder.trt.hints import build_hints, describe_half_model, describe_types
from repo_builder.trt.interrupts import held
from repo_builder.trt.library import Library, load_library
from repo_builder.trt.log import BuildLog, keep_newest, log_path
from repo_builder.trt.messages import name_nodes, tidy
from repo_builder.trt.options import Profile, TensorRTOptions
from repo_builder.trt.parse import parse, with_node
from repo_builder.trt.plugins import copy_plugins, describe_idle, load_plugins
from repo_builder.trt.profiles import (
    NetworkInput,
    free_unequal_axes,
    largest_batch,
    plan_profiles,
    refuse_other_than_one_row,
)
from repo_builder.trt.refuse import refuse_model
from repo_builder.verify import Runner

GRAPH, GRAPH_DATA = "graph.onnx", "graph.onnx.data"

TOLERANCES = {
    # Unit roundoff u of the products: TF32 and FP16 2^-11, BF16 2^-8.  Errors of independent layers add up like a
    # random walk: a network of 100 layers is off by some 10 u of its largest output, and small outputs by as much.
    # Of what an ArgMax chooses, as large a share may be another one: those whose rivals are that near.
    "FP32": Tolerance(flips=1e-3),
    "TF32": Tolerance(rtol=1e-2, scale=5e-3, flips=1e-2),
    "FP16": Tolerance(rtol=1e-2, scale=1e-2, flips=1e-2),
    "BF16": Tolerance(rtol=8e-2, scale=8e-2, flips=8e-2),
    # Steps are 1/127 of the largest value: two of them and a half, since what lies between two goes to either.
    "INT8": Tolerance(rtol=2e-2, scale=2e-2, flips=2e-2),
}


def tolerance_of(options: TensorRTOptions, *, quantised: bool = False) -> Tolerance:
    """What the precision of an engine built so allows; ``quantised`` by its QuantizeLinear nodes."""
    if options.half is DataType.BF16:
        return TOLERANCES["BF16"]
    if quantised:
        return TOLERANCES["INT8"]
    return TOLERANCES["FP16" if options.half else "TF32" if options.tf32 else "FP32"]


@dataclass(frozen=True)
class TensorRTCompiler:
    """Compiles with the library that it was made for; see :class:`repo_builder.compilers.base.Compiler`.

    ``served`` refuses what Triton would accept and then fail on.
    """

    library: Library
    options: TensorRTOptions
    served: bool = True

    @classmethod
    def open(cls, target: Target, options: TensorRTOptions, *, served: bool = True) -> TensorRTCompiler:
        """Load the target's library.

        Raises:
            MissingExtraError: it is not installed.
            CompileError: it does not load, or is TensorRT, and there is no GPU for it to build on.
            UsageError: a timing cache for TensorRT-RTX.
        """
        library = load_library(target)
        if target is Target.TENSORRT:
            require_gpu("building for TensorRT")
        elif options.timing_cache:
            raise UsageError("--timing-cache: TensorRT-RTX measures no tactics at build time", "drop it")
        return cls(library, options, served)

    @property
    def target(self) -> Target:
        return self.library.target

    def identity(self) -> Maker:
        gpu = find_gpu() if self.target is Target.TENSORRT else None
        return Maker(f"{self.library.name} {self.library.version}", gpu)

    def compile(
        self, model: OnnxModel, folder: Path, *, batchable: bool, max_batch_size: int, progress: Progress
    ) -> Artifact:
        """Build ``model.plan``; the ONNX graph and its external data do not stay beside it.

        Raises:
            CompileError: TensorRT can't take the model or build the engine, or the engine is not what was asked for.
            UsageError: an option contradicts the model or what this library has.
        """
        graph = folder / GRAPH
        refuse_model(self.target, model, self.options.profiles, batchable=batchable, max_batch_size=max_batch_size)
        try:
            with self._log() as log:
                proto, half_graph = self._write_graph(model, graph, max_batch_size, progress)

                def fill(network: Any) -> tuple[Any, bool]:
                    with held():
                        return parse(self.library, network, graph, proto, log), batchable

                try:
                    engine = self._build(fill, str(model.spec.path.resolve()), log, max_batch_size, progress)
                except CompileError as error:
                    raise with_node(error, proto) from None
                artifact = self._artifact(engine, half_graph, folder, log)
                half = describe_half_model(self.library, self.options, model.spec, engine.info)
                return replace(artifact, hints=(*describe_types(model.spec, engine.info), *half, *artifact.hints))
        finally:
            for file in (graph, folder / GRAPH_DATA, *(folder / name for name in model.spec.external_files)):
                file.unlink(missing_ok=True)

    def compile_network(
        self, definition: Definition, folder: Path, *, batching: bool, max_batch_size: int, progress: Progress
    ) -> Artifact:
        """Build ``model.plan`` from a network that ``definition(network, tensorrt)`` fills by TensorRT's own calls.

        With ``batching`` the first axes are a batch where all of them are free.  What ``definition`` raises goes
        through.

        Raises:
            CompileError: the network is not complete, or can't be built.
            UsageError: an option contradicts the network or what this library has.
        """
        refuse_conversion(self.library, self.options)

        def fill(network: Any) -> tuple[Any, bool]:
            definition(network, self.library.module)
            refuse_network(network)
            return None, has_batch_axis(network) and batching

        with self._log() as log:
            engine = self._build(fill, describe_definition(definition), log, max_batch_size, progress)
            return self._artifact(engine, None, folder, log)

    def _log(self) -> contextlib.closing[BuildLog]:
        return contextlib.closing(BuildLog(self.library, log_path(self.target), verbose=self.options.verbose))

    def _write_graph(
        self, model: OnnxModel, path: Path, max_batch_size: int, progress: Progress
    ) -> tuple[Any, HalfGraph | None]:
        """Write the graph that TensorRT is to read, in half precision where the graph decides about that.

        Returns it, and what to compare with should its engine not run.
        """
        import onnx

        proto = dequantise_biases(model.proto, path.parent)  # with real files: onnx refuses links, as of Hugging Face
        half, half_graph = self.options.half, None
        ports = self.options.half_inputs or self.options.half_outputs
        if half and (is_strongly_typed(self.library, self.options) or ports or self.options.strict):
            from repo_builder.passes.half_operators import BF16_OPSET
            from repo_builder.passes.precision import to_half

            progress(f"converting the graph to {half.value}")
            converted = to_half(
                proto,
                half,
                path.parent,
                half_inputs=self.options.half_inputs,
                half_outputs=self.options.half_outputs,
            )
            if not (converted.half_nodes or converted.already_half):
                old = half is DataType.BF16 and bool(converted.kept) and model.spec.opset < BF16_OPSET
                newer = f", or export the model with opset {BF16_OPSET} or newer" if old else ""
                why = ", ".join(f"{count} {reason}" for reason, count in converted.kept.items())
                raise CompileError(
                    f"nothing of the model can compute in {half.value}: {why or 'it has no FP32 nodes'}",
                    f"drop --{half.value.lower()}{newer}",
                )
            half_graph = HalfGraph(path, proto, half, converted.half_values)
            proto = converted.proto
        proto = free_unequal_axes(move_uint8_as_fp32(proto), self.options.profiles, max_batch_size)
        if proto is not model.proto:
            name_nodes(proto, model.proto)
        large = sum(len(tensor.raw_data) for tensor in proto.graph.initializer) > 1 << 30
        if large and proto is not model.proto:
            onnx.save_model(proto, path, save_as_external_data=True, location=GRAPH_DATA)
        else:
            onnx.save(proto, path)
        return proto, half_graph

    def _build(
        self,
        fill: Callable[[Any], tuple[Any, bool]],
        what: str,
        log: BuildLog,
        max_batch_size: int,
        progress: Progress,
    ) -> _Engine:
        """Build the network that ``fill`` makes; it returns what the build needs kept, and whether there is a batch."""
        with held():
            idle = describe_idle(self.library, load_plugins(self.library, log.logger, self.options.plugins))
            builder = make_builder(self.library, log)
            network = builder.create_network(network_flags(self.library, self.options))
        try:
            kept, batchable = fill(network)
        except CompileError as error:
            raise CompileError(error.message, "; ".join(filter(None, (*idle, error.hint)))) from None
        if self.options.strict and not is_strongly_typed(self.library, self.options):
            constrain_layers(self.library, network)
        inputs = _network_inputs(network)
        quantised = has_layer(self.library, network, "QUANTIZE")
        profiles = plan_profiles(inputs, self.options.profiles, batchable=batchable, max_batch_size=max_batch_size)
        if batchable and self.served:
            refuse_other_than_one_row(inputs, profiles)
        largest = largest_batch(inputs, profiles) if batchable else 0
        with held():
            config = configure(self.library, builder, network, self.options, profiles)
        gpu = find_gpu()
        measures = self.target is Target.TENSORRT
        cache = TimingCache(self.library, config, gpu, self.options.timing_cache) if measures else None
        times = BuildTimes(f"{self.identity()} {what} {self.options.half}")
        expected = times.last()
        label = "building the engine" + (f" (last time {expected:.0f} s)" if expected and expected > 1 else "")
        progress(label)
        began = time.monotonic()
        memory = build(self.library, builder, network, config, log, lambda detail: progress(f"{label}\t{detail}"))
        seconds = time.monotonic() - began
        times.note(seconds)
        hints = tuple(filter(None, (cache.save() if cache else "", *idle)))
        plan = bytes(memory)
        del kept
        keep_newest(log.path.parent)
        with held():
            runnable, obstacle = self._deserialise(plan, gpu, log)
            info = (
                inspect_engine(self.library, runnable)
                if runnable is not None
                else inspect_build(self.library, network, profiles, log.engine_text)
            )
        check_precision(self.library, self.options, info, quantised=quantised)
        hit = cache.hit if cache else None
        return _Engine(plan, info, runnable, obstacle, largest, seconds, hit, gpu, hints, quantised)

    def _deserialise(self, plan: bytes, gpu: Gpu | None, log: BuildLog) -> tuple[Any, str]:
        """The engine ready to run, or why it can't be had here."""
        if gpu is None:
            return None, "there is no GPU here"
        log.errors.clear()
        runtime = self.library.module.Runtime(log.logger)
        if self.options.version_compatible and hasattr(runtime, "engine_host_code_allowed"):
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is not None:
            return engine, ""
        said = tidy(log.errors[-1]) if log.errors else "it gave no reason"
        if self.target is Target.TENSORRT and not (self.options.hardware_compatibility or self.options.strip_weights):
            raise CompileError(f"the engine was built but does not load: {said}", log.place)
        return None, f"this GPU ({gpu.name}, compute capability {gpu.compute_capability}) can't run it: {said}"

    def _artifact(self, engine: _Engine, graph: HalfGraph | None, folder: Path, log: BuildLog) -> Artifact:
        """Write the plan, with its plugins where it is to be served, and describe it."""
        (folder / self.target.filename).write_bytes(engine.plan)
        plugins = copy_plugins(self.options.plugins, folder) if self.served else ()
        run, unverified = self._runner(engine, graph, log)
        return Artifact(
            platform=self.target.platform,
            backend=self.target.backend,
            filename=self.target.filename,
            inputs=engine.info.inputs,
            outputs=engine.info.outputs,
            max_batch_size=engine.largest_batch,
            run=run,
            tools={self.library.name: self.library.version},
            tolerance=tolerance_of(self.options, quantised=engine.quantised),
            unverified=unverified,
            profiles=engine.info.profiles,
            shape_tensors=engine.info.shape_tensors,
            gpu_only=True,
            hints=(*engine.hints, *build_hints(self.library, self.options, plugins, log, served=self.served)),
            details={"engine": {**self._facts(engine, log), "plugins": list(plugins)}},
        )

    def _runner(self, engine: _Engine, graph: HalfGraph | None, log: BuildLog) -> tuple[Runner | None, str | None]:
        """What to verify by: the engine itself, or the graph it was built from where the engine can't run."""
        if engine.runnable is not None:
            from repo_builder.trt.runner import EngineRunner

            return EngineRunner(self.library, engine.runnable, engine.info, log.errors).run, None
        if not self.served:
            return None, None
        start = f"the engine has not run ({engine.obstacle}): its numbers are unverified"
        if graph is None:
            return None, start
        half = graph.half.value
        try:
            run = graph.open()
        except ModelError:
            return None, f"{start}, and ONNX Runtime can't run its {half} graph either"
        in_range = "on the inputs of the comparison no value leaves FP16's range; " if graph.watches_range else ""
        compared = f"its {half} graph under ONNX Runtime, which computes most of it in FP32"
        return run, f"{start}; {in_range}what was compared is {compared}"

    def _facts(self, engine: _Engine, log: BuildLog) -> dict[str, Any]:
        """What the manifest says of the engine."""
        info = engine.info
        return {
            "library": f"{self.library.name} {self.library.version}",
            "gpu": asdict(engine.gpu) if engine.gpu else None,
            "layers_by_precision": dict(info.layers),
            "quantised": engine.quantised,
            "profiles": [describe_profile(profile) for profile in info.profiles],
            "device_memory_bytes": info.device_memory,
            "build_seconds": round(engine.seconds, 2),
            "timing_cache_hit": engine.cache_hit,
            "verified_by_running": engine.runnable is not None,
            "log": None if log.trouble else str(log.path),
        }


@dataclass(frozen=True)
class _Engine:
    """A finished build.  ``runnable`` is the ``ICudaEngine``, None with the ``obstacle`` where it can't run here.

    ``hints`` say why the timing cache could not be kept, and which plugins brought nothing.
    """

    plan: bytes
    info: EngineInfo
    runnable: Any
    obstacle: str
    largest_batch: int
    seconds: float
    cache_hit: bool | None
    gpu: Gpu | None
    hints: tuple[str, ...]
    quantised: bool


def _inputs_of(network: Any) -> list[Any]:
    return [network.get_input(index) for index in range(network.num_inputs)]


def _network_inputs(network: Any) -> list[NetworkInput]:
    return [
        NetworkInput(
            tensor.name,
            tuple(tensor.shape),
            tensor.is_shape_tensor,
            tuple(tensor.get_dimension_name(axis) or "" for axis in range(len(tensor.shape))),
        )
        for tensor in _inputs_of(network)
    ]


def check_precision(library: Library, options: TensorRTOptions, info: EngineInfo, *, quantised: bool) -> None:
    """Raise CompileError if no layer computes in what was asked for, nor, in a quantised model, in less."""
    half = options.half
    if not half or info.ran_in(half.value) is not False:
        return
    if (quantised and info.layers.keys() - {"FP32", "TF32"}) or (options.bf16 and info.ran_in("BF16")):
        return
    chooses = not (is_strongly_typed(library, options) or options.strict)
    raise CompileError(
        f"--{half.value.lower()} was asked for, but no layer of the engine computes in it: "
        + ", ".join(f"{count} {precision}" for precision, count in info.layers.items()),
        f"{'--strict takes the precision of every layer from a converted graph; or ' if chooses else ''}drop the flag",
    )


_WITHOUT_PRECISION = frozenset({
    "ASSERTION", "CONDITION", "CONDITIONAL_INPUT", "CONDITIONAL_OUTPUT", "DEQUANTIZE", "ITERATOR", "LOOP_OUTPUT",
    "PLUGIN", "PLUGIN_V2", "QUANTIZE", "RECURRENCE", "SHAPE", "TRIP_LIMIT",
})  # fmt: skip
"""Types of layers that say where data goes, or that have types of their own."""


def constrain_layers(library: Library, network: Any) -> None:
    """Hold every layer that the converted graph has in FP16 to it.

    Where the builder chooses, all tensors within a network are FP32 until it has chosen: their types follow from those
    of inputs and weights, by what the graph casts to.  What reads dequantised values is left to compute in INT8.
    """
    trt = library.module
    kinds = trt.LayerType
    half = {tensor.name for tensor in _inputs_of(network) if tensor.dtype == trt.DataType.HALF}
    dequantised: set[str] = set()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        reads = {tensor.name for tensor in map(layer.get_input, range(layer.num_inputs)) if tensor is not None}
        made = [layer.get_output(place) for place in range(layer.num_outputs)]
        if layer.type == kinds.DEQUANTIZE or (layer.type == kinds.CAST and reads & dequantised):
            dequantised.update(tensor.name for tensor in made)
        if layer.type == kinds.CAST:
            layer.__class__ = trt.ICastLayer
            is_half = layer.to_type == trt.DataType.HALF
        elif layer.type == kinds.CONSTANT:
            layer.__class__ = trt.IConstantLayer
            is_half = str(layer.weights.dtype) in {"float16", "DataType.HALF"}  # of an array, of Weights
        else:
            is_half = bool(reads & half)
            if is_half and not reads & dequantised and layer.type.name not in _WITHOUT_PRECISION:
                layer.precision = trt.DataType.HALF
        if is_half:
            half.update(tensor.name for tensor in made if tensor.dtype in {trt.DataType.FLOAT, trt.DataType.HALF})


def describe_profile(profile: Profile) -> dict[str, Mapping[str, list[int]]]:
    return {
        corner: {name: list(shape) for name, shape in getattr(profile, corner).items()}
        for corner in ("min", "opt", "max")
    }
