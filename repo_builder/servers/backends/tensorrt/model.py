# ruff: noqa: INP001  (no package: Triton's stub loads this file by its path)
"""Python-based Triton backend ``tensorrt``: serves ``platform: "tensorrt_plan"`` models.

It reads the same repositories and ``config.pbtxt`` fields as NVIDIA's C++ backend of that name
(https://github.com/triton-inference-server/tensorrt_backend) and refuses what that one refuses, so that a repository
which loads here loads there.  The requests that Triton's scheduler hands over together run as one batch:

- each request's tensors go to their place in one device buffer, read by the GPU itself from the shared memory that
  Triton hands them over in; where that can't be, through pinned memory, so that while one is on its way the next is
  being staged;
- device buffers are as large as the profile allows and stay where they are, so a batch size that config.pbtxt names
  for CUDA graphs is captured once and then launched as one call;
- outputs come back into pinned memory, from which Triton takes them.

When a batch fails each of its requests is tried alone, so one bad request can't fail its neighbours.  The file runs
inside Triton's stub process and imports nothing of this package.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

DATATYPES = {
    # tensorrt.DataType: Triton's name, NumPy's dtype of the same width (NumPy has no bfloat16)
    "FLOAT": ("TYPE_FP32", np.float32),
    "HALF": ("TYPE_FP16", np.float16),
    "BF16": ("TYPE_BF16", np.uint16),
    "INT8": ("TYPE_INT8", np.int8),
    "UINT8": ("TYPE_UINT8", np.uint8),
    "INT32": ("TYPE_INT32", np.int32),
    "INT64": ("TYPE_INT64", np.int64),
    "BOOL": ("TYPE_BOOL", np.bool_),
}
ALIGNMENT = 256
GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg")  # of NVIDIA's driver for Linux, and of WSL


class RequestError(Exception):
    """A request can't be answered because of what it contains."""


class CudaError(Exception):
    """A CUDA call failed."""


@dataclass(frozen=True)
class Port:
    """An input or output as the engine has it: ``shape`` with the batch axis, -1 where free.

    ``values``: an input that lies in host memory and whose values are shapes.
    """

    name: str
    datatype: str
    dtype: Any
    shape: tuple[int, ...]
    dims: tuple[int, ...]
    values: bool = False


@dataclass
class Pending:
    """A request taken out of Triton's objects: its place in the call, its tensors, the outputs it asks for."""

    index: int
    inputs: dict[str, Source]
    outputs: frozenset[str]


@dataclass(frozen=True)
class Source:
    """An input tensor of a request: where its bytes are, in host or device memory, for as long as it is kept."""

    address: int
    shape: tuple[int, ...]
    nbytes: int
    on_device: bool
    owner: Any


class Cuda:
    """The CUDA runtime through NVIDIA's cuda-python."""

    def __init__(self) -> None:
        for name in ("cuda.bindings.runtime", "cuda.cudart"):
            try:
                self.api = importlib.import_module(name)
                break
            except ImportError as error:
                reason = error
        else:
            raise pb_utils.TritonModelException(f"cuda-python can't be imported: {reason}")
        kinds = self.api.cudaMemcpyKind
        self.to_device = kinds.cudaMemcpyHostToDevice
        self.to_host = kinds.cudaMemcpyDeviceToHost
        self.within_device = kinds.cudaMemcpyDeviceToDevice

    def __call__(self, function: str, *arguments: Any) -> Any:
        error, *results = getattr(self.api, function)(*arguments)
        if error.value:
            raise CudaError(f"{function} failed: {error.name}")
        return results[0] if len(results) == 1 else results


