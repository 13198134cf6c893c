"""Plans by themselves: an ONNX file to a ``model.plan`` without a repository, and a plan to what is in it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from repo_builder.compatibility import read_plan_version, version_text
from repo_builder.compilers.base import Artifact, Progress, Target
from repo_builder.compilers.exchange import DISK_FULL
from repo_builder.compilers.tensorrt import TensorRTCompiler, describe_profile
from repo_builder.config.build import DEFAULT_MAX_BATCH_SIZE
from repo_builder.errors import CompileError, ModelError, RepoBuilderError, UsageError, told_with
from repo_builder.onnx_model import bring_external_data, read_model
from repo_builder.passes.batch import static_batching
from repo_builder.passes.shapes import describe_zero_axes, free_zero_axes
from repo_builder.repository import manifest_in
from repo_builder.trt.benchmark import Performance, measure
from repo_builder.trt.cuda import find_gpu
from repo_builder.trt.engine import EngineInfo, inspect_engine
from repo_builder.trt.library import Library, is_installed, load_library
from repo_builder.trt.log import BuildLog
from repo_builder.trt.options import TensorRTOptions
from repo_builder.trt.plugins import load_plugins, published_plugins


@dataclass(frozen=True)
class Compiled:
    """A plan on disk and what was built: the same facts that a manifest has of an engine."""

    path: Path
    bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    engine: Mapping[str, Any]
    hints: tuple[str, ...]


def compile_plan(
    source: Path,
    output: Path,
    *,
    target: Target = Target.AUTO,
    options: TensorRTOptions | None = None,
    max_batch_size: int | None = None,
    progress: Progress = lambda _: None,
) -> Compiled:
    """Build ``output`` from the ONNX file ``source``, as trtexec does: nothing is compared, nothing published.

    Args:
        source: the ONNX file.
        output: the plan; appears whole or not at all.  A link stays one.
        target: ``AUTO`` is TensorRT where it is installed, else TensorRT-RTX.
        options: how to build.
        max_batch_size: the largest batch where the first axis is free and ``options`` give no shapes; default 8.
        progress: called with a line whenever something that takes time begins.

    Raises:
        RepoBuilderError: see :mod:`repo_builder.errors`.
    """
    if target is Target.ONNXRUNTIME:
        raise UsageError("--target onnxruntime makes no plan", "tensorrt or tensorrt-rtx")
    if target is Target.AUTO:
        target = Target.TENSORRT if is_installed(Target.TENSORRT) else Target.TENSORRT_RTX
    _refuse_output(output)
    compiler = TensorRTCompiler.open(target, options or TensorRTOptions(), served=False)
    progress(f"reading {source}")
    model = read_model(source)
    weights = [source.parent / file for file in model.spec.external_files]
    _refuse_source(output, source, *weights)
    notes = describe_zero_axes(model.proto)
    model = model.with_graph(free_zero_axes(model.proto))
    batching = static_batching(model)
    progress(f"compiling for {target.value}")
    real = output.resolve()
    try:
        with tempfile.TemporaryDirectory(prefix=".repo-builder-", dir=real.parent) as folder, told_with(notes):
            bring_external_data(model.spec, Path(folder))
            artifact = compiler.compile(
                model,
                Path(folder),
                batchable=batching.batchable,
                max_batch_size=max_batch_size or DEFAULT_MAX_BATCH_SIZE,
                progress=progress,
            )
            (Path(folder) / artifact.filename).replace(real)
    except OSError as error:
        raise _failed(error, output, weights) from None
    if max_batch_size and artifact.max_batch_size != max_batch_size:
        why = "the shapes given say otherwise" if batching.batchable else batching.reason
        notes = (*notes, f"--max-batch-size {max_batch_size}: no effect, {why}")
    return _compiled(output, replace(artifact, hints=(*notes, *artifact.hints)))


def _refuse_output(output: Path) -> None:
    """Raise UsageError for a folder, for a device, which would be replaced by the plan, and where none can be seen."""
    try:
        unfit = output.exists() and not output.is_file()
    except OSError as error:
        raise _failed(error, output, ()) from None
    if unfit:
        what = "a folder" if output.is_dir() else "no ordinary file"
        raise UsageError(f"{output} is {what}", "name the file: -o model.plan")


def _failed(error: OSError, output: Path, weights: Sequence[Path]) -> RepoBuilderError:
    """What went wrong between the source's ``weights`` and the plan."""
    if error.errno in DISK_FULL:
        return CompileError(f"the disk of {output} is full; nothing was changed", "free some space and run it again")
    if str(error.filename) in map(str, weights):
        return ModelError(f"{error.filename} can't be read: {error.strerror}", "check its permissions")
    return UsageError(f"{output} can't be written: {error.strerror}", "check the folder and its permissions")


def _refuse_source(output: Path, *files: Path) -> None:
    """Raise UsageError where the plan would take the place of a file that it is made from, by whatever name."""
    for file in files:
        if output.exists() and output.samefile(file):
            raise UsageError(f"-o {output} is {file}, which the plan is made from", "name another file: -o model.plan")


def _compiled(output: Path, artifact: Artifact) -> Compiled:
    inputs, outputs = (tuple(map(str, tensors)) for tensors in (artifact.inputs, artifact.outputs))
    return Compiled(output, output.stat().st_size, inputs, outputs, artifact.details["engine"], artifact.hints)


