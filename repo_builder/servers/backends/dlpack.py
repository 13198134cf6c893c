"""Tensors where they are: their addresses in and out of Triton's objects, and bfloat16, which NumPy doesn't have."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

Array = npt.NDArray[Any]


class DLTensor(ctypes.Structure):
    """What a DLPack capsule's pointer leads to (https://dmlc.github.io/dlpack/latest/c_api.html)."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype_code", ctypes.c_uint8),
        ("dtype_bits", ctypes.c_uint8),
        ("dtype_lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


BFLOAT = 4  # DLDataTypeCode.kDLBfloat
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_set_capsule_name = ctypes.pythonapi.PyCapsule_SetName
_set_capsule_name.argtypes = [ctypes.py_object, ctypes.c_char_p]


def _tensor_in(capsule: Any) -> DLTensor:
    return DLTensor.from_address(_capsule_pointer(capsule, b"dltensor"))


def address_in(capsule: Any) -> int:
    """Return where the values of a capsule's tensor are, in host or device memory."""
    tensor = _tensor_in(capsule)
    return (tensor.data or 0) + int(tensor.byte_offset)


def device_in(capsule: Any) -> int:
    """Return the number of the GPU in whose memory a capsule's tensor is."""
    return int(_tensor_in(capsule).device_id)


def array_at(address: int, dtype: npt.DTypeLike, shape: Sequence[int]) -> Array:
    """Return the values at a host ``address`` as an array that doesn't own its memory."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    if not nbytes:
        return np.empty(shape, dtype)
    return np.frombuffer(memoryview((ctypes.c_uint8 * nbytes).from_address(address)), dtype).reshape(shape)


def bfloat16_tensor(name: str, bits: Array) -> Any:
    """Return Triton's tensor of the bfloat16 values whose 16 bits are those of a uint16 array."""
    capsule = bits.__dlpack__()
    _tensor_in(capsule).dtype_code = BFLOAT
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    # Triton frees what it took but renames the capsule in its own way; under DLPack's name NumPy leaves it alone.
    _set_capsule_name(capsule, b"used_dltensor")
    return tensor
