"""Outputs that a TopK or its like chose by comparing values: near ties fall either way when values are rounded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from repo_builder.passes.graph import integer_attributes, names_read

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx

    from repo_builder.comparison import Tolerance

    Array = npt.NDArray[Any]

_CHOOSERS = frozenset({"TopK", "ArgMax", "ArgMin", "NonMaxSuppression"})


@dataclass(frozen=True)
class Choice:
    """A node that chooses what comes out further down.

    ``scores`` names what it compares along ``axis``, ``best`` what it finds of that: one value where it is "".  Of
    nodes that choose otherwise both are "".
    """

    node: str
    scores: str = ""
    best: str = ""
    axis: int = -1
    largest: bool = True

    def ranking(self, tensors: Mapping[str, Array]) -> tuple[Array, int]:
        """The scores of the K that it finds, in order, and of the best that it leaves out, if any; and K.

        They are [..., K + 1] or, where it finds all, [..., K].
        """
        import numpy as np

        scores = np.sort(np.moveaxis(tensors[self.scores], self.axis, -1), -1)
        chosen = tensors[self.best].shape[self.axis] if self.best else 1
        return (scores[..., ::-1] if self.largest else scores)[..., : chosen + 1], chosen


def with_scores(source: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Choice]]:
    """``source`` with what its choices compare as further outputs, and the choice behind each output that has one."""
    from onnx import ValueInfoProto, helper

    choosers = _choosers(source.graph)
    if not choosers:
        return source, {}
    proto = deepcopy(source)
    made: dict[str, Choice] = {}
    for node in choosers.values():
        index = node.output[-1]
        if index not in made:
            made[index] = _choice(node)
            for name, origin in ((made[index].scores, node.input[0]), (made[index].best, node.output[0])):
                if name:
                    proto.graph.node.append(helper.make_node("Identity", [origin], [name]))
                    proto.graph.output.append(ValueInfoProto(name=name))
    return proto, {output: made[node.output[-1]] for output, node in choosers.items()}


def _choice(node: onnx.NodeProto) -> Choice:
    index, options = node.output[-1], integer_attributes(node)
    text, scores = f"node {node.name or index} ({node.op_type})", f"{index}/scores"
    if node.op_type == "TopK" and options.get("sorted", 1):
        return Choice(text, scores, f"{index}/best", options.get("axis", -1), bool(options.get("largest", 1)))
    if node.op_type in {"ArgMax", "ArgMin"}:
        return Choice(text, scores, "", options.get("axis", 0), node.op_type == "ArgMax")
    return Choice(text)


def _choosers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """The node behind each output that was chosen, or computed from what was: the last TopK, else the last other."""
    makers = {name: (place, node) for place, node in enumerate(graph.node) for name in node.output if name}
    found = {}
    for output in graph.output:
        seen, waiting, choosers = set(), [output.name], set()
        while waiting:
            name = waiting.pop()
            if name in seen or name not in makers:
                continue
            seen.add(name)
            place, node = makers[name]
            values = node.op_type == "TopK" and name == node.output[0]  # which are the same whichever of equals it took
            if node.op_type in _CHOOSERS and not values:
                choosers.add((node.op_type == "TopK", place))
            waiting.extend(names_read(node))
        if choosers:
            found[output.name] = graph.node[max(choosers)[1]]
    return found


def settle(actual: Array, expected: Array, ranking: tuple[Array, int], tolerance: Tolerance) -> Array:
    """``expected`` as it would be had near ties fallen the way that they did in ``actual``.

    Args:
        actual: [..., K, ...], as is ``expected``: a row for each of the K that were chosen; K may be left out if 1.
        ranking: as :meth:`Choice.ranking` gives it.
        tolerance: scores that are no further apart than it allows them to be off, both together, are near ties.

    Returns:
        The rows of ``expected``, each once, in the place of each that differs one of a near tie that does not.  Of
        those that are near ties of what was not chosen, ``tolerance.flips`` of all rows may be any other.
        ``expected`` itself where that does not explain what differs, or where the rows are none of this ranking.
    """
    import numpy as np

    scores, chosen = ranking
    rows = (*scores.shape[:-1], chosen) if chosen > 1 else scores.shape[:-1]
    if expected.dtype == object or not expected.size or expected.shape[: len(rows)] != rows:
        return expected
    groups = math.prod(scores.shape[:-1])
    slack = tolerance.allowed(scores).reshape(groups, -1)
    scores = scores.astype(np.float64).reshape(groups, -1)
    got, want, room = (
        array.astype(np.float64).reshape(groups, chosen, -1)
        for array in (actual, expected, tolerance.allowed(expected))
    )
    originals = expected.reshape(want.shape)
    settled = originals.copy()
    unknown, most = 0, math.floor(tolerance.flips * groups * chosen)
    taken = _agree(got, want, room).all(-1)
    for group, row in np.argwhere(~taken):
        (near,) = np.nonzero(_agree(scores[group], scores[group, row], slack[group] + slack[group, row]))
        rivals = near[near < chosen]
        rivals = rivals[~taken[group, rivals]]
        same = rivals[_agree(got[group, row], want[group, rivals], room[group, rivals]).all(-1)]
        if same.size:
            settled[group, row] = originals[group, same[0]]
            taken[group, same[0]] = True
        elif chosen in near and unknown < most and not np.isnan(got[group, row]).any():
            settled[group, row] = actual.reshape(want.shape)[group, row]
            unknown += 1
        else:
            return expected
    return settled.reshape(expected.shape)


def _agree(actual: Array, expected: Array, room: Array) -> Array:
    import numpy as np

    with np.errstate(invalid="ignore", over="ignore"):
        agree: Array = (actual == expected) | (np.abs(actual - expected) <= room)
    return agree
