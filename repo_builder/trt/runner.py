"""Running an engine on the GPU once, for verification: simple and right, not fast (the served way is the backend's)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from repo_builder.runtime import RunError
from repo_builder.trt.cuda import CudaError, DeviceBuffer, aligned, call, copy_to_device, copy_to_host
from repo_builder.trt.engine import EngineInfo
from repo_builder.trt.library import Library
from repo_builder.trt.profiles import find_profile

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from repo_builder.model import TensorSpec
    from repo_builder.runtime import Arrays


class EngineRunner:
    """Runs an engine with one context, on whichever of its profiles takes the shapes."""

    def __init__(self, library: Library, engine: Any, info: EngineInfo, errors: list[str]) -> None:
        self._library, self._engine, self._info, self._errors = library, engine, info, errors
        self._context: Any = None
        self._stream = 0
        self._buffers: dict[str, DeviceBuffer] = {}

    def run(self, arrays: Arrays) -> Arrays:
        """Run once on one array for each input, whose batch axes are part of their shapes.

        Raises:
            RunError: no profile takes the shapes, memory ran out, or TensorRT failed, with its last message.
        """
        try:
            return self._run(arrays)
        except CudaError as error:
            hint = "; a smaller --max-batch-size needs less" if "Memory" in str(error) else ""
            raise RunError(f"CUDA says {error}{hint}") from None

    def _run(self, arrays: Arrays) -> Arrays:
        feeds = {spec.name: _as_input(spec, arrays[spec.name]) for spec in self._info.inputs}
        feeds.update({name: aligned(feeds[name]) for name in self._info.shape_tensors})
        context = self._prepare(feeds)
        for name, array in feeds.items():
            if name in self._info.shape_tensors:
                context.set_tensor_address(name, array.ctypes.data)
                continue
            address = self._buffer(name).reserve(array.nbytes)
            copy_to_device(address, array, self._stream)
            if not context.set_input_shape(name, array.shape):
                raise self._failure(f"refuses shape {list(array.shape)} for {name!r}")
            context.set_tensor_address(name, address)
        allocators = {spec.name: self._place_output(spec) for spec in self._info.outputs}
        if not context.execute_async_v3(self._stream):
            raise self._failure("failed to run")
        results = {spec.name: self._fetch(spec, allocators[spec.name]) for spec in self._info.outputs}
        call("cudaStreamSynchronize", self._stream)
        return results

    def _prepare(self, feeds: Arrays) -> Any:
        if self._context is None:
            self._stream = int(call("cudaStreamCreate"))
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise self._failure("can't make an execution context (is there memory left on the GPU?)")
        profile = self._profile_for(feeds)
        if self._context.active_optimization_profile != profile:
            self._context.set_optimization_profile_async(profile, self._stream)
            call("cudaStreamSynchronize", self._stream)
        return self._context

    def _profile_for(self, feeds: Arrays) -> int:
        values = self._info.shape_tensors
        asked = {
            name: tuple(array.ravel().tolist()) if name in values else array.shape for name, array in feeds.items()
        }
        index = find_profile(self._info.profiles, asked)
        if index is not None:
            return index
        raise RunError("no profile of the engine takes " + ", ".join(f"{name} {list(n)}" for name, n in asked.items()))

    def _buffer(self, name: str) -> DeviceBuffer:
        return self._buffers.setdefault(name, DeviceBuffer())

    def _place_output(self, spec: TensorSpec) -> Any:
        """Give an output its memory; where its size depends on the data, an allocator that is asked during the run."""
        shape = tuple(self._context.get_tensor_shape(spec.name))
        buffer = self._buffer(spec.name)
        if -1 in shape:
            allocator = _make_allocator(self._library, buffer)
            self._context.set_output_allocator(spec.name, allocator)
            return allocator
        size = math.prod(shape) * spec.dtype.numpy_dtype().itemsize
        self._context.set_tensor_address(spec.name, buffer.reserve(size))
        return None

    def _fetch(self, spec: TensorSpec, allocator: Any) -> npt.NDArray[np.generic]:
        import numpy as np

        if allocator is not None:
            call("cudaStreamSynchronize", self._stream)  # the shape is known once the engine is through
        shape = allocator.shape if allocator is not None else tuple(self._context.get_tensor_shape(spec.name))
        array = np.empty(shape, spec.dtype.numpy_dtype())
        if array.nbytes:
            copy_to_host(array, self._buffer(spec.name).address, self._stream)
        return array

    def _failure(self, what: str) -> RunError:
        said = f": {self._errors[-1]}" if self._errors else ""
        return RunError(f"the engine {what}{said}")


def _as_input(spec: TensorSpec, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """``array`` in the engine's type: TensorRT before 10 turns INT64 into INT32, half inputs were asked for.

    Raises:
        RunError: integers do not fit.
    """
    import numpy as np

    wanted = spec.dtype.numpy_dtype()
    converted = np.asarray(array, wanted, order="C")  # unlike ascontiguousarray it keeps scalars scalars
    if array.dtype.kind in "iu" and wanted.kind in "iu" and not np.array_equal(converted, array):
        raise RunError(f"input {spec.name!r} has values that do not fit {spec.dtype.value}, which the engine takes")
    return converted


def _make_allocator(library: Library, buffer: DeviceBuffer) -> Any:
    trt = library.module

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.shape: tuple[int, ...] = ()

        def reallocate_output(self, name: str, memory: int, size: int, alignment: int) -> int:  # noqa: ARG002
            return buffer.reserve(size)

        def reallocate_output_async(self, name: str, memory: int, size: int, alignment: int, stream: int) -> int:  # noqa: ARG002
            return buffer.reserve(size)

        def notify_shape(self, name: str, shape: Any) -> None:  # noqa: ARG002
            self.shape = tuple(shape)

    return Allocator()
