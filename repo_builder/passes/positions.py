"""Positions at which a graph samples: half precision would move them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from repo_builder.model import DataType
from repo_builder.passes.ranges import operator_of

if TYPE_CHECKING:
    import onnx

_CALCULATES = frozenset({
    "Add", "Clip", "Concat", "Div", "Expand", "Gather", "Identity", "Mul", "Neg", "Reshape", "Slice", "Split",
    "Squeeze", "Sub", "Sum", "Tile", "Transpose", "Unsqueeze", "Where",
})  # fmt: skip
_WIDEST = {DataType.FP16: 256, DataType.BF16: 32}
"""Pixels: a position near the edge, 1 in GridSample's own measure, is rounded by at most 1/32 pixel then."""


def position_makers(graph: onnx.GraphProto) -> frozenset[str]:
    """First outputs of the nodes, sorted ones, that lead to positions to sample at by arithmetic and movement alone.

    Pixels are counted there, and flows are added up: FP16 tells 1000.25 and 1000 not apart.
    """
    positions: set[str] = set()
    makers = set()
    for node in reversed(graph.node):
        operator = operator_of(node)
        if operator in {"GridSample", "RoiAlign"}:
            positions.add(node.input[1])
        elif operator in _CALCULATES and not positions.isdisjoint(node.output):
            positions.update(node.input)
            makers.add(node.output[0])
    return frozenset(makers)


def samples_in_half(sizes: Sequence[int | None] | None, half: DataType) -> bool:
    """Whether a GridSample of an input [N, C, (D,) H, W] of these ``sizes`` finds its pixels by positions in ``half``.

    TensorRT wants both inputs of one type.
    """
    return sizes is not None and all(size is not None and size <= _WIDEST[half] for size in sizes[2:])
