"""How fast an engine is, by trtexec's formulas: CUDA events around transfers and compute, one stream.

Differences from trtexec's defaults up to 10.x, which let the transfers of one inference overlap the compute of the
next: here each inference is finished before the next begins, so throughput is lower than trtexec's where transfers
are long, and latency is not touched.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from repo_builder.errors import CompileError
from repo_builder.model import TensorSpec
from repo_builder.trt.cuda import CudaError, aligned, call, runtime
from repo_builder.trt.engine import EngineInfo
from repo_builder.trt.options import Shapes

PERCENTILES = (90.0, 95.0, 99.0)


@dataclass(frozen=True)
class Spread:
    """Milliseconds over all inferences; ``percentiles`` in the order of :data:`PERCENTILES`."""

    min: float
    max: float
    mean: float
    median: float
    percentiles: tuple[float, ...]


@dataclass(frozen=True)
class Performance:
    """trtexec's performance summary.

    ``throughput`` is in inferences a second of wall time; ``latency`` is the sum of both transfers and compute, and
    ``enqueue`` the host's time to hand the work over.
    """

    inferences: int
    wall_seconds: float
    throughput: float
    latency: Spread
    enqueue: Spread
    h2d: Spread
    compute: Spread
    d2h: Spread


def percentile(values: Sequence[float], share: float) -> float:
    """As trtexec does: of ``n`` ascending values the one at ``max(n - 1 - int((1 - share/100) n), 0)``.

    Source: TensorRT, samples/common/sampleReporting.cpp, findPercentile.
    """
    import numpy as np

    ordered = sorted(values)
    beyond = (np.float32(1) - np.float32(share) / np.float32(100)) * np.float32(len(ordered))  # single precision too
    return ordered[max(len(ordered) - 1 - int(beyond), 0)]


def median(values: Sequence[float]) -> float:
    """The mean of the middle two of an even number, as trtexec's findMedian."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half] + ordered[half - 1]) / 2


def spread(values: Sequence[float]) -> Spread:
    return Spread(
        min(values),
        max(values),
        math.fsum(values) / len(values),
        median(values),
        tuple(percentile(values, share) for share in PERCENTILES),
    )


def measure(
    engine: Any,
    info: EngineInfo,
    shapes: Shapes,
    *,
    warmup_s: float = 0.2,
    duration_s: float = 3.0,
    iterations: int = 10,
) -> Performance:
    """Run ``engine`` on zeros of ``shapes`` for ``duration_s``, ``iterations`` times at least.

    Raises:
        CompileError: the engine does not take the shapes, makes outputs whose size depends on the data, or fails.
    """
    bench = _Bench(engine)
    try:
        bench.prepare(info, shapes)
        bench.repeat(warmup_s, 1)
        began = time.perf_counter()
        bench.repeat(duration_s, iterations)
        wall = time.perf_counter() - began
    except CudaError as error:
        raise CompileError(f"the benchmark stopped: CUDA says {error}", _SMALLER) from None
    finally:
        bench.free()
    h2d, compute, d2h, enqueue = (list(column) for column in zip(*bench.times, strict=True))
    latency = [sum(parts) for parts in zip(h2d, compute, d2h, strict=True)]
    count = len(latency)
    return Performance(
        count, wall, count / wall, spread(latency), spread(enqueue), spread(h2d), spread(compute), spread(d2h)
    )


_SMALLER = "see with nvidia-smi what else uses the GPU; smaller --opt-shapes at its build need less memory"


