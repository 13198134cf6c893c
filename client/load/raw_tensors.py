"""Tensors as the bytes that gRPC and shared memory have of them."""

from __future__ import annotations

import math
from struct import Struct
from typing import Final

import numpy as np
from tritonclient.utils import serialize_byte_tensor

from client.errors import BadResponse
from client.tensors import BYTES, Array, numpy_dtype

_LENGTH: Final = Struct("<I")


def tensor_bytes(datatype: str, array: Array) -> bytes:
    """The elements in C order; each of BYTES behind its length, 4 bytes little-endian."""
    if datatype != BYTES or not array.size:
        return array.tobytes()
    return bytes(serialize_byte_tensor(array).item())


def array_from_bytes(datatype: str, shape: tuple[int, ...], data: bytes, *, exact: bool = True) -> Array:
    """The array that begins with ``data``; with ``exact`` it must end there, too.  BadResponse if it can't be."""
    count = math.prod(shape)
    if min(shape, default=0) < 0:
        raise BadResponse(f"the server's answer has the impossible shape {list(shape)}")
    dtype = numpy_dtype(datatype)
    if datatype == BYTES:
        elements, size = _elements(data, count)
    else:
        elements, size = [], count * dtype.itemsize
    if size > len(data) or (exact and size < len(data)):
        raise BadResponse(f"the server's answer has {len(data)} bytes for {datatype} {list(shape)}")
    if datatype == BYTES:
        array = np.empty(count, np.object_)
        array[:] = elements
        return array.reshape(shape)
    return np.frombuffer(data[:size], dtype).reshape(shape)


def _elements(data: bytes, count: int) -> tuple[list[bytes], int]:
    """The first ``count`` elements of BYTES, and where they end: beyond ``data`` if there are not so many."""
    elements: list[bytes] = []
    at = 0
    while len(elements) < count:
        if at + _LENGTH.size > len(data):
            return elements, len(data) + 1
        (length,) = _LENGTH.unpack_from(data, at)
        start = at + _LENGTH.size
        at = start + length
        elements.append(data[start:at])
    return elements, at
