"""The memory that a model's tensors pass through: on the GPU, pinned, and shared with Triton."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

ALIGNMENT = 256


class CudaError(Exception):
    """A CUDA call failed."""


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
        if error:
            self.api.cudaGetLastError()  # it would stay, for TensorRT to find after a launch of its own
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
        for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
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
    """A buffer on the GPU for each tensor, which grows when needed; ``generation`` counts how often one moved."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.addresses: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        self.generation = 0

    def reserve(self, name: str, nbytes: int) -> int:
        """Return the address of a tensor's buffer, which has room for ``nbytes``."""
        if nbytes > self.sizes.get(name, -1):
            self.generation += 1  # now: the address is gone even if there is no memory for another
            if self.sizes.pop(name, None) is not None:
                self.cuda("cudaFree", self.addresses.pop(name))
            self.addresses[name] = int(self.cuda("cudaMalloc", max(nbytes, ALIGNMENT)))
            self.sizes[name] = nbytes
        return self.addresses[name]

    def free(self) -> None:
        for address in self.addresses.values():
            self.cuda("cudaFree", address)
        self.addresses, self.sizes = {}, {}
