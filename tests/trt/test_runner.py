"""Reading, running and measuring an engine, on a fake GPU; on a real one see tests/gpu."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repo_builder.compilers.base import Target
from repo_builder.errors import CompileError
from repo_builder.model import DataType, TensorSpec
from repo_builder.plans import benchmark_plan, inspect_plan
from repo_builder.runtime import RunError
from repo_builder.trt import cuda
from repo_builder.trt.benchmark import format_summary, measure
from repo_builder.trt.engine import EngineInfo, inspect_engine
from repo_builder.trt.library import Library
from repo_builder.trt.options import Profile
from repo_builder.trt.runner import EngineRunner
from tests.fake_compiler import H100
from tests.servers.fake_gpu import CODES, CroppingEngine, FakeCuda, FakeEngine, fake_tensorrt


class Bench:
    """A fake GPU in the place of CUDA, and an engine with two profiles: widths 1 to 4 and 6 to 9."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: type[FakeEngine] = FakeEngine) -> None:
        self.cuda = FakeCuda()
        monkeypatch.setattr(cuda, "runtime", lambda: self.cuda)
        monkeypatch.setattr("repo_builder.trt.benchmark.runtime", lambda: self.cuda)
        widths = [(1, 4), (6, 9)]
        self.library = Library(fake_tensorrt(self.cuda, widths, 4), Target.TENSORRT)
        self.errors: list[str] = []
        self.engine = kind(self.cuda, self, widths, 4)
        self.info: EngineInfo = inspect_engine(self.library, self.engine)

    def log(self, _severity: Any, message: str) -> None:
        self.errors.append(message)

    def runner(self) -> EngineRunner:
        return EngineRunner(self.library, self.engine, self.info, self.errors)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def test_an_engine_tells_what_it_is(bench: Bench) -> None:
    assert bench.info.inputs == (TensorSpec("x", DataType.FP32, (None, None)),)
    assert bench.info.outputs == (TensorSpec("y", DataType.FP32, (None, None)),)
    assert bench.info.profiles[1] == Profile({"x": (1, 6)}, {"x": (4, 9)}, {"x": (4, 9)})
    assert bench.info.layers == {"FP32": 1}


def test_runs_go_to_the_profile_that_takes_them(bench: Bench) -> None:
    runner = bench.runner()
    for width in (3, 9, 2):
        x = np.random.default_rng(width).standard_normal((2, width)).astype(np.float32)
        np.testing.assert_array_equal(runner.run({"x": x})["y"], 2 * x)


def test_the_values_of_shape_tensors_have_profiles_too(bench: Bench) -> None:
    spec = TensorSpec("s", DataType.INT32, (2,))
    info = EngineInfo((spec,), (), (Profile({"s": (1, 2)}, {"s": (1, 2)}, {"s": (4, 8)}),), {}, None, frozenset({"s"}))
    with pytest.raises(RunError, match=r"no profile of the engine takes s \[5, 2\]"):
        EngineRunner(bench.library, bench.engine, info, []).run({"s": np.array([5, 2])})


def test_integers_are_narrowed_only_if_they_fit(bench: Bench) -> None:
    spec = TensorSpec("x", DataType.INT32, (None, None))
    info = EngineInfo((spec,), bench.info.outputs, bench.info.profiles, {}, None)
    runner = EngineRunner(bench.library, bench.engine, info, [])
    with pytest.raises(RunError, match="values that do not fit INT32"):
        runner.run({"x": np.array([[1, 2**40]])})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((1, 5), np.float32), r"no profile of the engine takes x \[1, 5\]"),
        (np.zeros((), np.float32), r"no profile of the engine takes x \[\]"),
        (np.full((1, 3), np.nan, np.float32), "failed to run: NaN is not for this engine"),
    ],
)
def test_what_goes_wrong_is_told(bench: Bench, x: Any, message: str) -> None:
    with pytest.raises(RunError, match=message):
        bench.runner().run({"x": x})


def test_a_measurement_gives_its_memory_back(bench: Bench) -> None:
    result = measure(bench.engine, bench.info, {"x": (4, 4)}, warmup_s=0.01, duration_s=0.05)
    assert result.inferences >= 10
    assert result.latency.min <= result.latency.median <= result.latency.percentiles[-1] <= result.latency.max
    assert not bench.cuda.blocks
    lines = format_summary(result).splitlines()
    assert lines[0].startswith("Throughput: ")
    assert [line.partition(":")[0] for line in lines[1:]] == [
        "Latency",
        "Enqueue Time",
        "H2D Latency",
        "GPU Compute Time",
        "D2H Latency",
        "Total Host Walltime",
        "Total GPU Compute Time",
    ]


def test_an_engine_whose_input_is_a_size_is_measured_at_that_size(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, CroppingEngine)
    result = measure(bench.engine, bench.info, bench.info.profiles[0].opt, warmup_s=0.01, duration_s=0.01)
    assert result.inferences >= 10
    assert not bench.cuda.blocks


def test_a_measurement_without_memory_left(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeCuda, "do_cudaMalloc", lambda *_: CODES.cudaErrorMemoryAllocation)
    with pytest.raises(CompileError, match="the benchmark stopped: CUDA says cudaErrorMemoryAllocation"):
        measure(bench.engine, bench.info, {"x": (4, 4)})


def test_a_plan_that_brings_its_runtime_is_opened_where_that_may_run(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, _logger: Any) -> None: ...

        def deserialize_cuda_engine(self, _plan: bytes) -> FakeEngine | None:
            return bench.engine if self.engine_host_code_allowed else None

    bench.library.module.Runtime = Runtime
    monkeypatch.setattr("repo_builder.plans.load_library", lambda _target: bench.library)
    monkeypatch.setattr("repo_builder.plans.find_gpu", lambda: H100)
    measured: list[Any] = []
    monkeypatch.setattr("repo_builder.plans.measure", lambda *arguments: measured.append(arguments))
    plan = tmp_path / "net.plan"
    plan.write_bytes(b"ftrt" + bytes(20) + bytes((8, 6, 0, 0)))
    benchmark_plan(plan, version_compatible=True)
    assert measured == [(bench.engine, bench.info, {"x": (4, 4)})]
    assert [inspect_plan(plan, version_compatible=allowed)["source"] for allowed in (True, False)] == [
        "engine",
        "header",
    ]
    with pytest.raises(CompileError, match="refuses"):
        benchmark_plan(plan)
