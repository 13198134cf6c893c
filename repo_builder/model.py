"""What a model's inputs and outputs are: the dtype table and the specs that every stage passes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Axis = int | str | None
"""One axis of a shape: a fixed size, a symbol that names a free size, or None for a free size without a name."""


class DataType(Enum):
    """The tensor types that Triton has, with ONNX's and NumPy's names for them.

    The value is Triton's name as in ``TYPE_<value>`` of config.pbtxt.  ``onnx`` is the number in
    ``onnx.TensorProto.DataType``; ``numpy`` the dtype's name (bfloat16 is ml_dtypes').
    Source: Triton's model_configuration.md, section Datatypes.
    """

    onnx: int
    numpy: str

    BOOL = "BOOL", 9, "bool"
    UINT8 = "UINT8", 2, "uint8"
    UINT16 = "UINT16", 4, "uint16"
    UINT32 = "UINT32", 12, "uint32"
    UINT64 = "UINT64", 13, "uint64"
    INT8 = "INT8", 3, "int8"
    INT16 = "INT16", 5, "int16"
    INT32 = "INT32", 6, "int32"
    INT64 = "INT64", 7, "int64"
    FP16 = "FP16", 10, "float16"
    FP32 = "FP32", 1, "float32"
    FP64 = "FP64", 11, "float64"
    STRING = "STRING", 8, "object"
    BF16 = "BF16", 16, "bfloat16"

    def __new__(cls, value: str, onnx: int, numpy: str) -> DataType:
        member = object.__new__(cls)
        member._value_ = value
        member.onnx = onnx
        member.numpy = numpy
        return member

    @classmethod
    def from_onnx(cls, number: int) -> DataType | None:
        """The type with this ``TensorProto.DataType`` number, None if Triton has none."""
        return next((member for member in cls if member.onnx == number), None)

    @property
    def config_name(self) -> str:
        """The name in config.pbtxt, such as ``TYPE_FP32``."""
        return f"TYPE_{self.value}"

    @property
    def is_float(self) -> bool:
        return self in {DataType.FP16, DataType.FP32, DataType.FP64, DataType.BF16}

    def numpy_dtype(self) -> np.dtype[Any]:
        import numpy as np

        if self is DataType.BF16:
            import ml_dtypes

            return np.dtype(ml_dtypes.bfloat16)
        return np.dtype(self.numpy)


def refit(shape: Sequence[int], have: Sequence[int], want: Sequence[int]) -> tuple[int, ...]:
    """``shape``, of the dims ``have``, in the dims ``want`` as Triton's ``reshape`` brings it there.

    Free sizes, -1 in the dims, keep their order; one that is left over is 1.
    """
    free = iter([size for size, axis in zip(shape, have, strict=False) if axis < 0])
    return tuple(next(free, 1) if axis < 0 else axis for axis in want)


@dataclass(frozen=True)
class TensorSpec:
    """An input or output.  ``shape`` has every axis, the batch too; None when even the rank is unknown."""

    name: str
    dtype: DataType
    shape: tuple[Axis, ...] | None

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape with -1 for every free axis, as Triton and ONNX Runtime count.

        Raises:
            ValueError: the rank is unknown.
        """
        if self.shape is None:
            raise ValueError(f"the rank of {self.name!r} is unknown")
        return tuple(axis if isinstance(axis, int) else -1 for axis in self.shape)

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.name} {self.dtype.value} [unknown rank]"
        return f"{self.name} {self.dtype.value} [{', '.join('?' if a is None else str(a) for a in self.shape)}]"


@dataclass(frozen=True)
class ModelSpec:
    """What an ONNX file says of itself.  ``external_files`` are relative to the file's folder."""

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    external_files: tuple[Path, ...]
    ir_version: int
    opset: int
