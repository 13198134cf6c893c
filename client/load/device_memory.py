"""Memory of a GPU that one process makes and others open by a handle (CUDA IPC), through NVIDIA's cuda-python.

``tritonclient.utils.cuda_shared_memory`` makes such memory but can't open it, as workers have to for reading answers:
CUDA opens a handle only in a process other than its maker's.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from client.errors import ClientError, UsageError
from client.load.records import DeviceRegions

_BLOCK: Final = 2 << 20
"""CUDA shares the whole block, of 2 MiB, that it cuts a smaller allocation from (CUDA C++ Programming Guide, IPC)."""


class CudaError(OSError):
    """A CUDA call failed; the message is the call and CUDA's name for what went wrong."""


def _runtime() -> Any:
    """The module of the CUDA runtime's functions."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        _require_driver()  # without a GPU the package would be of no use
        raise UsageError(
            f"--shared-memory cuda needs the package cuda-python, which can't be imported: {error}",
            "pip install 'repo-builder[cuda]'",
        ) from None


def _call(function: str, *arguments: Any) -> Any:
    try:
        error, *results = getattr(_runtime(), function)(*arguments)
    except RuntimeError as reason:  # cuda-python finds no driver, or one too old for the function
        raise CudaError(f"{function}: {reason}") from reason
    if error.value:
        raise CudaError(f"{function}: {error.name}")
    return results[0] if results else None


def require_device() -> int:
    """The GPU that CUDA takes here; ClientError without a GPU, UsageError without cuda-python."""
    try:
        _call("cudaGetDeviceCount")
        return int(_call("cudaGetDevice"))
    except CudaError as error:
        raise _no_gpu(str(error)) from None


def _require_driver() -> None:
    """ClientError unless NVIDIA's driver is there and has a GPU."""
    try:
        error = ctypes.CDLL("libcuda.so.1").cuInit(0)
    except OSError as reason:
        raise _no_gpu(str(reason)) from None
    if error:
        raise _no_gpu(f"cuInit: error {error}")


def _no_gpu(reason: str) -> ClientError:
    return ClientError(
        f"--shared-memory cuda needs an NVIDIA GPU, and CUDA finds none here ({reason})",
        "run it on the server's machine, with its GPU; --shared-memory system needs none",
    )


@contextlib.contextmanager
def device_memory(size: int, contents: Mapping[int, bytes]) -> Iterator[bytes]:
    """The handle of at least ``size`` bytes with ``contents`` by offset, which are freed in the end.

    Raises ClientError if they can't be had.
    """
    size = -(-size // _BLOCK) * _BLOCK
    try:
        address = int(_call("cudaMalloc", size))
    except CudaError as error:
        raise _no_memory(size, error) from None
    try:
        try:
            for offset, data in contents.items():
                source = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value
                to_device = _runtime().cudaMemcpyKind.cudaMemcpyHostToDevice
                _call("cudaMemcpy", address + offset, source, len(data), to_device)
            # A copy from ordinary memory may return while the last of it is on its way.
            _call("cudaDeviceSynchronize")
            handle = _call("cudaIpcGetMemHandle", address)
        except CudaError as error:
            raise _no_memory(size, error) from None
        yield ctypes.string_at(handle.getPtr(), _runtime().CUDA_IPC_HANDLE_SIZE)
    finally:
        with contextlib.suppress(CudaError):  # what a broken GPU holds ends with the process
            _call("cudaFree", address)


def _no_memory(size: int, error: CudaError) -> ClientError:
    return ClientError(
        f"{size / 2**20:,.1f} MiB of the GPU's memory can't be had and shared ({error})",
        "fewer --connections, a lower --concurrency or a smaller --batch takes less; --shared-memory system takes none",
    )


def open_regions(regions: DeviceRegions, numbers: Iterable[int]) -> Callable[[int], bytes]:
    """Open those regions of another process; the function reads one of them by its number.  CudaError if it can't.

    A worker that can't open them ends with the reason.
    """
    try:
        _call("cudaSetDevice", regions.device)
        addresses = {number: _open(regions.handles[number]) for number in numbers}
    except CudaError as error:
        raise SystemExit(f"a worker process can't open the memory of the GPU: {error}") from None
    buffer = ctypes.create_string_buffer(regions.size)
    to_host = _runtime().cudaMemcpyKind.cudaMemcpyDeviceToHost

    def read(number: int) -> bytes:
        _call("cudaMemcpy", ctypes.addressof(buffer), addresses[number], regions.size, to_host)
        return buffer.raw

    return read


def _open(data: bytes) -> int:
    handle = _runtime().cudaIpcMemHandle_t()
    ctypes.memmove(handle.getPtr(), data, len(data))
    return int(_call("cudaIpcOpenMemHandle", handle, _runtime().cudaIpcMemLazyEnablePeerAccess))
