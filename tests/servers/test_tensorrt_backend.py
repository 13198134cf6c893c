"""The backend ``tensorrt`` on a fake GPU: batches, memory, profiles and errors."""

from __future__ import annotations

import ctypes
import importlib
import json
import mmap
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from repo_builder.servers.load_errors import explain
from tests.servers.fake_gpu import (
    CODES,
    CroppingEngine,
    EchoEngine,
    FakeCuda,
    FakeEngine,
    TensorFormat,
    TensorLocation,
    fake_tensorrt,
)
from tests.support import compile_library, was_loaded

GRAPHS = {"cuda": {"graphs": True}}


class Tensor:
    """Stands for ``pb_utils.Tensor``."""

    def __init__(self, name: str, array: npt.NDArray[Any], *, on_gpu: bool = False) -> None:
        self._name, self._array, self._on_gpu = name, array, on_gpu

    @staticmethod
    def from_dlpack(name: str, capsule: Any) -> Tensor:
        from repo_builder.servers.backends.dlpack import DLTensor, array_at

        tensor = DLTensor.from_address(ctypes.pythonapi.PyCapsule_GetPointer(capsule, b"dltensor"))
        assert (tensor.dtype_code, tensor.dtype_bits) == (4, 16)  # bfloat16
        shape = (ctypes.c_int64 * tensor.ndim).from_address(tensor.shape)
        return Tensor(name, array_at(tensor.data or 0, np.uint16, tuple(shape)))

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> npt.NDArray[Any]:
        return self._array

    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    def to_dlpack(self) -> Any:
        return self._array.__dlpack__()

    def is_cpu(self) -> bool:
        return not self._on_gpu


class Request:
    def __init__(self, outputs: tuple[str, ...] = ("y",), on_gpu: tuple[str, ...] = (), **arrays: Any) -> None:
        self._tensors = [Tensor(name, array, on_gpu=name in on_gpu) for name, array in arrays.items()]
        self._outputs = outputs

    def inputs(self) -> list[Tensor]:
        return self._tensors

    def requested_output_names(self) -> list[str]:
        return list(self._outputs)


class TritonError(Exception):
    INVALID_ARG, INTERNAL = "INVALID_ARG", "INTERNAL"

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> str:
        return self._code


class Response:
    """Stands for ``pb_utils.InferenceResponse``."""

    def __init__(self, tensors: list[Tensor], error: TritonError | None = None) -> None:
        self.tensors, self._error = tensors, error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


WARNINGS: list[str] = []
UTILITIES = SimpleNamespace(
    TritonModelException=type("TritonModelException", (Exception,), {}),
    TritonError=TritonError,
    InferenceResponse=Response,
    Tensor=Tensor,
    Logger=SimpleNamespace(log_error=lambda _: None, log_warn=WARNINGS.append),
)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The backend's module, with what Triton's stub gives it."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", UTILITIES)
    return importlib.import_module("repo_builder.servers.backends.tensorrt")


class Instance:
    """A loaded model on a fake GPU."""

    def __init__(
        self,
        backend: ModuleType,
        monkeypatch: pytest.MonkeyPatch,
        folder: Path,
        *,
        widths: list[tuple[int, int]],
        max_batch_size: int = 4,
        engine_batch: int = 4,
        engine: type[FakeEngine] = FakeEngine,
        plan: bytes = b"good",
        plan_file: str = "model.plan",
        manifest: dict[str, Any] | None = None,
        **config: Any,
    ) -> None:
        self.cuda = FakeCuda()
        monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(self.cuda, widths, engine_batch, engine))
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", self.cuda)
        (folder / "1").mkdir(exist_ok=True)
        (folder / "1" / plan_file).write_bytes(plan)
        if manifest:
            (folder / "1" / "manifest.json").write_text(json.dumps(manifest))
        ports = {"data_type": "TYPE_FP32", "dims": ["-1"] if max_batch_size else ["-1", "-1"]}
        whole = {
            "max_batch_size": max_batch_size,
            "input": [{"name": "x", **ports}],
            "output": [{"name": "y", **ports}],
            **config,
        }
        self.model = backend.TritonPythonModel()
        self.model.initialize(
            {
                "model_config": json.dumps(whole),
                "model_name": "twice",
                "model_repository": str(folder),
                "model_version": "1",
                "model_instance_kind": "GPU",
                "model_instance_device_id": "0",
            }
        )

    def run(self, *arrays: npt.NDArray[Any]) -> list[Any]:
        responses: list[Any] = self.model.execute([Request(x=array) for array in arrays])
        return responses