class PinnedMemory:
    """Host memory that the GPU reads and writes itself, handed out piece by piece and taken back all at once."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.blocks: list[tuple[int, int]] = []
        self.used = 0

    def take(self, nbytes: int) -> int:
        """Return the address of ``nbytes`` that stay untouched until :meth:`reset`."""
        size = -(-max(nbytes, 1) // ALIGNMENT) * ALIGNMENT
        if not self.blocks or self.used + size > self.blocks[-1][1]:
            room = max(size, 1 << 20)
            self.blocks.append((int(self.cuda("cudaHostAlloc", room, 0)), room))
            self.used = 0
        address = self.blocks[-1][0] + self.used
        self.used += size
        return address

    def reset(self) -> None:
        if len(self.blocks) > 1:  # it grew: from now on one block holds all of it
            room = sum(size for _, size in self.blocks)
            self.free()
            self.blocks = [(int(self.cuda("cudaHostAlloc", room, 0)), room)]
        self.used = 0

    def free(self) -> None:
        for address, _ in self.blocks:
            self.cuda("cudaFreeHost", address)
        self.blocks = []


class SharedMemory:
    """The mappings of shared memory that the GPU reads itself, each registered with CUDA when first met.

    Triton's stub maps its region anew when it grows and keeps the old mappings for as long as it lives
    (https://github.com/triton-inference-server/python_backend/blob/main/src/shm_manager.cc), so one that is registered
    stays valid.
    """

    FOLDER = "/dev/shm/"  # noqa: S108

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.mappings: list[tuple[int, int, bool]] = []

    def holds(self, address: int, nbytes: int) -> bool:
        """Whether the GPU can read these bytes where they lie."""
        for start, end, registered in reversed(self.mappings):
            if start <= address and address + nbytes <= end:
                return registered
        mapping = self.find(address)
        if mapping is None:
            return False
        start, end = mapping
        registered = self.register(start, end - start)
        self.mappings.append((start, end, registered))
        return registered

    def find(self, address: int) -> tuple[int, int] | None:
        """Return the mapping of shared memory around ``address``, if there is one (man 5 proc_pid_maps)."""
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
            span, _, _, _, _, *path = line.split(maxsplit=5)
            start, end = (int(number, 16) for number in span.split("-"))
            if start <= address < end:
                return (start, end) if path and path[0].startswith(self.FOLDER) else None
        return None

    def register(self, start: int, nbytes: int) -> bool:
        try:
            self.cuda("cudaHostRegister", start, nbytes, self.cuda.api.cudaHostRegisterDefault)
        except CudaError as error:
            pb_utils.Logger.log_warn(f"requests go through a copy in pinned memory: {error}")
            return False
        return True

    def free(self) -> None:
        for start, _, registered in self.mappings:
            if registered:
                self.cuda("cudaHostUnregister", start)
        self.mappings = []


class DeviceMemory:
    """One tensor's memory on the GPU, which grows when needed; ``generation`` counts how often it moved."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.address = 0
        self.size = -1
        self.generation = 0

    def reserve(self, nbytes: int) -> int:
        if nbytes > self.size:
            self.free()
            self.address = int(self.cuda("cudaMalloc", max(nbytes, ALIGNMENT)))
            self.size = nbytes
            self.generation += 1
        return self.address

    def free(self) -> None:
        if self.address:
            self.cuda("cudaFree", self.address)
            self.address, self.size = 0, -1


@dataclass
class Lane:
    """One optimisation profile with its own execution context: the shapes it takes, and where it stands."""

    index: int
    context: Any
    minimum: dict[str, tuple[int, ...]]
    maximum: dict[str, tuple[int, ...]]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    graphs: dict[Any, Any] = field(default_factory=dict)

    def takes(self, shapes: dict[str, tuple[int, ...]]) -> bool:
        return all(
            len(shape) == len(self.minimum[name])
            and all(
                low <= n <= high for low, n, high in zip(self.minimum[name], shape, self.maximum[name], strict=True)
            )
            for name, shape in shapes.items()
        )


class TritonPythonModel:
    """One model instance: its own engine, contexts, stream and memory (the interface is Triton's)."""

    LIBRARY = "tensorrt"

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        if args["model_instance_kind"] != "GPU":  # what Triton takes, too, where nothing is said and no GPU is found
            there = any(Path(device).exists() for device in GPU_DEVICES)
            why = ": instance_group needs kind: KIND_GPU" if there else ", and there is none here"
            raise pb_utils.TritonModelException(f"an engine runs on GPUs only{why}")
        self.name = args["model_name"]
        self.max_batch_size = config["max_batch_size"]
        self.batching = self.max_batch_size > 0
        try:
            self.trt = importlib.import_module(self.LIBRARY)
        except (ImportError, OSError) as error:
            raise pb_utils.TritonModelException(f"{self.LIBRARY} can't be imported: {error}") from error
        self.cuda = Cuda()
        try:
            self.cuda("cudaSetDevice", int(args["model_instance_device_id"]))
            self.stream = int(self.cuda("cudaStreamCreateWithFlags", self.cuda.api.cudaStreamNonBlocking))
        except CudaError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        self.logger = make_logger(self.trt)
        self.runtime = self.trt.Runtime(self.logger)
        self.engine = load_engine(self.runtime, self.trt, self.cuda, args, config)
        self.inputs, self.outputs = checked_ports(self.trt, self.engine, config)
        self.pinned = PinnedMemory(self.cuda)
        self.shared = SharedMemory(self.cuda)
        self.device = {name: DeviceMemory(self.cuda) for name in (*self.inputs, *self.outputs)}
        self.lanes = [self.open_lane(index) for index in profile_indices(self.engine, config)]
        if self.batching:
            check_batch_limit(self.inputs, self.lanes, self.max_batch_size)
        self.graph_sizes = cuda_graph_sizes(config)
        self.allocators: dict[str, Any] = {}

    def finalize(self) -> None:
        """Give the GPU's memory back."""
        for memory in self.device.values():
            memory.free()
        self.pinned.free()
        self.shared.free()
        self.lanes = []
        self.engine = None

    def open_lane(self, index: int) -> Lane:
        """Make a profile's context, and room for the largest inputs and outputs that it allows."""
        context = self.engine.create_execution_context()
        if context is None:
            said = self.logger.errors[-1] if self.logger.errors else "is there memory left on the GPU?"
            raise pb_utils.TritonModelException(f"unable to create an execution context: {said}")
        if index != context.active_optimization_profile:
            context.set_optimization_profile_async(index, self.stream)
            self.cuda("cudaStreamSynchronize", self.stream)
        sized = [port for port in self.inputs.values() if not port.values]
        corners = {port.name: self.engine.get_tensor_profile_shape(port.name, index) for port in sized}
        lane = Lane(
            index,
            context,
            {name: tuple(corner[0]) for name, corner in corners.items()},
            {name: tuple(corner[2]) for name, corner in corners.items()},
        )
        for name, shape in lane.maximum.items():
            self.device[name].reserve(nbytes_of(self.inputs[name], shape))
        return lane

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer ``requests``, those of the same shapes together, in batches of up to max_batch_size."""
        self.pinned.reset()
        responses: list[Any] = [None] * len(requests)
        groups: dict[Any, list[Pending]] = {}
        for index, request in enumerate(requests):
            try:
                pending = self.read(index, request)
            except Exception as error:
                responses[index] = failure(error)
                continue
            groups.setdefault(self.group_of(pending), []).append(pending)
        for group in groups.values():
            for pending, response in zip(group, self.answer(group), strict=True):
                responses[pending.index] = response
        raise_common_failure(responses)
        return responses

    def group_of(self, pending: Pending) -> Any:
        """What requests must have in common to run as one batch."""
        if not self.batching:
            return pending.index
        return frozenset(
            (name, host_bytes(source) if self.inputs[name].values else source.shape[1:])
            for name, source in pending.inputs.items()
        )

    def read(self, index: int, request: Any) -> Pending:
        inputs = {tensor.name(): source_of(tensor, self.inputs[tensor.name()]) for tensor in request.inputs()}
        if missing := self.inputs.keys() - inputs.keys():
            raise RequestError(f"input {min(missing)!r} is missing")
        return Pending(index, inputs, frozenset(request.requested_output_names()))

    def answer(self, group: list[Pending]) -> Iterable[Any]:
        """Return the responses to ``group`` in its order, from one run if it succeeds."""
        try:
            return self.run(group)
        except Exception as error:
            with contextlib.suppress(CudaError):  # nothing may be on its way any more when memory is used again
                self.cuda("cudaStreamSynchronize", self.stream)
            if len(group) == 1:
                return [failure(error)]
        return [response for pending in group for response in self.answer([pending])]

    def run(self, group: list[Pending]) -> list[Any]:
        shapes = self.joined_shapes(group)
        lane = self.lane_for(shapes)
        self.send(lane, group, shapes)
        names = [name for name in self.outputs if any(name in pending.outputs for pending in group)]
        self.compute(lane, shapes)
        results = self.fetch(lane, names)
        ends = np.cumsum([batch_of(pending, self.inputs) for pending in group]) if self.batching else [0]
        responses, start = [], 0
        for pending, end in zip(group, ends, strict=True):
            piece = slice(start, int(end)) if self.batching else slice(None)
            wanted = [name for name in names if name in pending.outputs]
            responses.append(
                pb_utils.InferenceResponse([to_tensor(self.outputs[n], results[n], piece) for n in wanted])
            )
            start = int(end)
        return responses

    def joined_shapes(self, group: list[Pending]) -> dict[str, tuple[int, ...]]:
        """The engine's input shapes for the whole group."""
        shapes = {}
        for name, port in self.inputs.items():
            if port.values:
                continue
            shape = group[0].inputs[name].shape
            if self.batching:
                batch = sum(pending.inputs[name].shape[0] for pending in group)
                shape = (batch, *shape[1:])
            shapes[name] = shape if port.shape else ()
        return shapes

    def lane_for(self, shapes: dict[str, tuple[int, ...]]) -> Lane:
        for lane in self.lanes:
            if lane.takes(shapes):
                return lane
        ranges = "; ".join(
            f"{name} {list(lane.minimum[name])} to {list(lane.maximum[name])}" for lane in self.lanes for name in shapes
        )
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise RequestError(f"no profile of the engine takes {listed}; it takes {ranges}")

    def send(self, lane: Lane, group: list[Pending], shapes: dict[str, tuple[int, ...]]) -> None:
        """Bring every request's tensors to their place in the device buffers, and tell the context of new shapes."""
        for name, port in self.inputs.items():
            if port.values:
                lane.context.set_tensor_address(name, group[0].inputs[name].address)
                continue
            start = self.device[name].reserve(nbytes_of(port, shapes[name]))
            offset = 0
            for pending in group:
                source = pending.inputs[name]
                self.copy_in(start + offset, source)
                offset += source.nbytes
            if lane.shapes.get(name) != shapes[name]:
                if not lane.context.set_input_shape(name, shapes[name]):
                    raise RequestError(
                        f"the engine refuses shape {list(shapes[name])} for {name!r}: {self.last_error()}"
                    )
                lane.shapes[name] = shapes[name]
            lane.context.set_tensor_address(name, start)

    def copy_in(self, target: int, source: Source) -> None:
        if not source.nbytes:
            return
        if source.on_device:
            kind, address = self.cuda.within_device, source.address
        elif self.shared.holds(source.address, source.nbytes):
            kind, address = self.cuda.to_device, source.address
        else:
            kind, address = self.cuda.to_device, self.pinned.take(source.nbytes)
            ctypes.memmove(address, source.address, source.nbytes)
        self.cuda("cudaMemcpyAsync", target, address, source.nbytes, kind, self.stream)

    def compute(self, lane: Lane, shapes: dict[str, tuple[int, ...]]) -> None:
        for name, port in self.outputs.items():
            self.place_output(lane, name, port)
        batch = next(iter(shapes.values()))[0] if self.batching and shapes else None
        if batch in self.graph_sizes and not self.allocators:
            self.launch_graph(lane, shapes)
        elif not lane.context.execute_async_v3(self.stream):
            raise RequestError(f"the engine failed to run: {self.last_error()}")

    def place_output(self, lane: Lane, name: str, port: Port) -> None:
        """Give an output its memory; where its size depends on the data, an allocator that is asked in the run."""
        shape = tuple(lane.context.get_tensor_shape(name))
        if -1 not in shape:
            address = self.device[name].reserve(nbytes_of(port, shape))
            lane.context.set_tensor_address(name, address)
        elif (lane.index, name) not in self.allocators:
            allocator = make_allocator(self.trt, self.device[name])
            lane.context.set_output_allocator(name, allocator)
            self.allocators[lane.index, name] = allocator

    def launch_graph(self, lane: Lane, shapes: dict[str, tuple[int, ...]]) -> None:
        """Launch the graph of these shapes, capturing it first; it holds only as long as no buffer moves."""
        key = (tuple(shapes.items()), tuple(memory.generation for memory in self.device.values()))
        graph = lane.graphs.get(key)
        if graph is None:
            graph = self.capture(lane)
            lane.graphs = {other: kept for other, kept in lane.graphs.items() if other[1] == key[1]}
            lane.graphs[key] = graph
        self.cuda("cudaGraphLaunch", graph, self.stream)

    def capture(self, lane: Lane) -> Any:
        if not lane.context.execute_async_v3(self.stream):  # TensorRT wants one run of a shape before its capture
            raise RequestError(f"the engine failed to run: {self.last_error()}")
        self.cuda("cudaStreamSynchronize", self.stream)
        mode = self.cuda.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.cuda("cudaStreamBeginCapture", self.stream, mode)
        enqueued = lane.context.execute_async_v3(self.stream)
        captured = self.cuda("cudaStreamEndCapture", self.stream)
        if not enqueued:
            raise RequestError(f"the engine can't be captured as a CUDA graph: {self.last_error()}")
        return self.cuda("cudaGraphInstantiate", captured, 0)

    def fetch(self, lane: Lane, names: list[str]) -> dict[str, np.ndarray]:
        """Bring the outputs back and wait for them."""
        if self.allocators:
            self.cuda("cudaStreamSynchronize", self.stream)  # sizes that depend on the data are known then
        results = {}
        for name in names:
            port = self.outputs[name]
            allocator = self.allocators.get((lane.index, name))
            shape = allocator.shape if allocator else tuple(lane.context.get_tensor_shape(name))
            nbytes = nbytes_of(port, shape)
            address = self.pinned.take(nbytes)
            if nbytes:
                self.cuda("cudaMemcpyAsync", address, self.device[name].address, nbytes, self.cuda.to_host, self.stream)
            results[name] = array_at(address, port, shape)
        self.cuda("cudaStreamSynchronize", self.stream)
        return results

    def last_error(self) -> str:
        return self.logger.errors[-1] if self.logger.errors else "it gave no reason"


def failure(error: Exception) -> Any:
    """Return the response that tells the client what is wrong with its request."""
    code = pb_utils.TritonError.INVALID_ARG if isinstance(error, RequestError) else pb_utils.TritonError.INTERNAL
    return pb_utils.InferenceResponse([], pb_utils.TritonError(str(error), code))


def raise_common_failure(responses: Sequence[Any]) -> None:
    """Raise what every request failed with, if that is no fault of theirs.

    Triton counts as failed, and logs, only what ``execute`` raises, and that is for all of its requests.
    """
    errors = [response.error() for response in responses if response.has_error()]
    said = {(error.code(), error.message()) for error in errors}
    if len(errors) == len(responses) and len(said) == 1 and errors[0].code() == pb_utils.TritonError.INTERNAL:
        raise pb_utils.TritonModelException(errors[0].message())


def batch_of(pending: Pending, inputs: dict[str, Port]) -> int:
    return next(pending.inputs[name].shape[0] for name, port in inputs.items() if not port.values)


def nbytes_of(port: Port, shape: Sequence[int]) -> int:
    return math.prod(shape) * np.dtype(port.dtype).itemsize


def array_at(address: int, port: Port, shape: tuple[int, ...]) -> np.ndarray:
    """Return the values at a host ``address`` as an array that doesn't own its memory."""
    nbytes = nbytes_of(port, shape)
    if not nbytes:
        return np.empty(shape, port.dtype)
    return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), port.dtype).reshape(shape)


