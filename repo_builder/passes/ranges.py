"""Whether values fit half precision, as far as the operators that make them tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    "ScatterElements", "ScatterND", "Slice", "Split", "Squeeze", "Sub", "Sum", "Tile", "Transpose", "Trilu",
    "Unsqueeze", "Where",
})  # fmt: skip

FP16_MAX = 65504.0


class Range(Enum):
    """Of a tensor's magnitudes: in half's range, perhaps above it, perhaps below it (one over something wide).

    WHOLE are integers as they were cast: perhaps above the range, and exact in FP32 alone, but their roots fit.
    """

    FITS = auto()
    WIDE = auto()
    WHOLE = auto()
    TINY = auto()


@dataclass(frozen=True)
class Numbers:
    """What is known of a tensor's numbers.

    ``value`` where it is one constant number; ``addends`` where it is a sum: of how many numbers in range, else 0.
    """

    range: Range = Range.FITS
    constant: bool = False
    value: float | None = None
    addends: int = 0


_INVERSE = {Range.FITS: Range.FITS, Range.WIDE: Range.TINY, Range.TINY: Range.WIDE}


def operator_of(node: onnx.NodeProto) -> str:
    """ONNX's own operators by name, those of other domains with theirs: they may share a name and nothing else."""
    return node.op_type if node.domain in {"", "ai.onnx"} else f"{node.domain}.{node.op_type}"


def squares(node: onnx.NodeProto) -> bool:
    """Whether it raises to the second power without saying Pow."""
    return operator_of(node) == "Mul" and len(set(node.input)) == 1


def range_made(node: onnx.NodeProto, read: Sequence[Numbers]) -> Range:
    """What ``node``, which is no Cast, makes of inputs of which this is known.

    What is divided by something wide, or multiplied by one over it, is in range again: that is how values are
    normalised.  So is a sum over the number of its addends, a mean.
    """
    operator = operator_of(node)
    exponent = 0.5 if operator == "Sqrt" else read[1].value if operator == "Pow" else None
    if exponent and abs(exponent) <= 0.5:
        root = Range.FITS if read[0].range is Range.WHOLE else read[0].range
        return root if exponent > 0 else _INVERSE[root]
    kinds = [Range.WIDE if numbers.range is Range.WHOLE else numbers.range for numbers in read]
    match operator:
        case _ if operator in WIDENS or squares(node):
            return Range.WIDE
        case "Mul" if Range.TINY in kinds or _is_mean(read[0], read[1].value) or _is_mean(read[1], read[0].value):
            return Range.FITS
        case "Div":
            return _quotient(read, kinds)
        case "Reciprocal":
            return _INVERSE[kinds[0]]
        case "Clip":
            return Range.FITS if _limited(node, kinds) else kinds[0]
        case _ if operator in CARRIES:
            return next((kind for kind in (Range.WIDE, Range.TINY) if kind in kinds), Range.FITS)
    return Range.FITS


def _is_mean(total: Numbers, share: float | None) -> bool:
    """Whether this share of a sum, as 1 / n, is no larger than the numbers that it adds."""
    return share is not None and 0 < total.addends * abs(share) <= 1 + 1e-6  # 1 / n is rounded


def _quotient(read: Sequence[Numbers], kinds: Sequence[Range]) -> Range:
    divisor = read[1].value
    if divisor and _is_mean(read[0], 1 / divisor):
        return Range.FITS
    if kinds[1] is Range.FITS:
        return kinds[0]
    return _INVERSE[kinds[1]] if read[0].constant else Range.FITS


def _limited(node: onnx.NodeProto, kinds: Sequence[Range]) -> bool:
    """Whether a Clip has an upper bound in range; up to opset 10 it is an attribute."""
    if len(node.input) > 2 and node.input[2]:
        return kinds[2] is Range.FITS
    return any(entry.name == "max" and entry.f <= FP16_MAX for entry in node.attribute)