@dataclass(frozen=True)
class LoadedPlan:
    """An engine ready to run, and what it is; ``errors`` grows by what TensorRT says while it runs."""

    engine: Any
    info: EngineInfo
    runtime: Any
    library: Library
    errors: list[str]


def load_plan(path: Path, plugins: tuple[Path, ...] = (), *, version_compatible: bool = False) -> LoadedPlan:
    """Deserialise a plan on the GPU here; ``plugins`` have its custom layers, if they were not published with it.

    A ``version_compatible`` plan brings code that runs here; of a published one the manifest says that it is one.

    Raises:
        ModelError: not a plan, or cut short.
        CompileError: there is no GPU, or TensorRT refuses the plan here, with its reason.
    """
    target, version = read_header(path)
    library = load_library(target)
    gpu = find_gpu()
    if gpu is None:
        raise CompileError(f"{path} can't be opened: there is no GPU here", f"it is a plan of {library.name} {version}")
    recorded = manifest_in(path.parent) or {}
    with tempfile.TemporaryDirectory() as folder:
        log = BuildLog(library, Path(folder) / "log")
        load_plugins(library, log.logger, plugins or published_plugins(path.parent, recorded))
        runtime = library.module.Runtime(log.logger)
        built = recorded.get("options", {}).get("build", {}).get("tensorrt", {})
        if version_compatible or built.get("version_compatible"):
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        log.close()
    if engine is None:
        said = log.errors[0] if log.errors else "it gave no reason"
        raise CompileError(
            f"{library.name} {library.version} on {gpu.name} refuses {path}: {' '.join(said.split())}",
            f"it was built by version {version}; a plan is for one version and one type of GPU: build it here",
        )
    return LoadedPlan(engine, inspect_engine(library, engine), runtime, library, log.errors)


def read_header(path: Path) -> tuple[Target, str]:
    """Which library a plan is of and the version it was built by, from the file's first bytes.

    Raises:
        ModelError: not a plan.
    """
    try:
        version, rtx = read_plan_version(path)
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror}", "check the path") from None
    if not version:
        raise ModelError(f"{path} is not a TensorRT plan, or is cut short", "build it with repo-builder compile")
    if rtx:
        _refuse_cut(path)
    return Target.TENSORRT_RTX if rtx else Target.TENSORRT, version_text(version)


def _refuse_cut(path: Path) -> None:
    """Raise ModelError where a plan of TensorRT-RTX is shorter than it says: eight bytes at 16, as seen in 1.7's."""
    size = path.stat().st_size
    with path.open("rb") as file:
        stated = int.from_bytes(file.read(24)[16:], "little")
    if size < stated:
        raise ModelError(
            f"{path} is cut short: it has {size} of its {stated} bytes",
            "copy it again, or build it with repo-builder compile",
        )


def inspect_plan(path: Path, plugins: tuple[Path, ...] = (), *, version_compatible: bool = False) -> dict[str, Any]:
    """What is in a plan, as JSON data: library, version, size, and, where it can be had, tensors, profiles and layers.

    A GPU that runs the plan tells all of it; elsewhere a manifest beside the plan tells what was noted at its build,
    and ``source`` says which it was: ``engine``, ``manifest`` or ``header``.

    Raises:
        ModelError: not a plan.
    """
    target, version = read_header(path)
    facts: dict[str, Any] = {
        "file": str(path),
        "bytes": path.stat().st_size,
        "target": target.value,
        "version": version,
    }
    try:
        info = load_plan(path, plugins, version_compatible=version_compatible).info
    except CompileError as error:
        return {**facts, **_from_manifest(path), "not_opened": error.message}
    return {
        **facts,
        "source": "engine",
        "gpu": asdict(gpu) if (gpu := find_gpu()) else None,
        "inputs": list(map(str, info.inputs)),
        "outputs": list(map(str, info.outputs)),
        "profiles": [describe_profile(profile) for profile in info.profiles],
        "layers_by_precision": dict(info.layers),
        "device_memory_bytes": info.device_memory,
    }


def require_gpu_to_measure() -> None:
    """Raise CompileError where :func:`benchmark_plan` has no GPU, which is better known before a build."""
    if find_gpu() is None:
        raise CompileError(
            "--benchmark runs the plan, and there is no GPU here", "leave it out, or run it on a machine with a GPU"
        )


def benchmark_plan(path: Path, *, version_compatible: bool = False) -> Performance:
    """Measure a plan on the GPU here, at the shapes its first profile is tuned for; see :func:`load_plan`.

    Raises:
        CompileError: it does not run here.
    """
    loaded = load_plan(path, version_compatible=version_compatible)
    shapes = loaded.info.profiles[0].opt if loaded.info.profiles else {}
    return measure(loaded.engine, loaded.info, shapes)


_FROM_MANIFEST = ("gpu", "profiles", "layers_by_precision", "device_memory_bytes")


def _from_manifest(path: Path) -> dict[str, Any]:
    """What was noted when the plan was published; nothing of a plan by itself or of another tool."""
    manifest = manifest_in(path.parent) or {}
    engine = manifest.get("engine")
    if not engine:
        return {"source": "header"}
    ports = {
        role: [f"{tensor['name']} {tensor['datatype']} {tensor['shape']}" for tensor in manifest[role]]
        for role in ("inputs", "outputs")
    }
    return {"source": "manifest", **ports, **{key: engine.get(key) for key in _FROM_MANIFEST}}
