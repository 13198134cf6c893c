"""FP32 constants in half precision: whether they fit, and what becomes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from repo_builder.model import DataType
from repo_builder.passes.ranges import FP16_MAX, Numbers, Range

if TYPE_CHECKING:
    import onnx

_SMALLEST_NORMAL = {DataType.FP16: 2.0**-14, DataType.BF16: 2.0**-126}


def numbers_of(tensor: onnx.TensorProto, half: DataType) -> Numbers:
    """What ``half`` is to know of a constant; of one that is not FP32, that it is one.

    It is wide where a finite element becomes infinite, and tiny where all of it becomes 0; a single number is that
    already where ``half`` does not hold it well.
    """
    import numpy as np
    from onnx import numpy_helper

    if tensor.data_type != DataType.FP32.onnx:
        return Numbers(constant=True)
    array = numpy_helper.to_array(tensor)
    single = array.size == 1
    largest = float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
    if half is DataType.FP16 and largest > FP16_MAX:
        kind = Range.WIDE
    elif 0.0 < largest < _SMALLEST_NORMAL[half] * (1 if single else 2.0**-10):
        kind = Range.TINY
    else:
        kind = Range.FITS
    return Numbers(kind, constant=True, value=float(array.item()) if single else None)


def as_half(tensor: onnx.TensorProto, name: str, half: DataType) -> onnx.TensorProto:
    """The constant in ``half`` under another name; finite numbers beyond its largest become that.

    BF16's largest is 3.39e38: the -3.4e38 of a mask times 0 would be NaN else.
    """
    import ml_dtypes
    import numpy as np
    from onnx import helper, numpy_helper

    dtype = half.numpy_dtype()
    array = numpy_helper.to_array(tensor)
    limit = np.float32(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
    array = np.where(np.isfinite(array), np.clip(array, -limit, limit), array)
    return helper.make_tensor(name, half.onnx, tensor.dims, array.astype(dtype).tobytes(), raw=True)
