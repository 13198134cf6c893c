"""From a parsed network to the bytes of an engine: builder configuration, timing cache, the build itself."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from repo_builder.errors import CompileError, UsageError
from repo_builder.folders import cache_folder
from repo_builder.trt.cuda import Gpu, find_gpu, why_unusable
from repo_builder.trt.interrupts import held
from repo_builder.trt.library import Library
from repo_builder.trt.log import BuildLog
from repo_builder.trt.messages import REFUSED_LAYER, tidy
from repo_builder.trt.options import MIB, Profile, TensorRTOptions

_NO_REASON = re.compile(r"^Myelin error from unknown graph|timing cache will not be used", re.IGNORECASE)
"""What TensorRT 8.6 logs as errors of builds that go on."""

_OWN_FAULT = "a fault of its own: it may build in another precision, or serve it by add --target onnxruntime"

TICK_S = 0.5
STOP_S = 60.0
"""How long the library may take to stop; it asks whether to go on only between its steps."""


def configure(
    library: Library, builder: Any, network: Any, options: TensorRTOptions, profiles: tuple[Profile, ...]
) -> Any:
    """The ``IBuilderConfig`` that says what ``options`` ask.

    Raises:
        UsageError: an option names something that this library does not have.
    """
    trt = library.module
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # lets the finished engine be inspected
    for flag, option in _flags(library, network, options):
        config.set_flag(_member(library, trt.BuilderFlag, flag, option))
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    for name, size in options.memory_pools.items():
        pool = _member(library, trt.MemoryPoolType, name, f"--mem-pool-size {name}")
        config.set_memory_pool_limit(pool, int(size * MIB))
    if options.builder_optimization_level is not None:
        config.builder_optimization_level = options.builder_optimization_level
    if options.hardware_compatibility:
        level = _member(
            library, trt.HardwareCompatibilityLevel, options.hardware_compatibility, "--hardware-compatibility"
        )
        config.hardware_compatibility_level = level
    if options.tactic_sources:
        config.set_tactic_sources(_tactic_sources(library, config, options.tactic_sources))
    if options.compute_capabilities:
        _set_compute_capabilities(library, config, options.compute_capabilities)
    for profile in profiles:
        _add_profile(builder, network, config, profile)
    return config


def _flags(library: Library, network: Any, options: TensorRTOptions) -> list[tuple[str, str]]:
    """The builder flags that ``options`` and the network ask for, each with the option that does."""
    chooses = not is_strongly_typed(library, options)
    asked = {
        ("FP16", "--fp16"): chooses and options.fp16,
        ("BF16", "--bf16"): chooses and options.bf16,
        ("INT8", "--int8"): chooses and has_layer(library, network, "QUANTIZE", "DEQUANTIZE"),
        ("OBEY_PRECISION_CONSTRAINTS", "--strict"): chooses and options.strict,
        ("SPARSE_WEIGHTS", "--sparsity"): options.sparsity,
        ("REFIT", "--refit"): options.refit,
        ("STRIP_PLAN", "--strip-weights"): options.strip_weights,
        ("VERSION_COMPATIBLE", "--version-compatible"): options.version_compatible,
    }
    return [flag for flag, wanted in asked.items() if wanted]


def has_layer(library: Library, network: Any, *types: str) -> bool:
    """Whether the network has a layer of one of ``types``.

    QUANTIZE and DEQUANTIZE say where to compute in INT8, which a builder that chooses has to be allowed.
    """
    kinds = {getattr(library.module.LayerType, name) for name in types}
    return any(network.get_layer(index).type in kinds for index in range(network.num_layers))


def is_strongly_typed(library: Library, options: TensorRTOptions) -> bool:
    """Whether the network takes its precisions from the graph: always, or where asked and possible."""
    can = hasattr(library.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    return not library.has_precision_flags or (options.strict and can)


def make_builder(library: Library, log: BuildLog) -> Any:
    """Return TensorRT's builder.

    Raises:
        CompileError: it can't use the GPU, as when no memory is left on it.
    """
    try:
        return library.module.Builder(log.logger)
    except TypeError:  # what pybind11 raises where the library gives no object
        said = "; ".join(map(tidy, log.errors)) or why_unusable() or "it gave no reason"
        hint = f"is memory left on it? nvidia-smi tells; {log.place}"
        raise CompileError(f"{library.name} can't start on the GPU: {said}", hint) from None


def network_flags(library: Library, options: TensorRTOptions) -> int:
    """The flags of ``create_network``; where typing is always strong no flag is needed, and some refuse it."""
    flags = library.module.NetworkDefinitionCreationFlag
    bits = 0
    if library.has_precision_flags:
        if hasattr(flags, "EXPLICIT_BATCH"):
            bits |= 1 << int(flags.EXPLICIT_BATCH)
        if is_strongly_typed(library, options):
            bits |= 1 << int(flags.STRONGLY_TYPED)
    return bits


def _member(library: Library, enum: Any, name: str, option: str) -> Any:
    member = getattr(enum, name.upper(), None)
    if member is None:
        names = ", ".join(sorted(key.lower() for key in enum.__members__))
        raise UsageError(f"{option}: {library.name} {library.version} has no such thing", f"it has: {names}")
    return member


def _tactic_sources(library: Library, config: Any, text: str) -> int:
    """Trtexec's syntax: ``-CUBLAS,+CUDNN`` changes the default, a plain name alone means nothing else."""
    sources = library.module.TacticSource
    parts = [part.strip() for part in text.split(",") if part.strip()]
    plain = any(part[0] not in "+-" for part in parts)
    bits = 0 if plain else config.get_tactic_sources()
    for part in parts:
        bit = 1 << int(_member(library, sources, part.lstrip("+-"), f"--tactic-sources {part}"))
        bits = bits & ~bit if part.startswith("-") else bits | bit
    return int(bits)