class _Bench:
    """An engine with buffers on both sides, to be run again and again; ``times`` has a row a run."""

    def __init__(self, engine: Any) -> None:
        self.times: list[tuple[float, float, float, float]] = []
        self._engine = engine
        self._device: list[int] = []
        self._host: list[int] = []
        self._values: list[Any] = []

    def prepare(self, info: EngineInfo, shapes: Shapes) -> None:
        """Make all ready for ``shapes``, which the first profile has to take."""
        self._stream = int(call("cudaStreamCreate"))
        self._events = [call("cudaEventCreate") for _ in range(4)]
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise CompileError("the engine can't make an execution context", _SMALLER)
        if self._context.active_optimization_profile != 0:
            self._context.set_optimization_profile_async(0, self._stream)
        for spec in info.inputs:
            shape = shapes.get(spec.name, spec.dims)
            if spec.name in info.shape_tensors:
                self._set_values(spec, shape)
            elif not self._context.set_input_shape(spec.name, shape):
                raise CompileError(
                    f"the engine does not take {list(shape)} for {spec.name!r}",
                    "repo-builder inspect shows its profiles; build it with --opt-shapes to measure others",
                )
        self._ins = [self._place(spec) for spec in info.inputs if spec.name not in info.shape_tensors]
        self._outs = [self._place(spec) for spec in info.outputs]

    def _set_values(self, spec: TensorSpec, values: tuple[int, ...]) -> None:
        """Give a shape tensor its values, which stay on the host."""
        import numpy as np

        array = aligned(np.array(values, spec.dtype.numpy_dtype()))
        self._values.append(array)
        self._context.set_tensor_address(spec.name, array.ctypes.data)

    def _place(self, spec: TensorSpec) -> tuple[int, int, int]:
        """Host address, device address and bytes of a tensor."""
        shape = tuple(self._context.get_tensor_shape(spec.name))
        if -1 in shape:
            raise CompileError(
                f"the size of {spec.name!r} depends on the data, so it can't be benchmarked",
                "publish it with repo-builder add and measure it served: python -m client.bench",
            )
        nbytes = max(math.prod(shape) * spec.dtype.numpy_dtype().itemsize, 1)
        self._host.append(int(call("cudaHostAlloc", nbytes, 0)))
        self._device.append(int(call("cudaMalloc", nbytes)))
        call("cudaMemset", self._device[-1], 0, nbytes)
        call("cudaMemcpy", self._host[-1], self._device[-1], nbytes, runtime().cudaMemcpyKind.cudaMemcpyDeviceToHost)
        self._context.set_tensor_address(spec.name, self._device[-1])
        return self._host[-1], self._device[-1], nbytes

    def repeat(self, seconds: float, least: int) -> None:
        """Run for ``seconds``, ``least`` times at least; only the last call's times are kept."""
        self.times = []
        end = time.perf_counter() + seconds
        while len(self.times) < least or time.perf_counter() < end:
            self.times.append(self._once())

    def _once(self) -> tuple[float, float, float, float]:
        kinds = runtime().cudaMemcpyKind
        start, sent, done, back = self._events
        call("cudaEventRecord", start, self._stream)
        for host, device, nbytes in self._ins:
            call("cudaMemcpyAsync", device, host, nbytes, kinds.cudaMemcpyHostToDevice, self._stream)
        call("cudaEventRecord", sent, self._stream)
        began = time.perf_counter()
        if not self._context.execute_async_v3(self._stream):
            raise CompileError("the engine failed to run", _SMALLER)
        enqueue = (time.perf_counter() - began) * 1e3
        call("cudaEventRecord", done, self._stream)
        for host, device, nbytes in self._outs:
            call("cudaMemcpyAsync", host, device, nbytes, kinds.cudaMemcpyDeviceToHost, self._stream)
        call("cudaEventRecord", back, self._stream)
        call("cudaStreamSynchronize", self._stream)
        pairs = ((start, sent), (sent, done), (done, back))
        h2d, compute, d2h = (float(call("cudaEventElapsedTime", *pair)) for pair in pairs)
        return h2d, compute, d2h, enqueue

    def free(self) -> None:
        for address in self._device:
            call("cudaFree", address)
        for address in self._host:
            call("cudaFreeHost", address)


def format_summary(performance: Performance) -> str:
    """The lines of trtexec's ``=== Performance summary ===``."""
    lines = [f"Throughput: {performance.throughput:g} qps"]
    rows = (
        ("Latency", performance.latency),
        ("Enqueue Time", performance.enqueue),
        ("H2D Latency", performance.h2d),
        ("GPU Compute Time", performance.compute),
        ("D2H Latency", performance.d2h),
    )
    for name, values in rows:
        shares = ", ".join(
            f"percentile({share:g}%) = {value:g} ms"
            for share, value in zip(PERCENTILES, values.percentiles, strict=True)
        )
        lines.append(
            f"{name}: min = {values.min:g} ms, max = {values.max:g} ms, mean = {values.mean:g} ms, "
            f"median = {values.median:g} ms, {shares}"
        )
    total = performance.compute.mean * performance.inferences / 1e3
    lines += [f"Total Host Walltime: {performance.wall_seconds:g} s", f"Total GPU Compute Time: {total:g} s"]
    return "\n".join(lines)
