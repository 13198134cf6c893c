"""The CUDA runtime through NVIDIA's cuda-python: devices, streams and memory, with errors as exceptions."""

from __future__ import annotations

import contextlib
import importlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repo_builder.errors import CompileError, MissingExtraError

if TYPE_CHECKING:
    import numpy.typing as npt

ALIGNMENT = 256
"""Bytes, of the addresses of tensors (IExecutionContext::setTensorAddress in TensorRT's NvInferRuntime.h)."""


class CudaError(Exception):
    """A CUDA call failed; the message is CUDA's name for what went wrong."""


@dataclass(frozen=True)
class Gpu:
    """A GPU; versions are ``major.minor`` of what the driver supports, ``driver`` its own, if it can be read."""

    name: str
    compute_capability: str
    memory_bytes: int
    cuda: str
    driver: str | None


@cache
def runtime() -> Any:
    """The module of the CUDA runtime's functions.

    Raises:
        MissingExtraError: cuda-python is not installed.
    """
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise MissingExtraError("tensorrt", "cuda-python")


def call(function: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime and return its results without the error code.

    Raises:
        CudaError: the call failed.
    """
    error, *results = getattr(runtime(), function)(*arguments)
    if error.value:
        raise CudaError(error.name)
    return results[0] if len(results) == 1 else tuple(results)


def why_unusable() -> str | None:
    """CUDA's name for why it can't work on the GPU, such as that no memory is left there; None if it can."""
    try:
        call("cudaFree", 0)  # which does nothing but what every first call does: set up this process's context
    except CudaError as error:
        return str(error)
    except (RuntimeError, MissingExtraError):
        return None
    return None


@cache
def find_gpu() -> Gpu | None:
    """The first GPU that CUDA shows, None without one or without a driver."""
    try:
        if not call("cudaGetDeviceCount"):
            return None
        properties = call("cudaGetDeviceProperties", 0)
        version = call("cudaDriverGetVersion")
    except (CudaError, RuntimeError):  # RuntimeError: cuda-python finds no driver library
        return None
    return Gpu(
        properties.name.decode().rstrip("\0"),
        f"{properties.major}.{properties.minor}",
        properties.totalGlobalMem,
        f"{version // 1000}.{version % 1000 // 10}",
        _driver_version(),
    )


def require_gpu(purpose: str) -> Gpu:
    """The GPU; raises CompileError saying what it is needed for."""
    gpu = find_gpu()
    if gpu is None:
        raise CompileError(
            f"{purpose} needs an NVIDIA GPU, and CUDA finds none here",
            "run it on a machine with a GPU and its driver; --target tensorrt-rtx builds without one, "
            "add --target onnxruntime serves on the CPU",
        )
    return gpu


def _driver_version() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", text)
    return found[1] if found else None


class DeviceBuffer:
    """Memory on the GPU that grows when more is asked of it, freed with the object."""

    def __init__(self) -> None:
        self.address = 0
        self.size = 0

    def reserve(self, size: int) -> int:
        """Return the address of at least ``size`` bytes; what was in there is lost when it grows."""
        if size > self.size or not self.address:
            self.free()
            self.address = call("cudaMalloc", max(size, 1))
            self.size = size
        return self.address

    def free(self) -> None:
        if self.address:
            call("cudaFree", self.address)
            self.address = self.size = 0

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at exit CUDA may be gone already, and the memory with it
            self.free()


def aligned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy of ``array`` at an address that TensorRT takes."""
    import numpy as np

    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def copy_to_device(address: int, array: npt.NDArray[Any], stream: int) -> None:
    kind = runtime().cudaMemcpyKind.cudaMemcpyHostToDevice
    call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, stream)


def copy_to_host(array: npt.NDArray[Any], address: int, stream: int) -> None:
    kind = runtime().cudaMemcpyKind.cudaMemcpyDeviceToHost
    call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, stream)
