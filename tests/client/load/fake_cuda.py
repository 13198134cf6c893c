"""A fake of the CUDA runtime: files in /dev/shm are its GPU's memory, which other processes can open by a handle.

What it has of CUDA is who may do what: addresses of the GPU's memory are none of the host's, copies have a direction,
no process opens its own handles, and a process sees what another one wrote.  There are 64 MiB of memory.  It breaks
after as many reads of a process as ``FAKE_CUDA_READS`` says, if it says any.
"""

# ruff: noqa: N801, N802, N815, N816  (the names are CUDA's)
from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

import pytest

FOLDER = Path("/dev/shm")
CUDA_IPC_HANDLE_SIZE = 64
cudaIpcMemLazyEnablePeerAccess = 1
_DEVICE = 1 << 60  # added to the addresses of the GPU's memory: whoever uses one without CUDA crashes
MEMORY = 64 << 20
_KEY = struct.Struct("<II")

_numbers = itertools.count()
_reads = itertools.count()
_blocks: dict[int, tuple[mmap.mmap, Path | None]] = {}


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInvalidMemcpyDirection = 21
    cudaErrorDeviceUninitialized = 201
    cudaErrorIllegalAddress = 700


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaIpcMemHandle_t:
    def __init__(self) -> None:
        self.data = ctypes.create_string_buffer(CUDA_IPC_HANDLE_SIZE)

    def getPtr(self) -> int:
        return ctypes.addressof(self.data)


def _file(pid: int, number: int) -> Path:
    return FOLDER / f"{os.environ['FAKE_CUDA_FILES']}-{pid}-{number}"


def file_of(handle: bytes) -> str:
    """The name of the file that a handle stands for."""
    return _file(*_KEY.unpack_from(handle)).name


def _map(path: Path, owner: Path | None) -> int:
    with path.open("r+b") as file:
        block = mmap.mmap(file.fileno(), 0)
    address = ctypes.addressof(ctypes.c_char.from_buffer(block)) + _DEVICE
    _blocks[address] = block, owner
    return address


def cudaGetDeviceCount() -> tuple[cudaError_t, int]:
    return cudaError_t.cudaSuccess, 1


def cudaGetDevice() -> tuple[cudaError_t, int]:
    return cudaError_t.cudaSuccess, 0


def cudaSetDevice(device: int) -> tuple[cudaError_t]:
    return (cudaError_t.cudaErrorInvalidValue if device else cudaError_t.cudaSuccess,)


def cudaDeviceSynchronize() -> tuple[cudaError_t]:
    return (cudaError_t.cudaSuccess,)


def cudaMalloc(size: int) -> tuple[cudaError_t, int | None]:
    if size + sum(len(block) for block, _ in _blocks.values()) > MEMORY:
        return cudaError_t.cudaErrorMemoryAllocation, None
    path = _file(os.getpid(), next(_numbers))
    path.write_bytes(b"\xff" * size)
    return cudaError_t.cudaSuccess, _map(path, path)


def cudaFree(address: int) -> tuple[cudaError_t]:
    _, path = _blocks.pop(address)
    if path is None:
        return (cudaError_t.cudaErrorInvalidValue,)
    path.unlink()
    return (cudaError_t.cudaSuccess,)


def cudaMemcpy(target: int, source: int, size: int, kind: cudaMemcpyKind) -> tuple[cudaError_t]:
    upwards = kind is cudaMemcpyKind.cudaMemcpyHostToDevice
    if (target > _DEVICE, source > _DEVICE) != (upwards, not upwards):
        return (cudaError_t.cudaErrorInvalidMemcpyDirection,)
    at = target if upwards else source
    if not any(start <= at and at + size <= start + len(block) for start, (block, _) in _blocks.items()):
        return (cudaError_t.cudaErrorInvalidValue,)
    if not upwards and next(_reads) >= int(os.environ.get("FAKE_CUDA_READS", sys.maxsize)):
        return (cudaError_t.cudaErrorIllegalAddress,)
    ctypes.memmove(target % _DEVICE, source % _DEVICE, size)
    return (cudaError_t.cudaSuccess,)


def cudaIpcGetMemHandle(address: int) -> tuple[cudaError_t, cudaIpcMemHandle_t]:
    _, path = _blocks[address]
    assert path is not None
    handle = cudaIpcMemHandle_t()
    ctypes.memmove(handle.getPtr(), _KEY.pack(os.getpid(), int(path.name.rpartition("-")[2])), _KEY.size)
    return cudaError_t.cudaSuccess, handle


def cudaIpcOpenMemHandle(handle: cudaIpcMemHandle_t, _flags: int) -> tuple[cudaError_t, int | None]:
    pid, number = _KEY.unpack_from(handle.data.raw)
    if pid == os.getpid():
        return cudaError_t.cudaErrorDeviceUninitialized, None
    return cudaError_t.cudaSuccess, _map(_file(pid, number), None)


def files() -> list[Path]:
    """What is left of the GPU's memory."""
    return list(FOLDER.glob(f"{os.environ['FAKE_CUDA_FILES']}-*"))


@contextmanager
def installed(folder: Path) -> Iterator[None]:
    """Let this process and its children find the fake in the place of cuda-python; ``folder`` is for files of it."""
    package = folder / "cuda" / "bindings"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "runtime.py").write_text(f"from {__name__} import *\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{folder}:{Path(__file__).parents[3]}", prepend=os.pathsep)
        patch.setenv("FAKE_CUDA_FILES", f"fake-cuda-{os.getpid()}")  # others may test at the same time
        patch.setitem(sys.modules, "cuda.bindings.runtime", sys.modules[__name__])
        yield
        assert files() == []
