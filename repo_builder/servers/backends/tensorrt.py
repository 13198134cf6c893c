"""Triton backend ``tensorrt``: serves ``platform: "tensorrt_plan"`` models.

It reads the same repositories and ``config.pbtxt`` fields as NVIDIA's C++ backend of that name
(https://github.com/triton-inference-server/tensorrt_backend) and refuses what that one refuses, so that a repository
which loads here loads there.  The requests that Triton's scheduler hands over together run as one batch:

- each request's tensors go to their place in one device buffer, read by the GPU itself from the shared memory that
  Triton hands them over in; where that can't be, through pinned memory, so that while one is on its way the next is
  being staged; what a request that runs alone has on the GPU is used in place;
- device buffers are as large as the profile allows and stay where they are, so shapes of a batch size that config.pbtxt
  names for CUDA graphs are captured once and then launched as one call;
- outputs come back into pinned memory, from which Triton takes them; their responses are made before they are there.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import triton_python_backend_utils as pb_utils

from .batches import BatchModel, Pending, RequestError
from .dlpack import Array, address_in, array_at, device_in
from .loading import refuse_unsupported
from .tensorrt_loading import (
    EnginePort,
    check_batch_limit,
    checked_ports,
    cuda_graph_sizes,
    load_engine,
    make_logger,
    profile_corners,
    profile_indices,
)
from .tensorrt_memory import ALIGNMENT, Cuda, CudaError, DeviceMemory, PinnedMemory, SharedMemory

GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg")  # of NVIDIA's driver for Linux, and of WSL
MOST_GRAPHS = 64
"""Of a profile.  Each takes memory on the GPU; requests of ever new shapes are launched layer by layer after that."""

Shapes = dict[str, tuple[int, ...]]


class EngineError(Exception):
    """The engine failed, through no fault of a request that is known."""


class Source(NamedTuple):
    """An input tensor of a request: where its bytes are, for as long as it is kept; in host memory without a GPU."""

    address: int
    shape: tuple[int, ...]
    nbytes: int
    gpu: int | None
    owner: Any


@dataclass
class Lane:
    """One optimisation profile with its own execution context: the shapes it takes, and where it stands.

    Of an input that holds sizes these are its values.
    """

    index: int
    context: Any
    minimum: Shapes
    optimum: Shapes
    maximum: Shapes
    shapes: Shapes = field(default_factory=dict)  # the inputs' and the outputs', as the context has them
    outputs: Shapes = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)  # the inputs' addresses, as the context has them
    generation: int = -1  # of the device memory whose addresses the context has
    graphs: dict[Hashable, Any] = field(default_factory=dict)  # by shapes and places; None where there can be none

    def takes(self, shapes: Shapes) -> bool:
        return all(
            len(shape) == len(self.minimum[name])
            and all(
                low <= n <= high for low, n, high in zip(self.minimum[name], shape, self.maximum[name], strict=True)
            )
            for name, shape in shapes.items()
        )

    def distance(self, shapes: Shapes) -> int:
        """How far ``shapes``, which it takes, are from those it was tuned for."""
        return sum(
            abs(n - best) for name, shape in shapes.items() for n, best in zip(shape, self.optimum[name], strict=True)
        )


class TritonPythonModel(BatchModel):
    """One model instance: its own engine, contexts, stream and memory."""

    LIBRARY = "tensorrt"

    inputs: dict[str, EnginePort]
    outputs: dict[str, EnginePort]

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        if args["model_instance_kind"] != "GPU":  # what Triton takes, too, where nothing is said and no GPU is found
            there = any(Path(device).exists() for device in GPU_DEVICES)
            why = ": instance_group needs kind: KIND_GPU" if there else ", and there is none here"
            raise pb_utils.TritonModelException(f"an engine runs on GPUs only{why}")
        refuse_unsupported(config, self.LIBRARY)
        self.max_batch_size = config["max_batch_size"]
        self.batching = self.max_batch_size > 0
        try:
            self.trt = importlib.import_module(self.LIBRARY)
        except (ImportError, OSError) as error:
            raise pb_utils.TritonModelException(f"{self.LIBRARY} can't be imported: {error}") from error
        self.cuda = Cuda()
        try:
            self.gpu = int(args["model_instance_device_id"])
            self.cuda("cudaSetDevice", self.gpu)
            self.stream = int(self.cuda("cudaStreamCreateWithFlags", self.cuda.api.cudaStreamNonBlocking))
        except CudaError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        self.logger = make_logger(self.trt)
        self.runtime = self.trt.Runtime(self.logger)
        self.engine = load_engine(self.runtime, self.trt, self.cuda, args, config)
        self.inputs, self.outputs = checked_ports(self.trt, self.engine, config)
        self.sized = {name: port for name, port in self.inputs.items() if not port.values}
        self.values = {name: port for name, port in self.inputs.items() if port.values}
        self.pinned = PinnedMemory(self.cuda)
        self.shared = SharedMemory(self.cuda)
        self.device = DeviceMemory(self.cuda)
        self.lanes = [self.open_lane(index) for index in profile_indices(self.engine, config)]
        # A graph holds the sizes that follow from an input's values, so those of one request.
        self.graph_sizes = frozenset() if self.values else cuda_graph_sizes(config)
        self.allocators: dict[tuple[int, str], Any] = {}

    def finalize(self) -> None:
        """Give the GPU's memory back."""
        for lane in self.lanes:
            self.drop_graphs(lane)
        self.device.free()
        self.pinned.free()
        self.shared.free()
        self.lanes = []
        self.engine = None

    def open_lane(self, index: int) -> Lane:
        """Make a profile's context, and room for the largest inputs that it allows."""
        context = self.engine.create_execution_context()
        if context is None:
            said = self.logger.errors[-1] if self.logger.errors else "is there memory left on the GPU?"
            raise pb_utils.TritonModelException(f"unable to create an execution context: {said}")
        if index != context.active_optimization_profile:
            context.set_optimization_profile_async(index, self.stream)
            self.wait()
        minimum, optimum, maximum = profile_corners(self.engine, self.inputs.values(), index)
        check_batch_limit(maximum, index, self.max_batch_size)
        for name, port in self.sized.items():
            self.device.reserve(name, port.nbytes(maximum[name]))
        return Lane(index, context, minimum, optimum, maximum)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        self.pinned.reset()
        return super().execute(requests)

    def read(self, place: int, request: Any) -> Pending:
        inputs = {(name := tensor.name()): source_of(tensor, self.inputs[name]) for tensor in request.inputs()}
        if missing := self.inputs.keys() - inputs.keys():
            raise RequestError(f"input {min(missing)!r} is missing")
        batch = next(iter(inputs.values())).shape[0] if self.batching else 1
        return Pending(place, inputs, frozenset(request.requested_output_names()), batch)

    def key_of(self, pending: Pending) -> Hashable:
        return frozenset((name, source.shape[1:]) for name, source in pending.inputs.items())

    def run(self, group: list[Pending], names: list[str]) -> dict[str, Array]:
        shapes = self.joined_shapes(group)
        lane = self.lane_for(shapes)
        try:
            places = self.send(group)
            self.prepare(lane, shapes, places, group[0])
            self.compute(lane)
            return self.fetch(lane, names)
        except Exception:
            with contextlib.suppress(CudaError):  # nothing may be on its way any more when memory is used again
                self.wait()
            raise

    def wait(self) -> None:
        self.cuda("cudaStreamSynchronize", self.stream)

    def joined_shapes(self, group: list[Pending]) -> Shapes:
        """The engine's input shapes for the whole group; of an input that holds sizes its values."""
        shapes: Shapes = {}
        for name, port in self.inputs.items():
            source = group[0].inputs[name]
            shape = source.shape
            if len(group) > 1:
                shape = (sum(pending.inputs[name].shape[0] for pending in group), *shape[1:])
            shapes[name] = shape if port.shape else ()
            if port.values:
                shapes[name] = tuple(array_at(source.address, port.dtype, source.shape).ravel().tolist())
        return shapes

    def lane_for(self, shapes: Shapes) -> Lane:
        """Of the profiles that take ``shapes`` the one tuned nearest to them, as in NVIDIA's backend."""
        for lane in self.lanes:
            if lane.shapes == shapes:  # it was the one the last time
                return lane
        if fitting := [lane for lane in self.lanes if lane.takes(shapes)]:
            return min(fitting, key=lambda lane: lane.distance(shapes))
        ranges = "; ".join(
            f"{name} {list(lane.minimum[name])} to {list(lane.maximum[name])}" for lane in self.lanes for name in shapes
        )
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise RequestError(f"no profile of the engine takes {listed}; it takes {ranges}")

    def prepare(self, lane: Lane, shapes: Shapes, places: dict[str, int], first: Pending) -> None:
        """Tell the context of the shapes and of where its tensors are, unless it has them from the run before."""
        there = lane.shapes == shapes and lane.places == places and lane.generation == self.device.generation
        if there and not self.values:
            return
        lane.shapes = {}
        for name in self.values:
            source = first.inputs[name]
            address = self.pinned.take(source.nbytes)  # aligned, as TensorRT 8.6 wants them to be
            ctypes.memmove(address, source.address, source.nbytes)
            lane.context.set_tensor_address(name, address)
        for name, address in places.items():
            lane.context.set_tensor_address(name, address)
            if not lane.context.set_input_shape(name, shapes[name]):
                raise RequestError(f"the engine refuses shape {list(shapes[name])} for {name!r}: {self.last_error()}")
        for name in self.outputs:
            self.place_output(lane, name)
        if lane.generation != self.device.generation:  # graphs hold the addresses of before
            self.drop_graphs(lane)
        lane.shapes, lane.places, lane.generation = shapes, places, self.device.generation

    def place_output(self, lane: Lane, name: str) -> None:
        """Give an output its memory; where its size depends on the data, an allocator that is asked in the run."""
        shape = tuple(lane.context.get_tensor_shape(name))
        if -1 not in shape:
            lane.outputs[name] = shape
            lane.context.set_tensor_address(name, self.device.reserve(name, self.outputs[name].nbytes(shape)))
        elif (lane.index, name) not in self.allocators:
            allocator = make_allocator(self.trt, self.device, name)
            lane.context.set_output_allocator(name, allocator)
            self.allocators[lane.index, name] = allocator

    def send(self, group: list[Pending]) -> dict[str, int]:
        """Bring every request's tensors to their place in the device buffers; return where each input is then."""
        places = {}
        for name in self.sized:
            first = group[0].inputs[name]
            if len(group) == 1 and first.gpu == self.gpu and first.nbytes and not first.address % ALIGNMENT:
                places[name] = first.address
                continue
            places[name] = target = self.device.addresses[name]
            for pending in group:
                source = pending.inputs[name]
                self.copy_in(target, source)
                target += source.nbytes
        return places

    def copy_in(self, target: int, source: Source) -> None:
        if not source.nbytes:
            return
        if source.gpu is not None:
            kind, address = self.cuda.within_device, source.address
        elif self.shared.holds(source.address, source.nbytes):
            kind, address = self.cuda.to_device, source.address
        else:
            kind, address = self.cuda.to_device, self.pinned.take(source.nbytes)
            ctypes.memmove(address, source.address, source.nbytes)
        self.cuda("cudaMemcpyAsync", target, address, source.nbytes, kind, self.stream)

    def compute(self, lane: Lane) -> None:
        batch = next(iter(lane.shapes.values()))[0] if self.batching else 0
        graph = self.graph_of(lane) if batch in self.graph_sizes and not self.allocators else None
        if graph is None:
            self.enqueue(lane)
        else:
            self.cuda("cudaGraphLaunch", graph, self.stream)

    def enqueue(self, lane: Lane) -> None:
        if not lane.context.execute_async_v3(self.stream):
            raise EngineError(f"the engine failed to run: {self.last_error()}")

    def graph_of(self, lane: Lane) -> Any:
        """The graph of what ``lane`` has, captured when its shapes and places are first met; None if there is none."""
        key = (*lane.shapes.items(), *lane.places.items())
        if key not in lane.graphs and len(lane.graphs) < MOST_GRAPHS:
            lane.graphs[key] = self.capture(lane)
        return lane.graphs.get(key)

    def capture(self, lane: Lane) -> Any:
        """Capture a run, or tell Triton's log why it can't be: an engine may do what no graph holds."""
        self.enqueue(lane)  # TensorRT wants one run of a shape before its capture
        self.wait()
        mode = self.cuda.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.cuda("cudaStreamBeginCapture", self.stream, mode)
        enqueued = lane.context.execute_async_v3(self.stream)
        try:
            captured = self.cuda("cudaStreamEndCapture", self.stream)
            graph = self.cuda("cudaGraphInstantiate", captured, 0) if enqueued else None
            self.cuda("cudaGraphDestroy", captured)
        except CudaError as error:
            graph, why = None, str(error)
        else:
            why = self.last_error()
        if graph is None:
            pb_utils.Logger.log_warn(f"launched layer by layer, as no CUDA graph of {lane.shapes} can be made: {why}")
        return graph

    def drop_graphs(self, lane: Lane) -> None:
        for graph in lane.graphs.values():
            if graph is not None:
                self.cuda("cudaGraphExecDestroy", graph)
        lane.graphs = {}

    def fetch(self, lane: Lane, names: list[str]) -> dict[str, Array]:
        """Send the outputs on their way back."""
        if self.allocators:
            self.wait()  # sizes that depend on the data are known then
        results = {}
        for name in names:
            port = self.outputs[name]
            allocator = self.allocators.get((lane.index, name))
            shape = allocator.shape if allocator else lane.outputs[name]
            nbytes = port.nbytes(shape)
            address = self.pinned.take(nbytes)
            if nbytes:
                source = self.device.addresses[name]
                self.cuda("cudaMemcpyAsync", address, source, nbytes, self.cuda.to_host, self.stream)
            results[name] = array_at(address, port.dtype, shape)
        return results

    def last_error(self) -> str:
        return self.logger.errors[-1] if self.logger.errors else "it gave no reason"


def source_of(tensor: Any, port: EnginePort) -> Source:
    """Find the tensor where Triton put it: what ``as_numpy`` gives is a copy."""
    if port.values and not tensor.is_cpu():
        raise RequestError(f"input {port.name!r} holds sizes, which are needed in the memory of the CPU")
    capsule = tensor.to_dlpack()
    shape = tuple(tensor.shape())
    gpu = None if tensor.is_cpu() else device_in(capsule)
    return Source(address_in(capsule), shape, port.nbytes(shape), gpu, (tensor, capsule))


def make_allocator(trt: Any, memory: DeviceMemory, output: str) -> Any:
    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.shape: tuple[int, ...] = ()

        def reallocate_output(self, name: str, current: int, size: int, alignment: int) -> int:  # noqa: ARG002
            return memory.reserve(output, size)

        def reallocate_output_async(self, name: str, current: int, size: int, *_: int) -> int:  # noqa: ARG002
            return memory.reserve(output, size)

        def notify_shape(self, name: str, shape: Any) -> None:  # noqa: ARG002
            self.shape = tuple(shape)

    return Allocator()
