"""Triton's datatypes and NumPy's."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from client.errors import BadResponse, InputError

Array: TypeAlias = npt.NDArray[Any]

BYTES: Final = "BYTES"
BF16: Final = "BF16"
_NATIVE: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    BYTES: np.dtype(np.object_),
}


def numpy_dtype(datatype: str) -> np.dtype[Any]:
    """NumPy's dtype of a Triton datatype: ``object`` for BYTES, ``ml_dtypes.bfloat16`` for BF16."""
    if datatype == BF16:
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    try:
        return _NATIVE[datatype]
    except KeyError:
        raise BadResponse(f"the server names an unknown datatype, {datatype!r}") from None


def as_tensor(value: npt.ArrayLike, datatype: str) -> Array:
    """``value`` as an array of exactly ``datatype``, or :class:`InputError`.

    Arrays are taken as they are: a wrong dtype is an error, never a silent cast, with two exceptions: text
    (``str``, ``bytes``, NumPy's ``U`` and ``S``) becomes BYTES, and float32 is rounded to BF16.  Python
    numbers and lists, which have no dtype of their own, take the model's.
    """
    wanted = numpy_dtype(datatype)
    if not isinstance(value, np.ndarray | np.generic):
        try:
            return np.asarray(value, dtype=wanted)
        except (TypeError, ValueError, OverflowError) as error:
            hint = "np.array(values, dtype) shows which of them can't"
            raise InputError(f"the values can't be {datatype}: {error}", hint) from None
    array = np.asarray(value)
    if datatype == BYTES and array.dtype.kind in "SUO":
        return array.astype(np.object_)
    if array.dtype.newbyteorder("=") == wanted:
        return array.astype(wanted, copy=False)
    if datatype == BF16 and array.dtype == np.float32:
        return array.astype(wanted)
    kind = "text" if array.dtype.kind in "SU" else array.dtype.name
    dtype = {BYTES: "np.str_", BF16: "np.float32"}.get(datatype, f"np.{wanted}")
    raise InputError(f"the array is {kind} {list(array.shape)}", f"cast it first: array.astype({dtype})")