def _set_compute_capabilities(library: Library, config: Any, wanted: tuple[str, ...]) -> None:
    trt = library.module
    if not hasattr(trt, "ComputeCapability"):
        raise UsageError(
            f"--compute-capability: {library.name} {library.version} builds for the GPU it runs on only",
            "--target tensorrt-rtx builds for several",
        )
    config.num_compute_capabilities = len(wanted)
    for index, text in enumerate(wanted):
        member = getattr(trt.ComputeCapability, f"SM{text.replace('.', '')}", None)
        if member is None:
            known = (name[2:] for name in trt.ComputeCapability.__members__ if name.startswith("SM"))
            raise UsageError(
                f"--compute-capability {text}: {library.name} {library.version} does not build for it",
                "it builds for " + ", ".join(f"{name[:-1]}.{name[-1]}" for name in sorted(known, key=int)),
            )
        config.set_compute_capability(member, index)


def _add_profile(builder: Any, network: Any, config: Any, profile: Profile) -> None:
    """Add ``profile`` and the fixed shapes.

    An engine that has no profile and outputs whose size depends on the data has no contexts in TensorRT 8.6.
    """
    made = builder.create_optimization_profile()
    ranged = 0
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.name in profile.opt:
            corners = (profile.min[tensor.name], profile.opt[tensor.name], profile.max[tensor.name])
            (made.set_shape_input if tensor.is_shape_tensor else made.set_shape)(tensor.name, *corners)
        elif shape := tuple(tensor.shape):
            made.set_shape(tensor.name, shape, shape, shape)
        else:
            continue
        ranged += 1
    if ranged and config.add_optimization_profile(made) < 0:
        raise CompileError(f"TensorRT refuses the profile {profile}", "see --min-shapes, --opt-shapes, --max-shapes")


