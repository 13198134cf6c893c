"""FP16 and BF16: where a compiler takes the precision from the graph, the graph must say it.

Every node is looked at once, in order, and either moves to half precision or stays in FP32; a Cast is written right
behind a value's producer when some reader wants the other type, so the result is sorted as the source was.

A node stays in FP32 when

- ONNX does not define it, or not for half precision (the operator's own schema is asked), or TensorRT refuses it so;
- it reads constants alone: such parts are folded when the engine is built;
- one of its constants does not fit: 1e6 would become infinite, an epsilon of 1e-12 zero (constants that the graph
  computes are folded first);
- it sums or raises to powers (:data:`repo_builder.passes.half_operators.FP32_OPERATORS`), where FP16 overflows first;
- it computes positions for GridSample or RoiAlign, or is a GridSample of something too wide for positions in half;
- it reads a value that may not fit (:class:`repo_builder.passes.ranges.Range`): made by such sums and powers, or from
  a constant out of range (the -3.4e38 of attention masks), or cast from integers or from another precision.  That
  follows arithmetic and data movement and ends where a division brings the value back, at operators with bounded
  results, such as Softmax, and at matrix products.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING

from repo_builder.model import DataType
from repo_builder.onnx_model import opset_of, subgraphs
from repo_builder.passes.fold import fold_constants
from repo_builder.passes.graph import (
    all_names,
    drop_initialiser_inputs,
    fresh_name,
    infer_types,
    inlined,
    integer_constants,
    names_read,
    replace_nodes,
    sizes_of,
    sort_nodes,
)
from repo_builder.passes.half_constants import as_half, numbers_of
from repo_builder.passes.half_operators import (
    averages_planes,
    fails_behind_a_cast,
    half_ports,
    is_bound,
    leaves_range,
    limit_masks,
    refused_by_tensorrt,
    split_hard_swishes,
    with_bf16_operators,
)
from repo_builder.passes.positions import position_makers, samples_in_half
from repo_builder.passes.ranges import Numbers, Range, operator_of, range_made

if TYPE_CHECKING:
    import onnx

MATRIX_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN"})
"""They read even wide values cast to half: they are what half precision is asked for."""

_FLOAT, _BOOL = DataType.FP32.onnx, DataType.BOOL.onnx
_INTEGERS = frozenset(kind.onnx for kind in DataType if "INT" in kind.value)
_NONE: frozenset[int] = frozenset()


@dataclass(frozen=True)
class HalfValues:
    """The tensors of one graph of the source that are FP32 there and exist in half in the result, by name.

    ``bodies`` has those inside its nodes: a body's key are its node's outputs, and its place among their bodies.
    """

    names: tuple[str, ...]
    bodies: Mapping[tuple[tuple[str, ...], int], HalfValues]

    def __bool__(self) -> bool:
        return bool(self.names) or any(self.bodies.values())


@dataclass(frozen=True)
class MixedPrecision:
    """A graph in mixed precision: how many nodes compute in half, and how many stayed in FP32, by reason.

    ``already_half`` nodes did so in the source.
    """

    proto: onnx.ModelProto
    half_nodes: int
    kept: Mapping[str, int]
    already_half: int
    half_values: HalfValues


def to_half(
    source: onnx.ModelProto,
    half: DataType,
    folder: Path,
    *,
    half_inputs: bool = False,
    half_outputs: bool = False,
) -> MixedPrecision:
    """Return a copy of ``source`` that computes in ``half`` where that is safe.

    Args:
        source: any ONNX model; local functions are inlined.
        half: FP16 or BF16.
        folder: where the model's external data is; the copy holds all weights itself.
        half_inputs: FP32 inputs become ``half`` too; they stay FP32 otherwise.
        half_outputs: the same for outputs.

    Raises:
        ModelError: the graph's types contradict each other, or it has a cycle.
    """
    from onnx import external_data_helper

    proto = inlined(source)
    external_data_helper.load_external_data_for_model(proto, str(folder))
    if half is DataType.BF16:
        proto = with_bf16_operators(proto)
        split_hard_swishes(proto.graph, all_names(proto.graph))
    drop_initialiser_inputs(proto)
    sort_nodes(proto.graph)
    fold_constants(proto)
    infer_types(proto)
    names = all_names(proto.graph)
    limit_masks(proto.graph, names)
    if not opset_of(proto):  # a model of other domains only: Cast is of this one
        proto.opset_import.add(version=13)
    model = _Model(half, opset_of(proto), names)
    ports = {value.name for value in proto.graph.input} & {value.name for value in proto.graph.output}
    inputs = _float_names(proto.graph.input) - ports if half_inputs else set()
    produced = {name for node in proto.graph.node for name in node.output}
    outputs = _float_names(proto.graph.output) & produced if half_outputs else set()
    scope = _Scope(model, proto.graph, None, inputs, outputs)
    scope.convert()
    for value in (*proto.graph.input, *proto.graph.output):
        if value.name in inputs | outputs:
            value.type.tensor_type.elem_type = half.onnx
    return MixedPrecision(proto, model.half_nodes, dict(model.kept), model.already_half, scope.half_values())


def _float_names(values: Iterable[onnx.ValueInfoProto]) -> set[str]:
    return {value.name for value in values if value.type.tensor_type.elem_type == _FLOAT}


@dataclass
class _Model:
    """What all scopes of one conversion share."""

    half: DataType
    opset: int
    names: set[str]
    half_nodes: int = 0
    already_half: int = 0
    kept: Counter[str] = field(default_factory=Counter)


@dataclass
class _Value:
    """A tensor of the source.  ``names`` has what it is called in each type that it exists in so far.

    ``slot`` is where in its scope casts of it go; ``sizes`` are those of its axes, None in place of a free one's.
    """

    scope: _Scope
    slot: int
    elem_type: int | None
    names: dict[int, str]
    numbers: Numbers = field(default_factory=Numbers)
    sizes: Sequence[int | None] | None = None
    initialiser: onnx.TensorProto | None = None


class _Scope:
    """One graph being converted; subgraphs read and write FP32 at their borders."""

    def __init__(
        self,
        model: _Model,
        graph: onnx.GraphProto,
        parent: _Scope | None,
        half_inputs: set[str],
        half_outputs: set[str],
    ) -> None:
        self.model, self.graph, self.parent = model, graph, parent
        self.half_inputs = half_inputs
        self.outputs = {value.name: value.name in half_outputs for value in graph.output}
        self.types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
        self.sizes = {value.name: sizes_of(value) for value in graph.value_info}
        self.integers = integer_constants(graph)
        self.positions = position_makers(graph)
        self.values: dict[str, _Value] = {}
        self.bodies: dict[tuple[tuple[str, ...], int], _Scope] = {}
        self.slots: list[list[onnx.NodeProto]] = [[]]
        self.new_initialisers: list[onnx.TensorProto] = []

    def convert(self, fed: Iterable[_Value | None] = ()) -> None:
        """Convert the graph in place; ``fed`` is what the node around it gives to its inputs, as far as known."""
        half = self.model.half.onnx
        for value, given in zip(self.graph.input, chain(fed, repeat(None)), strict=False):
            elem_type = value.type.tensor_type.elem_type
            names = {half if value.name in self.half_inputs else elem_type: value.name}
            numbers = Numbers(given.numbers.range) if given and elem_type == _FLOAT else Numbers()
            self.values[value.name] = _Value(self, 0, elem_type, names, numbers, sizes_of(value))
        for tensor in self.graph.initializer:
            names, numbers = {tensor.data_type: tensor.name}, numbers_of(tensor, self.model.half)
            self.values[tensor.name] = _Value(self, 0, tensor.data_type, names, numbers, initialiser=tensor)
        for sparse in self.graph.sparse_initializer:
            name, elem_type = sparse.values.name, sparse.values.data_type
            self.values[name] = _Value(self, 0, elem_type, {elem_type: name}, Numbers(constant=True))
        for node in self.graph.node:
            self.slots.append([node])
            self._convert_node(node)
        replace_nodes(self.graph, [node for slot in self.slots for node in slot])
        del self.graph.value_info[:]  # states the types of before
        self._replace_initialisers()

    def half_values(self) -> HalfValues:
        """Of this graph, once it is converted; no constants."""
        half = self.model.half.onnx
        names = (
            name
            for name, value in self.values.items()
            if value.elem_type == _FLOAT and half in value.names and not value.numbers.constant
        )
        return HalfValues(tuple(names), {key: body.half_values() for key, body in self.bodies.items()})

    def find(self, name: str) -> _Value | None:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.parent
        return None

    def _convert_node(self, node: onnx.NodeProto) -> None:
        values = [self.find(name) if name else None for name in node.input]
        read = [value for value, name in zip(values, node.input, strict=True) if name]
        bodies = [_Scope(self.model, body, self, set(), set()) for body in subgraphs(node)]
        for place, body in enumerate(bodies):
            body.convert(values)
            self.bodies[tuple(node.output), place] = body
        constant = not bodies and all(value is not None and value.numbers.constant for value in read)
        if bodies or constant:
            reason, inputs, outputs = "constants" if constant else "a subgraph's border", _NONE, _NONE
        else:
            reason, inputs, outputs = self._choose(node, values)
        self._count(node, read, reason, half=bool(inputs))
        for index, value in enumerate(values):
            if value is not None and value.elem_type == _FLOAT and operator_of(node) != "Cast":
                node.input[index] = self._name_as(value, self.model.half.onnx if index in inputs else _FLOAT)
            elif value is not None and value.elem_type is not None:
                node.input[index] = next(iter(value.names.values()))
        if not inputs and fails_behind_a_cast(node):
            self._part_from_cast(node)
        numbers = Numbers(self._range_made(node, values, bodies), constant, addends=self._addends(node, values))
        for index, name in enumerate(node.output):
            if name:
                self._define(node, index, numbers, half=index in outputs)
            if operator_of(node) == "Cast" and self.model.half.onnx in {value.elem_type for value in values if value}:
                self.values[name].names.setdefault(self.model.half.onnx, node.input[0])  # there and back is exact

    def _count(self, node: onnx.NodeProto, read: Sequence[_Value | None], reason: str, *, half: bool) -> None:
        types = {value.elem_type for value in read if value is not None}
        if half:
            self.model.half_nodes += 1
        elif operator_of(node) != "Cast" and self.model.half.onnx in types:
            self.model.already_half += 1
        elif operator_of(node) != "Cast" and _FLOAT in types:
            self.model.kept[f"{node.op_type}: {reason}"] += 1

    def _choose(
        self, node: onnx.NodeProto, values: Sequence[_Value | None]
    ) -> tuple[str, frozenset[int], frozenset[int]]:
        """Why the node stays in FP32, or which of its inputs and outputs become half."""
        operator = operator_of(node)
        reason = self._reason_of_operator(node, values[0].sizes if values and values[0] else None)
        if operator == "Cast" or reason:
            return reason, _NONE, _NONE
        read = [value.elem_type if value else None for value, name in zip(values, node.input, strict=True) if name]
        made = [self.types.get(name, _FLOAT) for name in node.output if name]
        if not all((*read, *made)):  # not known, or no tensors
            return "unknown types", _NONE, _NONE
        floats = [index for index, value in enumerate(values) if value is not None and value.elem_type == _FLOAT]
        inputs, outputs = half_ports(node, self.model.opset, self.model.half, floats)
        if not inputs or any(self.types.get(node.output[index], _FLOAT) != _FLOAT for index in outputs):
            return "no half precision in ONNX", _NONE, _NONE
        for index in inputs:
            value = values[index]
            if value is None or value.numbers.range is Range.FITS:
                continue
            kind = value.numbers.range
            if value.initialiser is None and operator not in MATRIX_PRODUCTS:
                return f"{kind.name.lower()} values", _NONE, _NONE
            if value.initialiser is not None and not (kind is Range.WIDE and is_bound(node, index)):
                return f"{kind.name.lower()} constants", _NONE, _NONE
        return "", inputs, outputs

    def _reason_of_operator(self, node: onnx.NodeProto, sizes: Sequence[int | None] | None) -> str:
        """Why the node stays in FP32 whatever it reads, empty if it need not; ``sizes`` are its first input's."""
        if leaves_range(node) and not averages_planes(node, sizes, self.integers):
            return "range"
        unsharp = operator_of(node) == "GridSample" and not samples_in_half(sizes, self.model.half)
        if unsharp or node.output[0] in self.positions:
            return "positions"
        return "no half precision in TensorRT" if refused_by_tensorrt(node, self.model.half) else ""

    def _range_made(self, node: onnx.NodeProto, values: Sequence[_Value | None], bodies: Sequence[_Scope]) -> Range:
        first = values[0] if values else None
        if bodies:
            made = {value.numbers.range for body in bodies for name in body.outputs if (value := body.find(name))}
            return Range.FITS if made <= {Range.FITS} else Range.WIDE
        if operator_of(node) in {"Cast", "CastLike"}:
            if first and first.elem_type in {_FLOAT, _BOOL}:
                return first.numbers.range
            return Range.WHOLE if first and first.elem_type in _INTEGERS else Range.WIDE
        if operator_of(node) == "ConstantOfShape":
            fill = next((numbers_of(attribute.t, self.model.half) for attribute in node.attribute), Numbers())
            return fill.range
        return range_made(node, [value.numbers if value else Numbers() for value in values])

    def _addends(self, node: onnx.NodeProto, values: Sequence[_Value | None]) -> int:
        """Of how many values, all in range, a ReduceSum makes each of its own; 0 for other nodes, or if not known."""
        if operator_of(node) != "ReduceSum" or not values[0] or values[0].numbers.range is not Range.FITS:
            return 0
        before, after = values[0].sizes, self.sizes.get(node.output[0])
        if before is None or after is None or before.count(None) != after.count(None):  # a free axis is summed
            return 0
        return math.prod(filter(None, before)) // math.prod(filter(None, after))

    def _define(self, node: onnx.NodeProto, index: int, numbers: Numbers, *, half: bool) -> None:
        """Enter an output of the newest node, under a name that leaves a graph output's own name to its type."""
        name = node.output[index]
        elem_type = self.types.get(name) or (_FLOAT if half else None)
        now = self.model.half.onnx if half else elem_type
        if elem_type != _FLOAT:
            numbers = replace(numbers, range=Range.FITS)
        value = _Value(self, len(self.slots) - 1, elem_type, {}, numbers, self.sizes.get(name))
        self.values[name] = value
        if name in self.outputs and elem_type == _FLOAT:
            wanted = self.model.half.onnx if self.outputs[name] else _FLOAT
            value.names[wanted] = name
            if wanted != now:
                inner = self.fresh(name, half=half)
                node.output[index] = inner
                value.names = {now: inner, wanted: name}  # type: ignore[dict-item]
                self.cast(inner, name, wanted, value.slot)
        else:
            value.names[now or 0] = name

    def _name_as(self, value: _Value, elem_type: int) -> str:
        """What ``value`` is called in ``elem_type``, after casting it where that is not yet done."""
        if elem_type not in value.names:
            scope = value.scope
            source = next(iter(value.names.values()))
            name = scope.fresh(source, half=elem_type != _FLOAT)
            if value.initialiser is not None:
                scope.new_initialisers.append(as_half(value.initialiser, name, self.model.half))
            else:
                scope.cast(source, name, elem_type, value.slot)
            value.names[elem_type] = name
        return value.names[elem_type]

    def fresh(self, name: str, *, half: bool) -> str:
        return fresh_name(f"{name}_{(self.model.half if half else DataType.FP32).value.lower()}", self.model.names)

    def cast(self, source: str, target: str, elem_type: int, slot: int) -> None:
        from onnx import helper

        node = helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=elem_type)
        self.slots[slot].append(node)

    def _part_from_cast(self, node: onnx.NodeProto) -> None:
        """Put a Clip without bounds, which changes nothing, in front of the newest node."""
        from onnx import helper

        name = fresh_name(f"{node.input[0]}_clipped", self.model.names)
        self.slots[-1].insert(0, helper.make_node("Clip", [node.input[0]], [name], name=f"clip_{name}"))
        node.input[0] = name

    def _replace_initialisers(self) -> None:
        """Add the half weights and drop FP32 ones that nothing reads any more."""
        read = {name for node in self.graph.node for name in names_read(node)} | set(self.outputs)
        for index in reversed(range(len(self.graph.initializer))):
            tensor = self.graph.initializer[index]
            if tensor.name not in read and tensor.data_type == _FLOAT:
                del self.graph.initializer[index]
        self.graph.initializer.extend(self.new_initialisers)
