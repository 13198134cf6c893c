"""Whether values fit half precision, as far as the operators that make them tell."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

WIDENS = frozenset({
    "CumSum", "Exp", "Pow", "Range", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceSum", "ReduceSumSquare",
})  # fmt: skip
"""What they make may be out of range, or counts beyond what half precision tells apart, whatever they read."""
CARRIES = frozenset({
    "Abs", "Add", "AveragePool", "Ceil", "Concat", "ConstantOfShape", "Expand", "Flatten", "Floor", "Gather",
    "GatherElements", "GatherND", "GlobalAveragePool", "GlobalMaxPool", "Identity", "LeakyRelu", "Max", "MaxPool",
    "Mean", "Min", "Mul", "Neg", "Pad", "ReduceMax", "ReduceMean", "ReduceMin", "Relu", "Reshape", "Round",
    "ScatterElements", "ScatterND", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tile", "Transpose", "Trilu",
    "Unsqueeze", "Where",
})  # fmt: skip

_FP16_MAX = 65504.0


class Range(Enum):
    """Of a tensor's magnitudes: in half's range, perhaps above it, perhaps below it (one over something wide)."""

    FITS = auto()
    WIDE = auto()
    TINY = auto()


_INVERSE = {Range.FITS: Range.FITS, Range.WIDE: Range.TINY, Range.TINY: Range.WIDE}


def squares(node: onnx.NodeProto) -> bool:
    """Whether it raises to the second power without saying Pow."""
    return node.op_type == "Mul" and len(set(node.input)) == 1


def range_made(node: onnx.NodeProto, read: Sequence[Range], *, of_constant: bool) -> Range:
    """What ``node`` makes of inputs of these ranges; ``of_constant`` when the first of them is a constant.

    What is divided by something wide, or multiplied by one over it, is in range again: that is how values are
    normalised.
    """
    match node.op_type:
        case "Div" if read[1] is not Range.FITS:
            return _INVERSE[read[1]] if of_constant else Range.FITS
        case "Div":
            return read[0]
        case "Reciprocal":
            return _INVERSE[read[0]]
        case "Mul" if Range.TINY in read:
            return Range.FITS
        case "Clip":
            return Range.FITS if _limited(node, read) else read[0]
        case operator if operator in WIDENS or squares(node):
            return Range.WIDE
        case operator if operator in CARRIES:
            return next((kind for kind in (Range.WIDE, Range.TINY) if kind in read), Range.FITS)
    return Range.FITS


def _limited(node: onnx.NodeProto, read: Sequence[Range]) -> bool:
    """Whether a Clip has an upper bound in range; up to opset 10 it is an attribute."""
    if len(node.input) > 2 and node.input[2]:
        return read[2] is Range.FITS
    return any(entry.name == "max" and entry.f <= _FP16_MAX for entry in node.attribute)