def altered(engine: type[FakeEngine] = FakeEngine, **attributes: Any) -> type[FakeEngine]:
    return type("Altered", (engine,), attributes)


def rows(count: int, width: int, start: float = 0) -> npt.NDArray[np.float32]:
    return np.arange(start, start + count * width, dtype=np.float32).reshape(count, width)


def test_requests_of_one_shape_run_as_one_batch(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    instance = Instance(backend, monkeypatch, tmp_path, widths=[(1, 8)])
    arrays = [rows(1, 3), rows(2, 3, 10), rows(1, 5, 50)]
    for array, response in zip(arrays, instance.run(*arrays), strict=True):
        assert not response.has_error()
        np.testing.assert_array_equal(response.tensors[0].as_numpy(), 2 * array)
    sent = instance.cuda.calls["cudaMemcpyAsync"]
    assert sent == 3 + 2  # every request in, every batch out


@pytest.mark.parametrize(
    ("kind", "datatype", "dtype"),
    [
        ("FLOAT", "TYPE_FP32", "float32"),
        ("HALF", "TYPE_FP16", "float16"),
        ("BF16", "TYPE_BF16", "uint16"),
        ("INT8", "TYPE_INT8", "int8"),
        ("UINT8", "TYPE_UINT8", "uint8"),
        ("INT32", "TYPE_INT32", "int32"),
        ("INT64", "TYPE_INT64", "int64"),
        ("BOOL", "TYPE_BOOL", "bool"),
    ],
)
def test_every_type_of_any_size_in_the_outputs_that_are_asked_for(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, datatype: str, dtype: str
) -> None:
    x, y, z = ({"name": name, "data_type": datatype, "dims": ["-1"]} for name in "xyz")
    instance = Instance(
        backend, monkeypatch, tmp_path, widths=[(0, 8)], engine=altered(EchoEngine, kind=kind, dtype=dtype),
        input=[x], output=[y, z],
    )  # fmt: skip
    arrays = [(rows(count, width) % 5).astype(dtype) for count, width in ((1, 3), (2, 3), (3, 0))]
    asked = [("z",), ("y", "z"), ("y",)]
    requests = [Request(outputs, x=array) for outputs, array in zip(asked, arrays, strict=True)]
    for outputs, array, response in zip(asked, arrays, instance.model.execute(requests), strict=True):
        assert tuple(tensor.name() for tensor in response.tensors) == outputs
        for tensor in response.tensors:
            assert tensor.as_numpy().dtype == dtype
            np.testing.assert_array_equal(tensor.as_numpy(), array)


def test_what_lies_on_the_gpu_stays_there(backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    instance = Instance(backend, monkeypatch, tmp_path, widths=[(1, 8)])
    kinds = []
    copy = instance.cuda.do_cudaMemcpyAsync

    def copy_and_note(target: int, source: int, size: int, kind: int, stream: int) -> None:
        kinds.append(kind)
        copy(target, source, size, kind, stream)

    monkeypatch.setattr(instance.cuda, "do_cudaMemcpyAsync", copy_and_note)
    responses = instance.model.execute([Request(x=rows(1, 3), on_gpu=("x",)), Request(x=rows(2, 3, 5))])
    for array, response in zip((rows(1, 3), rows(2, 3, 5)), responses, strict=True):
        np.testing.assert_array_equal(response.tensors[0].as_numpy(), 2 * array)
    of = instance.cuda.cudaMemcpyKind
    assert kinds == [of.cudaMemcpyDeviceToDevice, of.cudaMemcpyHostToDevice, of.cudaMemcpyDeviceToHost]


@pytest.mark.parametrize("optimization", [{}, GRAPHS])
def test_what_a_request_alone_has_on_the_gpu_is_used_in_place(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, optimization: dict[str, Any]
) -> None:
    instance = Instance(backend, monkeypatch, tmp_path, widths=[(1, 300)], optimization=optimization)
    memory = np.zeros(1024, np.float32)
    start = -memory.ctypes.data % 256 // 4
    places = [memory[start + offset : start + offset + 100].reshape(1, 100) for offset in (0, 256, 131)]  # last: odd
    copied = []
    for place, value in [(0, 1), (1, 2), (0, 3), (2, 4), (1, 5)]:
        places[place][:] = value
        before = instance.cuda.calls.get("cudaMemcpyAsync", 0)
        [response] = instance.model.execute([Request(x=places[place], on_gpu=("x",))])
        np.testing.assert_array_equal(response.tensors[0].as_numpy(), 2.0 * places[place])
        copied.append(instance.cuda.calls["cudaMemcpyAsync"] - before - 1)  # the answer
    assert copied == [0, 0, 0, 1, 0]
    np.testing.assert_array_equal(instance.run(rows(1, 100))[0].tensors[0].as_numpy(), 2 * rows(1, 100))


def test_answers_outlive_other_batches_of_the_same_call(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    instance = Instance(backend, monkeypatch, tmp_path, widths=[(1, 400_000)])
    arrays = [rows(1, 300_000), rows(1, 400_000), rows(1, 200_000)]
    for _ in range(3):
        for array, response in zip(arrays, instance.run(*arrays), strict=True):
            np.testing.assert_array_equal(response.tensors[0].as_numpy(), 2 * array)


def test_memory_is_allocated_once(backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    instance = Instance(backend, monkeypatch, tmp_path, widths=[(1, 8)])
    instance.run(rows(4, 8))
    before = instance.cuda.calls["cudaMalloc"], instance.cuda.calls["cudaHostAlloc"]
    for batch in (1, 4, 2):
        instance.run(rows(batch, 8))
    assert (instance.cuda.calls["cudaMalloc"], instance.cuda.calls["cudaHostAlloc"]) == before
    instance.model.finalize()
    assert not instance.cuda.blocks


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[npt.NDArray[np.float32]]:
    """Rows in shared memory, as Triton's stub maps it, beside a file whose name is no text."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file, (tmp_path / os.fsdecode(b"\xff")).open("w+b") as other:
        other.truncate(1)
        mapped = mmap.mmap(other.fileno(), 1)
        file.truncate(1 << 16)
        yield np.frombuffer(mmap.mmap(file.fileno(), 1 << 16), np.float32).reshape(-1, 8)
        mapped.close()


def test_what_lies_in_shared_memory_is_read_there(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shared: npt.NDArray[np.float32]
) -> None:
    instance = Instance(backend, monkeypatch, tmp_path, widths=[(1, 8)])
    shared[:] = rows(*shared.shape)
    sources = []
    copy = instance.cuda.do_cudaMemcpyAsync

    def copy_and_note(target: int, source: int, *rest: Any) -> None:
        sources.append(source)
        copy(target, source, *rest)

    monkeypatch.setattr(instance.cuda, "do_cudaMemcpyAsync", copy_and_note)
    for start in range(0, 40, 4):
        [response] = instance.run(shared[start : start + 4])
        np.testing.assert_array_equal(response.tensors[0].as_numpy(), 2 * shared[start : start + 4])
        assert shared[start:].ctypes.data in sources
    instance.run(rows(1, 3))
    assert instance.cuda.calls["cudaHostRegister"] == 1
    instance.model.finalize()
    assert instance.cuda.calls["cudaHostUnregister"] == 1


def test_shared_memory_that_cuda_does_not_register_is_copied(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shared: npt.NDArray[np.float32]
) -> None:
    instance = Instance(backend, monkeypatch, tmp_path, widths=[(1, 8)])
    refuse = CODES.cudaErrorMemoryAllocation
    monkeypatch.setattr(instance.cuda, "do_cudaHostRegister", lambda *_: refuse, raising=False)
    shared[:] = rows(*shared.shape)
    for start in range(0, 40, 4):
        [response] = instance.run(shared[start : start + 4])
        np.testing.assert_array_equal(response.tensors[0].as_numpy(), 2 * shared[start : start + 4])
    assert instance.cuda.calls["cudaHostRegister"] == 1
    instance.model.finalize()
    assert "cudaHostUnregister" not in instance.cuda.calls


def test_a_bad_request_does_not_fail_its_neighbours(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    instance = Instance(backend, monkeypatch, tmp_path, widths=[(1, 8)])
    bad = rows(1, 3)
    bad[0, 0] = np.nan
    good, failed, other = instance.run(rows(1, 3), bad, rows(1, 3, 9))
    assert "NaN is not for this engine" in failed.error().message()
    assert failed.error().code() == "INTERNAL"
    np.testing.assert_array_equal(good.tensors[0].as_numpy(), 2 * rows(1, 3))
    np.testing.assert_array_equal(other.tensors[0].as_numpy(), 2 * rows(1, 3, 9))


@pytest.mark.parametrize("count", [1, 2])
def test_what_fails_all_requests_is_raised(
    count: int, backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """For Triton to count them as failed."""
    instance = Instance(backend, monkeypatch, tmp_path, widths=[(1, 8)])
    with monkeypatch.context() as patch:
        patch.setattr(instance.cuda, "do_cudaStreamSynchronize", lambda _: CODES.cudaErrorInvalidValue, raising=False)
        with pytest.raises(Exception, match="cudaStreamSynchronize failed: cudaErrorInvalidValue") as caught:
            instance.run(*[rows(1, 3)] * count)
    assert type(caught.value).__name__ == "TritonModelException"
    assert not instance.run(rows(1, 3))[0].has_error()


def test_the_profile_that_takes_the_shape_is_used(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    instance = Instance(backend, monkeypatch, tmp_path, widths=[(1, 4), (6, 9)])
    wide, narrow, neither = instance.run(rows(1, 9), rows(1, 2), rows(1, 5))
    assert not wide.has_error()
    assert not narrow.has_error()
    assert neither.error().code() == "INVALID_ARG"
    assert "x [1, 5]" in neither.error().message()
    assert "x [1, 6] to [4, 9]" in neither.error().message()


def test_the_first_profile_is_nvidia_s_default(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    instance = Instance(backend, monkeypatch, tmp_path, widths=[(1, 4), (6, 9)], platform="tensorrt_plan")
    wide, narrow = instance.run(rows(1, 9), rows(1, 2))
    assert wide.error().message().endswith("it takes x [1, 1] to [4, 4]")
    assert not narrow.has_error()


def test_profiles_named_in_the_config(backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    groups = [{"kind": "KIND_GPU", "profile": ["1"]}]
    instance = Instance(backend, monkeypatch, tmp_path, widths=[(1, 4), (6, 9)], instance_group=groups)
    narrow, wide = instance.run(rows(1, 2), rows(1, 9))
    assert "no profile" in narrow.error().message()
    np.testing.assert_array_equal(wide.tensors[0].as_numpy(), 2 * rows(1, 9))


def test_of_several_profiles_the_one_tuned_nearest_is_used(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    instance = Instance(backend, monkeypatch, tmp_path, widths=[(1, 90), (1, 9)])
    for array in (rows(1, 90), rows(1, 8), rows(1, 70), rows(1, 9)):
        [response] = instance.run(array)
        np.testing.assert_array_equal(response.tensors[0].as_numpy(), 2 * array)
    assert instance.model.engine.ran == [0, 1, 0, 1]


def test_memory_that_ran_out_leaves_nothing_behind(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Above all no profile with the address of what was given back."""
    instance = Instance(backend, monkeypatch, tmp_path, widths=[(1, 4), (60, 90)])
    np.testing.assert_array_equal(instance.run(rows(1, 3))[0].tensors[0].as_numpy(), 2 * rows(1, 3))
    with monkeypatch.context() as patch:
        patch.setattr(instance.cuda, "do_cudaMalloc", lambda _: CODES.cudaErrorMemoryAllocation)
        with pytest.raises(Exception, match="cudaMalloc failed: cudaErrorMemoryAllocation"):
            instance.run(rows(4, 90))
    assert instance.cuda.calls["cudaGetLastError"] == 1  # else TensorRT would find it
    for array in (rows(1, 3, 5), rows(4, 90, 7)):
        [response] = instance.run(array)
        np.testing.assert_array_equal(response.tensors[0].as_numpy(), 2 * array)


def test_cuda_graphs_are_captured_once_for_the_batch_sizes_of_the_config(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    optimization = {"cuda": {"graphs": True, "graph_spec": [{"batch_size": 2}]}}
    instance = Instance(backend, monkeypatch, tmp_path, widths=[(1, 8)], optimization=optimization)
    for start in range(3):
        [response] = instance.run(rows(2, 3, start))
        np.testing.assert_array_equal(response.tensors[0].as_numpy(), 2 * rows(2, 3, start))
    instance.run(rows(1, 3))
    assert instance.cuda.calls["cudaStreamBeginCapture"] == 1
    assert instance.cuda.calls["cudaGraphLaunch"] == 3


@pytest.mark.parametrize(
    ("batching", "launched"),
    [({}, [1, 2, 3, 4, 7]), ({"dynamic_batching": {"preferred_batch_size": [2]}}, [1, 2, 7])],
)
def test_cuda_graphs_of_nvidia_s_default_batch_sizes(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, batching: dict[str, Any], launched: list[int]
) -> None:
    instance = Instance(
        backend,
        monkeypatch,
        tmp_path,
        widths=[(1, 8)],
        max_batch_size=7,
        engine_batch=7,
        optimization=GRAPHS,
        **batching,
    )
    found = []
    for batch in (1, 2, 3, 4, 5, 7):
        before = instance.cuda.calls.get("cudaGraphLaunch", 0)
        instance.run(rows(batch, 3))
        found += [batch] * (instance.cuda.calls.get("cudaGraphLaunch", 0) - before)
    assert found == launched


def test_cuda_graphs_without_batching_are_of_every_shape_up_to_a_number(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(backend, "MOST_GRAPHS", 3)
    instance = Instance(backend, monkeypatch, tmp_path, widths=[(1, 8)], max_batch_size=0, optimization=GRAPHS)
    for _ in range(2):
        for width in (8, 2, 3, 4, 5):
            [response] = instance.run(rows(2, width))
            np.testing.assert_array_equal(response.tensors[0].as_numpy(), 2 * rows(2, width))
    assert instance.cuda.calls["cudaGraphInstantiate"] == 3
    assert instance.cuda.calls["cudaGraphLaunch"] == 6
    instance.model.finalize()
    assert instance.cuda.calls["cudaGraphExecDestroy"] == 3


def test_every_profile_has_cuda_graphs_of_its_own_until_a_buffer_moves(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    instance = Instance(backend, monkeypatch, tmp_path, widths=[(1, 4), (60, 90)], optimization=GRAPHS)
    for array in (rows(1, 3), rows(1, 60), rows(1, 3, 5), rows(4, 90), rows(1, 3, 7), rows(1, 60, 9), rows(4, 90, 1)):
        [response] = instance.run(array)
        np.testing.assert_array_equal(response.tensors[0].as_numpy(), 2 * array)
    assert instance.cuda.calls["cudaGraphLaunch"] == 7
    # The buffer of y grew at the second and at the fourth request: whoever was captured before is captured again.
    assert instance.cuda.calls["cudaGraphInstantiate"] == 6
    assert instance.cuda.calls["cudaGraphExecDestroy"] == 3


def test_an_engine_that_can_t_be_captured_is_launched_without_cuda_graphs(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    WARNINGS.clear()
    instance = Instance(
        backend, monkeypatch, tmp_path, widths=[(1, 8)], optimization=GRAPHS, engine=altered(can_be_captured=False)
    )
    for start in range(3):
        [response] = instance.run(rows(1, 3, start))
        np.testing.assert_array_equal(response.tensors[0].as_numpy(), 2 * rows(1, 3, start))
    assert instance.cuda.calls["cudaStreamBeginCapture"] == 1
    assert "cudaGraphLaunch" not in instance.cuda.calls
    [warning] = [text for text in WARNINGS if "no CUDA graph" in text]
    assert warning.endswith("cudaStreamEndCapture failed: cudaErrorStreamCaptureInvalidated")


def test_a_profile_finds_an_output_that_another_profile_made_move(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    instance = Instance(backend, monkeypatch, tmp_path, widths=[(1, 4), (60, 90)])
    for array in (rows(1, 3), rows(4, 90), rows(1, 3, 5), rows(4, 90, 7)):
        [response] = instance.run(array)
        np.testing.assert_array_equal(response.tensors[0].as_numpy(), 2 * array)


def cropping(backend: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, **settings: Any) -> Instance:
    """Two profiles of sizes: the narrower ones of 2 to 4."""
    inputs = [
        {"name": "x", "data_type": "TYPE_FP32", "dims": ["-1", "-1"]},
        {"name": "width", "data_type": "TYPE_INT32", "dims": ["1"]},
    ]
    return Instance(
        backend, monkeypatch, folder, engine=CroppingEngine, input=inputs,
        **{"widths": [(1, 8)], "max_batch_size": 0, **settings},
    )  # fmt: skip


def test_a_size_that_is_an_input_s_value_is_each_request_s_own(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without CUDA graphs, which would keep the first one."""
    instance = cropping(backend, monkeypatch, tmp_path, optimization=GRAPHS)
    widths = [2, 4, 3, 4]
    requests = [Request(x=rows(1, 5, start), width=np.array([width], np.int32)) for start, width in enumerate(widths)]
    for _ in range(2):
        for start, (width, response) in enumerate(zip(widths, instance.model.execute(requests), strict=True)):
            np.testing.assert_array_equal(response.tensors[0].as_numpy(), rows(1, 5, start)[:, :width])
    assert "cudaGraphLaunch" not in instance.cuda.calls


@pytest.mark.parametrize(
    ("width", "on_gpu", "message"),
    [
        ([9], (), r"no profile of the engine takes x \[1, 5\], width \[9\].*width \[1\] to \[8\]"),
        ([2, 2], (), r"width \[2, 2\]"),
        ([2], ("width",), "'width' holds sizes, which are needed in the memory of the CPU"),
    ],
)
def test_sizes_that_the_engine_can_t_have(
    backend: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    width: list[int],
    on_gpu: tuple[str, ...],
    message: str,
) -> None:
    instance = cropping(backend, monkeypatch, tmp_path)
    request = Request(x=rows(1, 5), width=np.array(width, np.int32), on_gpu=on_gpu)
    [response] = instance.model.execute([request])
    assert response.error().code() == "INVALID_ARG"
    assert re.search(message, response.error().message())


def test_without_batching_the_first_axis_is_like_any_other(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    instance = Instance(backend, monkeypatch, tmp_path, widths=[(1, 8)], max_batch_size=0)
    for array, response in zip([rows(2, 3), rows(3, 3)], instance.run(rows(2, 3), rows(3, 3)), strict=True):
        np.testing.assert_array_equal(response.tensors[0].as_numpy(), 2 * array)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine_batch": 2}, "max_batch_size: 4, the plan takes 2 at most"),
        ({"input": [{"name": "z", "data_type": "TYPE_FP32", "dims": ["-1"]}]}, "an input 'z', the model has only"),
        (
            {"input": [{"name": "x", "data_type": "TYPE_FP16", "dims": ["-1"]}]},
            "config.pbtxt has TYPE_FP16 for input 'x', the plan has TYPE_FP32",
        ),
        ({"input": [{"name": "x", "data_type": "TYPE_FP32", "dims": ["3", "4"]}]}, "has shape [-1, 3, 4] for input"),
        ({"input": []}, "config.pbtxt has 0 inputs, the model has 1"),
        ({"instance_group": [{"profile": ["5"]}]}, "profile '5'; the engine has 1"),
        ({"default_model_filename": "other.plan"}, "other.plan is missing"),
        ({"engine": altered(tensor_format=TensorFormat["CHW32"])}, "asks for is_non_linear_format_io, which the local"),
        ({"engine": altered(output_location=TensorLocation["HOST"])}, "asks for is_shape_tensor, which the local"),
        ({"engine": altered(get_tensor_shape=lambda *_: (2, 7))}, "batch is fixed: the first dimension of 'x'"),
        ({"sequence_batching": {"direct": {}}}, "asks for sequence_batching, which the local server's tensorrt"),
        ({"batch_input": [{"kind": "BATCH_ITEM_SHAPE"}]}, "asks for batch_input"),
        ({"engine": altered(create_execution_context=lambda _: None)}, "the GPU's memory is not enough"),
        ({"plan": b"other"}, "of another TensorRT version than this server's; here is tensorrt 8.6.0 on Fake GPU"),
        ({"plan": b"goo", "manifest": {"files": {"model.plan": 4}}}, "it is 3 bytes long instead of 4; here is"),
    ],
)
def test_a_config_that_contradicts_the_engine_is_refused(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    """In words that the reader of Triton's reasons knows, with a mend."""
    with pytest.raises(UTILITIES.TritonModelException) as caught:
        Instance(backend, monkeypatch, tmp_path, widths=[(1, 8)], **settings)
    told = explain("twice", str(caught.value))
    assert message in told.cause
    assert told.hint


def test_what_is_fixed_in_the_engine_may_be_free_in_the_config(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As NVIDIA's backend has it; what does not fit is told then."""
    engine = altered(get_tensor_shape=lambda *_: (-1, 7))
    instance = Instance(backend, monkeypatch, tmp_path, widths=[(7, 7)], engine=engine)
    fits, other = instance.run(rows(1, 7), rows(1, 5))
    assert not fits.has_error()
    assert "x [1, 7] to [4, 7]" in other.error().message()


def test_the_plan_for_this_gpu_s_compute_capability_is_loaded(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1/model_cc90.plan").write_bytes(b"good")
    names = {"8.6": "model.plan", "9.0": "model_cc90.plan"}
    instance = Instance(backend, monkeypatch, tmp_path, widths=[(1, 8)], plan=b"other", cc_model_filenames=names)
    [response] = instance.run(rows(2, 3))
    np.testing.assert_array_equal(response.tensors[0].as_numpy(), 2 * rows(2, 3))


def test_a_gpu_that_has_no_plan_gets_the_default_one(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    instance = Instance(backend, monkeypatch, tmp_path, widths=[(1, 8)], cc_model_filenames={"8.6": "other.plan"})
    assert not instance.run(rows(1, 3))[0].has_error()


def test_a_gpu_without_a_plan_says_which_there_are(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = {"8.6": "model_cc86.plan", "12.0": "model_cc120.plan"}
    with pytest.raises(Exception, match="unable to find") as caught:
        Instance(backend, monkeypatch, tmp_path, widths=[(1, 8)], cc_model_filenames=names, plan_file="model_cc86.plan")
    assert "cc_model_filenames has plans for 8.6, 12.0, none for 9.0" in str(caught.value)
    told = explain("twice", str(caught.value))
    assert told.cause == "it has plans for GPUs of compute capability 8.6, 12.0, none for this one's 9.0"
    assert told.hint == "add one on this machine: repo-builder add ... --cc-plan"


def test_a_refused_plan_is_told_by_its_own_entry_in_the_manifest(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plans = {
        capability: {"file": file, "engine": {"library": "TensorRT 10.3.0", "gpu": {"name": gpu}}}
        for capability, file, gpu in (("8.6", "b.plan", "NVIDIA A10"), ("9.0", "model.plan", "NVIDIA GH200"))
    }
    manifest = {"engine": plans["8.6"]["engine"], "plans": plans}
    with pytest.raises(Exception, match=r"built by TensorRT 10\.3\.0 on NVIDIA GH200"):
        Instance(
            backend, monkeypatch, tmp_path, widths=[(1, 8)], plan=b"other", manifest=manifest,
            cc_model_filenames={"9.0": "model.plan"},
        )  # fmt: skip


def test_a_plan_of_another_version_says_what_it_needs_and_what_there_is(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    manifest = {"engine": {"library": "TensorRT 10.3.0", "gpu": {"name": "NVIDIA A10"}}}
    with pytest.raises(Exception, match="Version tag does not match") as caught:
        Instance(backend, monkeypatch, tmp_path, widths=[(1, 8)], plan=b"other", manifest=manifest)
    assert explain("twice", str(caught.value)).cause == (
        "its plan is of another TensorRT version than this server's; it was built by TensorRT 10.3.0 on NVIDIA A10; "
        "here is tensorrt 8.6.0 on Fake GPU (compute capability 9.0)"
    )


def test_custom_layers_published_with_the_plan_are_loaded_before_it(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compile_library(tmp_path / "1" / "plugins", "layers")
    manifest: dict[str, Any] = {"engine": {"plugins": ["plugins/layers.so"]}}
    with pytest.raises(Exception, match="Version tag"):
        Instance(backend, monkeypatch, tmp_path, widths=[(1, 8)], manifest=manifest, plan=b"other")
    assert was_loaded("layers")
    (tmp_path / "1" / "plugins" / "broken.so").write_text("no library")
    manifest["engine"]["plugins"].append("plugins/broken.so")
    with pytest.raises(Exception, match=r"unable to load the plan's custom layers: .*broken\.so"):
        Instance(backend, monkeypatch, tmp_path, widths=[(1, 8)], manifest=manifest)


def test_the_rtx_backend_is_the_same_with_another_library(backend: ModuleType) -> None:
    rtx = importlib.import_module("repo_builder.servers.backends.tensorrt_rtx").TritonPythonModel
    assert rtx.LIBRARY == "tensorrt_rtx"
    assert rtx.execute is backend.TritonPythonModel.execute