def host_bytes(source: Source) -> bytes:
    return ctypes.string_at(source.address, source.nbytes)


def to_tensor(port: Port, array: np.ndarray, piece: slice) -> Any:
    if array.ndim == 0:
        part = array.reshape(port.dims)
    elif piece.stop is not None and array.shape[0] < piece.stop:
        raise RequestError(
            f"output {port.name!r} has shape {list(array.shape)}: its first axis is not the batch, so the model needs "
            "max_batch_size: 0"
        )
    else:
        part = array[piece]
    if port.datatype == "TYPE_BF16":
        return bfloat16_tensor(port.name, part)
    return pb_utils.Tensor(port.name, part)


# A request's tensors come through DLPack, of which the layout is fixed (https://dmlc.github.io/dlpack/latest/c_api.html):
# DLTensor = {void* data; int32 device[2]; int32 ndim; uint8 dtype_code, dtype_bits; uint16 lanes; int64* shape; int64*
# strides; uint64 byte_offset} is the head of what the capsule points to.

DLPACK_DTYPE_CODE_OFFSET = 20
DLPACK_BYTE_OFFSET_OFFSET = 40
DLPACK_BFLOAT = 4
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_set_capsule_name = ctypes.pythonapi.PyCapsule_SetName
_set_capsule_name.argtypes = [ctypes.py_object, ctypes.c_char_p]


