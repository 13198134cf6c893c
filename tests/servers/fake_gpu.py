"""A fake GPU: host memory in place of the device's, and an engine that computes ``2 x + bias`` with NumPy.

It lets the backend's own work (joining and splitting batches, memory, profiles, shapes, errors) be tested where there
is no GPU.  What TensorRT and CUDA really do is tested on one (``pytest -m gpu``).
"""

from __future__ import annotations

import copy
import ctypes
import json
import math
import time
from enum import Enum, IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

ALIGNMENT = 256  # of the memory that CUDA hands out, and of what TensorRT takes

CODES = IntEnum(
    "CODES",
    {
        "cudaSuccess": 0,
        "cudaErrorInvalidValue": 1,
        "cudaErrorMemoryAllocation": 2,
        "cudaErrorStreamCaptureInvalidated": 901,
    },
)


class FakeCuda:
    """The functions of the CUDA runtime that the backend calls; ``calls`` counts them."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815
    cudaHostRegisterDefault = 0  # noqa: N815

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}
        self.blocks: dict[int, Any] = {}
        self.on_their_way: list[tuple[int, bytes]] = []  # to the host, where they are once the stream is waited for
        self.captured: Any = None
        self.capturing = False

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def function(*arguments: Any) -> tuple[Any, ...]:
            self.calls[name] = self.calls.get(name, 0) + 1
            result = getattr(self, f"do_{name}", lambda *_: None)(*arguments)
            if isinstance(result, CODES):
                return (result,)
            return (CODES.cudaSuccess,) if result is None else (CODES.cudaSuccess, result)

        return function

    def do_cudaStreamCreateWithFlags(self, _flags: int) -> int:  # noqa: N802
        return 7

    def do_cudaStreamCreate(self) -> int:  # noqa: N802
        return 7

    def do_cudaEventCreate(self) -> Any:  # noqa: N802
        return SimpleNamespace(time=0.0)

    def do_cudaEventRecord(self, event: Any, _stream: int) -> None:  # noqa: N802
        event.time = time.perf_counter()

    def do_cudaEventElapsedTime(self, start: Any, end: Any) -> float:  # noqa: N802
        return float(end.time - start.time) * 1e3

    def do_cudaMemset(self, address: int, value: int, size: int) -> None:  # noqa: N802
        ctypes.memset(address, value, size)

    def do_cudaMemcpy(self, target: int, source: int, size: int, _kind: int) -> None:  # noqa: N802
        ctypes.memmove(target, source, size)

    def do_cudaGetDeviceProperties(self, _device: int) -> Any:  # noqa: N802
        return SimpleNamespace(name=b"Fake GPU\0", major=9, minor=0)

    def do_cudaMalloc(self, size: int) -> Any:  # noqa: N802
        if size > 1 << 30:
            return CODES.cudaErrorMemoryAllocation
        block = (ctypes.c_uint8 * (size + ALIGNMENT))()
        address = ctypes.addressof(block) + -ctypes.addressof(block) % ALIGNMENT
        self.blocks[address] = block
        return address

    def do_cudaHostAlloc(self, size: int, _flags: int) -> Any:  # noqa: N802
        return self.do_cudaMalloc(size)

    def do_cudaFree(self, address: int) -> None:  # noqa: N802
        del self.blocks[address]

    do_cudaFreeHost = do_cudaFree  # noqa: N815

    def do_cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, _stream: int) -> None:  # noqa: N802
        if kind == self.cudaMemcpyKind.cudaMemcpyDeviceToHost:
            self.on_their_way.append((target, ctypes.string_at(source, size)))
        else:
            ctypes.memmove(target, source, size)

    def do_cudaStreamSynchronize(self, _stream: int) -> None:  # noqa: N802
        for target, content in self.on_their_way:
            ctypes.memmove(target, content, len(content))
        self.on_their_way.clear()

    def do_cudaStreamBeginCapture(self, *_: Any) -> None:  # noqa: N802
        self.capturing = True

    def do_cudaStreamEndCapture(self, _stream: int) -> Any:  # noqa: N802
        self.capturing = False
        return self.captured or CODES.cudaErrorStreamCaptureInvalidated

    def do_cudaGraphInstantiate(self, graph: Any, _flags: int) -> Any:  # noqa: N802
        return graph

    def do_cudaGraphLaunch(self, graph: Any, _stream: int) -> None:  # noqa: N802
        graph()


DataType = Enum("DataType", ["FLOAT", "HALF", "INT8", "UINT8", "INT32", "INT64", "BOOL", "BF16", "FP8"])
TensorFormat = Enum("TensorFormat", ["LINEAR", "CHW32"])
TensorIOMode = Enum("TensorIOMode", ["INPUT", "OUTPUT"])
TensorLocation = Enum("TensorLocation", ["DEVICE", "HOST"])


class Severity(Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = Severity


class IOutputAllocator: ...


class Context:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.active_optimization_profile = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index: int, _stream: int) -> None:
        self.active_optimization_profile = index

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.get_tensor_profile_shape(name, self.active_optimization_profile)
        self.shapes[name] = shape
        return all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        if self.engine.get_tensor_location(name) is TensorLocation["HOST"] and address % ALIGNMENT:
            return False
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes.get(name, self.shapes["x"])

    def execute_async_v3(self, _stream: int) -> bool:
        if self.engine.cuda.capturing:
            held = copy.copy(self)  # a graph keeps sizes and addresses
            held.shapes, held.addresses = dict(self.shapes), dict(self.addresses)
            self.engine.cuda.captured = held.compute if self.engine.can_be_captured else None
            return self.engine.can_be_captured
        return self.compute()

    def compute(self) -> bool:
        self.engine.ran.append(self.active_optimization_profile)
        shape = self.shapes["x"]
        count = int(np.prod(shape))
        x = np.ctypeslib.as_array((ctypes.c_float * count).from_address(self.addresses["x"]))
        y = np.ctypeslib.as_array((ctypes.c_float * count).from_address(self.addresses["y"]))
        if np.isnan(x).any():
            self.engine.logger.log(Severity.ERROR, "NaN is not for this engine")
            return False
        y[:] = 2 * x
        return True


class FakeEngine:
    """``y = 2 x`` on (batch, width), with one profile for each of ``widths`` (lowest and highest).

    ``ran`` are the profiles of its runs.
    """

    context: type[Context] = Context
    names: tuple[str, ...] = ("x", "y")
    can_be_captured = True
    tensor_format = TensorFormat["LINEAR"]
    output_location = TensorLocation["DEVICE"]

    def __init__(self, cuda: FakeCuda, logger: Any, widths: list[tuple[int, int]], max_batch: int) -> None:
        self.cuda, self.logger, self.widths, self.max_batch = cuda, logger, widths, max_batch
        self.ran: list[int] = []
        self.num_io_tensors = len(self.names)
        self.num_optimization_profiles = len(widths)

    def create_engine_inspector(self) -> Any:
        layers = [{"Name": "twice", "LayerType": "kgen", "Inputs": [{"Name": "x", "Datatype": "Float"}]}]
        return SimpleNamespace(get_engine_information=lambda _: json.dumps({"Layers": layers, "Bindings": ["x", "y"]}))

    def create_execution_context(self) -> Context:
        return self.context(self)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == "x" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, _name: str) -> Any:
        return DataType["FLOAT"]

    def get_tensor_shape(self, _name: str) -> tuple[int, ...]:
        return (-1, -1)

    def get_tensor_format(self, _name: str) -> Any:
        return self.tensor_format

    def get_tensor_location(self, name: str) -> Any:
        return self.output_location if name == "y" else TensorLocation["DEVICE"]

    def get_tensor_profile_shape(self, _name: str, index: int) -> list[Any]:
        low, high = self.widths[index]
        return [(1, low), (self.max_batch, high), (self.max_batch, high)]


class CroppingContext(Context):
    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = self.shapes["x"]
        return (shape[0], ctypes.c_int32.from_address(self.addresses["width"]).value) if name == "y" else shape

    def compute(self) -> bool:
        x = np.ctypeslib.as_array((ctypes.c_float * math.prod(self.shapes["x"])).from_address(self.addresses["x"]))
        shape = self.get_tensor_shape("y")
        y = np.ctypeslib.as_array((ctypes.c_float * math.prod(shape)).from_address(self.addresses["y"]))
        y.reshape(shape)[:] = x.reshape(self.shapes["x"])[:, : shape[1]]
        return True


class CroppingEngine(FakeEngine):
    """``y = x[:, :width]``, of which ``width`` is a value in host memory."""

    context = CroppingContext
    names = ("x", "y", "width")

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.OUTPUT if name == "y" else TensorIOMode.INPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return DataType["INT32" if name == "width" else "FLOAT"]

    def get_tensor_location(self, name: str) -> Any:
        return TensorLocation["HOST" if name == "width" else "DEVICE"]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (1,) if name == "width" else (-1, -1)

    def get_tensor_profile_values(self, index: int, _name: str) -> list[tuple[int]]:
        low, high = self.widths[index]
        return [(low,), (high,), (high,)]


class EchoContext(Context):
    engine: EchoEngine

    def compute(self) -> bool:
        nbytes = math.prod(self.shapes["x"]) * np.dtype(self.engine.dtype).itemsize
        for name in "yz":
            ctypes.memmove(self.addresses[name], self.addresses["x"], nbytes)
        return True


class EchoEngine(FakeEngine):
    """``y = z = x``, whose type is ``kind``; ``dtype`` is NumPy's of the same width."""

    context = EchoContext
    names = ("x", "y", "z")
    kind, dtype = "FLOAT", "float32"

    def get_tensor_dtype(self, _name: str) -> Any:
        return DataType[self.kind]


def fake_tensorrt(
    cuda: FakeCuda, widths: list[tuple[int, int]], max_batch: int, engine: type[FakeEngine] = FakeEngine
) -> Any:
    """A module ``tensorrt`` whose only plan, of an ``engine``, is the bytes ``good``."""

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine | None:
            if plan != b"good":
                self.logger.log(
                    Severity.ERROR, "Version tag does not match. Note: Current Version: 232, Serialized: 226"
                )
                return None
            return engine(cuda, self.logger, widths, max_batch)

    return SimpleNamespace(
        __name__="tensorrt",
        __version__="8.6.0",
        ILogger=ILogger,
        IOutputAllocator=IOutputAllocator,
        TensorFormat=TensorFormat,
        TensorIOMode=TensorIOMode,
        TensorLocation=TensorLocation,
        LayerInformationFormat=SimpleNamespace(JSON=1),
        Runtime=Runtime,
        get_plugin_registry=lambda: SimpleNamespace(all_creators=[]),
    )
