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

FP16_MAX = 65504.0


class Range(Enum):
    """Of a tensor's magnitudes: in half's range, perhaps above it, perhaps below it (one over something wide)."""

    FITS = auto()
    WIDE = auto()
    TINY = auto()


_INVERSE = {Range.FITS: Range.FITS, Range.WIDE: Range.TINY, Range.TINY: Range.WIDE}


def squares(node: onnx.NodeProto) -> bool:
    """Whether it raises to the second power without saying Pow."""
    return node.op_type == "Mul" and len(set(node.input)) == 1


def range_made(
    node: onnx.NodeProto, read: Sequence[Range], *, of_constant: bool, exponent: float | None = None
) -> Range:
    """What ``node`` makes of inputs of these ranges.

    What is divided by something wide, or multiplied by one over it, is in range again: that is how values are
    normalised.  So are roots: that of FP16's largest number squared is FP16's largest number.

    Args:
        node: any node.
        read: the ranges of all its inputs.
        of_constant: its first input is a constant.
        exponent: its second input where that is a constant number, for Pow.
    """
    match node.op_type:
        case "Pow" if exponent is not None and 0 < abs(exponent) <= 0.5:
            return Range.FITS if exponent > 0 else Range.TINY
        case "Div" if read[1] is Range.FITS:
            return read[0]
        case "Div" | "Reciprocal":
            return _INVERSE[read[-1]] if of_constant or node.op_type == "Reciprocal" else Range.FITS
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
    return any(entry.name == "max" and entry.f <= FP16_MAX for entry in node.attribute)