def source_of(tensor: Any, port: Port) -> Source:
    """Find the tensor where Triton put it: what ``as_numpy`` gives is a copy."""
    capsule = tensor.to_dlpack()
    head = _capsule_pointer(capsule, b"dltensor")
    data = ctypes.c_void_p.from_address(head).value or 0
    start = data + ctypes.c_uint64.from_address(head + DLPACK_BYTE_OFFSET_OFFSET).value
    shape = tuple(int(size) for size in tensor.shape())
    return Source(start, shape, nbytes_of(port, shape), on_device=not tensor.is_cpu(), owner=(tensor, capsule))


def bfloat16_tensor(name: str, bits: np.ndarray) -> Any:
    capsule = np.array(bits).__dlpack__()
    head = _capsule_pointer(capsule, b"dltensor")
    ctypes.c_uint8.from_address(head + DLPACK_DTYPE_CODE_OFFSET).value = DLPACK_BFLOAT
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    # Triton frees what it took but renames the capsule in its own way; under DLPack's name NumPy leaves it alone.
    _set_capsule_name(capsule, b"used_dltensor")
    return tensor


# Loading: the plan, and whether config.pbtxt agrees with it.


def make_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        """Keeps errors for messages and passes warnings on to Triton's log."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors = [*self.errors[-9:], " ".join(message.split())]
                pb_utils.Logger.log_error(message)
            elif severity == trt.ILogger.Severity.WARNING:
                pb_utils.Logger.log_warn(message)

    return Logger()


def make_allocator(trt: Any, memory: DeviceMemory) -> Any:
    class Allocator(trt.IOutputAllocator):
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.shape: tuple[int, ...] = ()

        def reallocate_output(self, name: str, current: int, size: int, alignment: int) -> int:  # noqa: ARG002
            return memory.reserve(size)

        def reallocate_output_async(self, name: str, current: int, size: int, *_: int) -> int:  # noqa: ARG002
            return memory.reserve(size)

        def notify_shape(self, name: str, shape: Any) -> None:  # noqa: ARG002
            self.shape = tuple(shape)

    return Allocator()


def load_engine(runtime: Any, trt: Any, cuda: Cuda, args: dict[str, str], config: dict[str, Any]) -> Any:
    """Deserialise the plan for this GPU, or say what it needs and what there is."""
    folder = Path(args["model_repository"], args["model_version"])
    gpu = cuda("cudaGetDeviceProperties", int(args["model_instance_device_id"]))
    capability = f"{gpu.major}.{gpu.minor}"
    by_capability = config.get("cc_model_filenames", {})
    path = folder / (by_capability.get(capability) or config.get("default_model_filename") or "model.plan")
    if not on_disk(path).is_file():
        others = ", ".join(sorted(by_capability, key=lambda text: (len(text), text)))
        which = f"; cc_model_filenames has plans for {others}, none for {capability}" if others else ""
        instance = args.get("model_instance_name", "")
        raise pb_utils.TritonModelException(f"unable to find {str(path)!r} for model instance {instance!r}{which}")
    manifest = read_manifest(folder)
    logger = runtime.logger
    if hasattr(trt, "init_libnvinfer_plugins"):
        trt.init_libnvinfer_plugins(logger, "")
    for name in (manifest.get("engine") or {}).get("plugins") or ():
        load_plugin(trt, folder / "plugins" / Path(name).name)
    if manifest.get("options", {}).get("build", {}).get("tensorrt", {}).get("version_compatible"):
        runtime.engine_host_code_allowed = True  # such a plan brings the runtime that it needs
    engine = runtime.deserialize_cuda_engine(on_disk(path).read_bytes())
    if engine is None:
        several = {plan.get("file"): plan for plan in manifest.get("plans", {}).values()}
        made = several.get(path.name, manifest).get("engine") or {}
        built_on = (made.get("gpu") or {}).get("name") or "a GPU it does not name"
        built_by = f"; it was built by {made['library']} on {built_on}" if made.get("library") else ""
        name = gpu.name.decode().rstrip("\0")
        said = logger.errors[0] if logger.errors else "it gave no reason"
        raise pb_utils.TritonModelException(
            f"unable to load {path}: {said}{built_by}; here is {trt.__name__} {trt.__version__} on {name} "
            f"(compute capability {capability})"
        )
    return engine


def on_disk(path: Path) -> Path:
    """The same path for calls of the system: Python in a stub takes names for ASCII, whatever the locale."""
    return Path(os.fsdecode(str(path).encode()))


def load_plugin(trt: Any, path: Path) -> None:
    """Load a library of custom layers: it registers them itself, or exports a list for the registry to read."""
    registry = trt.get_plugin_registry()
    listed = "all_creators" if hasattr(registry, "all_creators") else "plugin_creator_list"
    before = len(getattr(registry, listed))
    try:
        library = ctypes.CDLL(str(on_disk(path)), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise pb_utils.TritonModelException(f"unable to load the plan's custom layers: {error}") from error
    exports = hasattr(library, "getCreators") or hasattr(library, "getPluginCreators")
    if exports and len(getattr(registry, listed)) == before and registry.load_library(str(path)) is None:
        raise pb_utils.TritonModelException(f"unable to load the plan's custom layers: none are found in {path}")


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `repo-builder` noted beside the plan; another tool's plan has none."""
    try:
        manifest = json.loads((on_disk(folder) / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def profile_indices(engine: Any, config: dict[str, Any]) -> list[int]:
    """The profiles that instance_group names, all when it names none."""
    count = engine.num_optimization_profiles
    named = {text for group in config.get("instance_group", []) for text in group.get("profile", [])}
    if not named:
        return list(range(count))
    for text in named:
        if not text.isdigit() or int(text) >= count:
            raise pb_utils.TritonModelException(f"instance_group has profile {text!r}; the engine has {count}")
    return sorted(int(text) for text in named)


def check_batch_limit(inputs: dict[str, Port], lanes: list[Lane], max_batch_size: int) -> None:
    for lane in lanes:
        for name, shape in lane.maximum.items():
            if inputs[name].shape and shape[0] < max_batch_size:
                raise pb_utils.TritonModelException(
                    f"configuration specified max-batch {max_batch_size} but TensorRT engine only supports "
                    f"max-batch {shape[0]} (input {name!r}, profile {lane.index})"
                )


def cuda_graph_sizes(config: dict[str, Any]) -> frozenset[int]:
    """The batch sizes to capture: those of graph_spec, else 1, the preferred ones and the largest."""
    cuda = config.get("optimization", {}).get("cuda", {})
    if not cuda.get("graphs"):
        return frozenset()
    named = {int(spec.get("batch_size", 0)) for spec in cuda.get("graph_spec", [])}
    preferred = config.get("dynamic_batching", {}).get("preferred_batch_size", [])
    return frozenset(named or {1, *map(int, preferred), config["max_batch_size"]})


def checked_ports(trt: Any, engine: Any, config: dict[str, Any]) -> tuple[dict[str, Port], dict[str, Port]]:
    """The engine's inputs and outputs, after a look at whether config.pbtxt has them as they are."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    is_input = {name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
    ports: dict[str, dict[str, Port]] = {}
    for role in ("input", "output"):
        there = [name for name in names if is_input[name] == (role == "input")]
        declared = {io["name"]: io for io in config[role]}
        if unknown := declared.keys() - set(there):
            raise pb_utils.TritonModelException(f"{role} {min(unknown)!r} is not in the engine, which has {there}")
        if role == "input" and (missing := set(there) - declared.keys()):
            raise pb_utils.TritonModelException(f"configuration lacks input {min(missing)!r} of the engine")
        ports[role] = {
            name: checked_port(trt, engine, role, declared.get(name), name, config["max_batch_size"]) for name in there
        }
    return ports["input"], ports["output"]


def checked_port(trt: Any, engine: Any, role: str, io: dict[str, Any] | None, name: str, max_batch_size: int) -> Port:
    """Return the ``role`` called ``name``, or raise where ``io``, what config.pbtxt says of it, contradicts it."""
    kind = engine.get_tensor_dtype(name).name
    shape = tuple(engine.get_tensor_shape(name))
    values = role == "input" and engine.get_tensor_location(name) == trt.TensorLocation.HOST
    if kind not in DATATYPES:
        raise pb_utils.TritonModelException(f"{role} {name!r} has type {kind}, which Triton can't carry")
    datatype, dtype = DATATYPES[kind]
    if io is None:  # an output that nobody may ask for
        return Port(name, datatype, dtype, shape, (), values)
    if io["data_type"] != datatype:
        raise pb_utils.TritonModelException(
            f"unexpected datatype {io['data_type']} for inference {role} '{name}', expecting {datatype}"
        )
    dims = io.get("reshape", {}).get("shape", []) if "reshape" in io else io["dims"]
    dims = tuple(int(dim) for dim in dims)
    if not values:
        full = (-1, *dims) if max_batch_size > 0 else dims
        if max_batch_size > 0 and shape[:1] != (-1,) and (shape[:1], max_batch_size) != ((1,), 1):
            raise pb_utils.TritonModelException(
                f"{role} {name!r} has shape {list(shape)} in the engine: for batching its first dimension must be free"
            )
        scalar = not shape and all(dim == 1 for dim in dims)
        first = 1 if max_batch_size > 0 else 0
        agrees = len(full) == len(shape) and all(b in (-1, a) for a, b in zip(full[first:], shape[first:], strict=True))
        if not scalar and not agrees:
            batch = " (the batch, then dims)" if max_batch_size > 0 else ""
            raise pb_utils.TritonModelException(
                f"configuration has shape {list(full)}{batch} for {role} {name!r}, the engine has {list(shape)}"
            )
    return Port(name, datatype, dtype, shape, dims, values)
