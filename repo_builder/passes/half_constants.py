"""FP32 constants in half precision: whether they fit, and what becomes of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from repo_builder.model import DataType
from repo_builder.passes.ranges import Numbers, Range

if TYPE_CHECKING:
    import onnx

_SMALLEST_NORMAL = {DataType.FP16: 2.0**-14, DataType.BF16: 2.0**-126}


def numbers_of(tensor: onnx.TensorProto, half: DataType) -> Numbers:
    """What ``half`` is to know of a constant; of one that is not FP32, that it is one."""
    if tensor.data_type != DataType.FP32.onnx:
        return Numbers(constant=True)
    kind = Range.WIDE if not fits_range(tensor, half) else Range.TINY if vanishes(tensor, half) else Range.FITS
    return Numbers(kind, constant=True, value=_as_number(tensor))


def fits_range(tensor: onnx.TensorProto, half: DataType) -> bool:
    """Whether every finite element stays finite in ``half``."""
    import numpy as np
    from onnx import numpy_helper

    if half is DataType.BF16:
        return True
    array = numpy_helper.to_array(tensor)
    finite = array[np.isfinite(array)]
    return bool(np.abs(finite).max(initial=0.0) <= float(np.finfo(np.float16).max))


def vanishes(tensor: onnx.TensorProto, half: DataType) -> bool:
    """Whether a single number is too small for ``half`` to hold well, or all of a tensor would become 0."""
    import numpy as np
    from onnx import numpy_helper

    magnitudes = np.abs(numpy_helper.to_array(tensor))
    largest = float(magnitudes[np.isfinite(magnitudes)].max(initial=0.0))
    limit = _SMALLEST_NORMAL[half] if magnitudes.size == 1 else _SMALLEST_NORMAL[half] * 2.0**-10
    return 0.0 < largest < limit


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


def _as_number(tensor: onnx.TensorProto) -> float | None:
    """The value of a tensor with one element."""
    from onnx import numpy_helper

    return float(numpy_helper.to_array(tensor).item()) if math.prod(tensor.dims) == 1 else None