def _put(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all; a link stays one.  Raises OSError."""
    path = path.resolve()
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


class TimingCache:
    """Measured tactics of earlier builds: of one TensorRT version on one type of GPU, in a file.

    ``hit`` tells whether there were any at the start.  TensorRT-RTX measures nothing, so has no use for one.
    """

    def __init__(self, library: Library, config: Any, gpu: Gpu | None, path: Path | None) -> None:
        identity = re.sub(r"[^\w.-]+", "-", f"{library.target.value}-{library.version}-{gpu.name if gpu else 'no-gpu'}")
        self.path = path or cache_folder() / "timing" / f"{identity}.cache"
        self._config = config
        self._asked = path is not None
        data = b""
        with self._told_if_asked():
            if self.path.exists() and not self.path.is_file():  # a device would be replaced by the cache
                raise OSError(0, "it is no file")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path.parent).close()  # what can't be written is told before the build
            data = self.path.read_bytes() if self.path.exists() else b""
        cache = config.create_timing_cache(data)
        self.hit = bool(data) and bool(config.set_timing_cache(cache, ignore_mismatch=False))
        if data and not self.hit and self._asked:
            raise UsageError(
                f"--timing-cache {self.path} is of another TensorRT version or GPU, or no timing cache",
                "name another file, or leave the flag out: each version and GPU has its own",
            )
        if not self.hit:
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)

    def save(self) -> str:
        """Write it back, whole or not at all; return why that can't be, "" where it is done: no build fails of it."""
        try:
            _put(self.path, bytes(self._config.get_timing_cache().serialize()))
        except OSError as error:
            return f"the timing cache {self.path} can't be written: {error.strerror}; the next build takes as long"
        return ""

    @contextlib.contextmanager
    def _told_if_asked(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._asked:
                why = f"--timing-cache {self.path} can't be used: {error.strerror}"
                raise UsageError(why, "name a file that can be read and written, or leave the flag out") from None


class BuildTimes:
    """How long builds took, by what was built, so that the next one can say what to expect."""

    def __init__(self, what: str) -> None:
        self._key = hashlib.sha256(what.encode()).hexdigest()[:16]
        self._path = cache_folder() / "build-times.json"

    def last(self) -> float | None:
        seconds = self._read().get(self._key)
        return seconds if isinstance(seconds, float) else None

    def note(self, seconds: float) -> None:
        times = {**dict(list(self._read().items())[-200:]), self._key: round(seconds, 1)}
        with contextlib.suppress(OSError):
            _put(self._path, json.dumps(times).encode())

    def _read(self) -> dict[str, Any]:
        try:
            data = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}


def build(library: Library, builder: Any, network: Any, config: Any, log: BuildLog, tick: Callable[[str], None]) -> Any:
    """Build, in a thread so that Ctrl-C is heard: the memory with the plan.

    ``tick`` is called now and then while it works, with what is to be said of that: "", or that it stops.  After Ctrl-C
    the library is waited for, since Python can't end while it calls back; where it does not stop, as 8.6 can't, or
    another Ctrl-C does not wait, its thread stays.

    Raises:
        CompileError: TensorRT failed, with what it said.
    """
    result: list[Any] = []
    failure: list[BaseException] = []
    cancelled, done = threading.Event(), threading.Event()
    patience = 0.0
    if hasattr(config, "progress_monitor"):
        config.progress_monitor = _make_monitor(library, cancelled)
        patience = STOP_S

    def work() -> None:
        try:
            result.append(builder.build_serialized_network(network, config))
        except BaseException as error:  # handed to the caller's thread
            failure.append(error)
        finally:
            done.set()

    with held() as interrupts:
        threading.Thread(target=work).start()
        try:
            # Until 3.13 an interrupted Thread.join takes the thread for ended: an event tells when it is.
            while not done.wait(TICK_S) and not interrupts:
                tick("")
            cancelled.set()
            deadline = time.monotonic() + patience
            while not done.wait(min(TICK_S, patience)) and len(interrupts) < 2 and time.monotonic() < deadline:
                tick("stopping (^C again: now)")
        finally:
            cancelled.set()
    if failure or not result or result[0] is None:
        raise _build_error(library, log, failure[0] if failure else None)
    return result[0]


def _make_monitor(library: Library, cancelled: threading.Event) -> Any:
    trt = library.module

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Only carries the wish to stop; what it could tell covers little of a build's time."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, *_: Any) -> None: ...

        def phase_finish(self, *_: Any) -> None: ...

        def step_complete(self, *_: Any) -> bool:
            return not cancelled.is_set()

    return Monitor()


def _build_error(library: Library, log: BuildLog, failure: BaseException | None) -> CompileError:
    texts = list(filter(None, map(tidy, log.errors)))
    told = [text for text in texts if not _NO_REASON.search(text)][:3] or texts[:3]
    said = "; ".join(told) or tidy(str(failure or "it gave no reason"))
    hint = log.place
    lowered = said.lower()
    if "workspace" in lowered or "could not find any implementation" in lowered:
        hint = f"give it more room, --workspace MiB, or lower --max-shapes or --max-batch-size; {hint}"
    elif "out of memory" in lowered or "outofmemory" in lowered:
        hint = f"free GPU memory, or lower --max-batch-size, --max-shapes or --workspace; {hint}"
    elif "volume exceeds" in lowered:
        hint = f"lower --max-batch-size, --opt-shapes or --max-shapes; {hint}"
    elif broken := re.search(r"k(min|opt|max) values for profile \d+ violate shape constraints", lowered):
        hint = f"--{broken[1]}-shapes with sizes that the model takes, those of several inputs together; {hint}"
    elif "libnvinfer_lean" in lowered:
        hint = f"drop --version-compatible: this installation lacks the lean runtime that such a plan holds; {hint}"
    elif "cuda_success" in lowered and find_gpu() is None:
        hint = f"drop --refit and --strip-weights, which need a GPU here, or build on a machine with one; {hint}"
    elif "no runners" in lowered:
        hint = f"it has no kernel for that: export that part otherwise, or serve it by add --target onnxruntime; {hint}"
    elif "myelincheckexception" in lowered:
        hint = f"{_OWN_FAULT}; {hint}"
    elif re.search(r"\bI\w+Layer ", said):
        hint = f"{REFUSED_LAYER}; {hint}"
    elif re.search(r"\bassertion .* failed", lowered):
        hint = f"{_OWN_FAULT}; {hint}"
    return CompileError(f"{library.name} can't build the engine: {said}", hint)
