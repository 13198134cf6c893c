"""A converted graph where nothing can run its engine: what ONNX Runtime on a CPU can tell of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repo_builder.errors import CompileError
from repo_builder.model import DataType
from repo_builder.onnx_model import subgraphs
from repo_builder.passes.graph import inlined
from repo_builder.passes.precision import HalfValues
from repo_builder.passes.ranges import FP16_MAX
from repo_builder.runtime import open_session

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx

    from repo_builder.verify import Runner

_PROBE = "probe.onnx"
_FLAT, _ZERO = "probe/flat", "probe/zero"
_RUN = frozenset({"If", "Loop", "Scan"})


@dataclass(frozen=True)
class HalfGraph:
    """The graph of an engine at ``path``, and the FP32 ``source`` whose tensors ``half_values`` are ``half`` in it.

    The source's external data, if any, lies beside ``path``.
    """

    path: Path
    source: onnx.ModelProto
    half: DataType
    half_values: HalfValues

    @property
    def watches_range(self) -> bool:
        """Whether there are FP16 values whose range can be checked; BF16 has FP32's."""
        return self.half is DataType.FP16 and bool(self.half_values)

    def open(self) -> Runner:
        """Load both; the function returned runs the graph.

        ONNX Runtime's CPU has few FP16 kernels: it computes the other nodes in FP32 and drops the casts between them,
        so an overflow does not show there.  Therefore the function runs the source too, and raises CompileError where
        a value that FP16 is to hold is out of its range.

        Raises:
            ModelError: ONNX Runtime can't load one of them.
        """
        session = open_session(self.path, fused=False)  # its fusions of FP16 graphs can crash ONNX Runtime 1.31
        refuse_overflow = self._open_probe() if self.watches_range else None

        def run(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
            if refuse_overflow:
                refuse_overflow(arrays)
            return session.run(
                {spec.name: arrays[spec.name].astype(spec.dtype.numpy_dtype(), copy=False) for spec in session.inputs}
            )

        return run

    def _open_probe(self) -> Callable[[Mapping[str, npt.NDArray[Any]]], None]:
        """Load the source with its magnitudes; the function returned names the first node that leaves the range.

        Infinities that the source itself makes are none of FP16's.
        """
        import onnx

        path = self.path.with_name(_PROBE)
        proto, origins = with_magnitudes(self.source, self.half_values)
        onnx.save(proto, path)
        try:
            session = open_session(path, int8_kernels=False)
        finally:
            path.unlink()

        def refuse_overflow(arrays: Mapping[str, npt.NDArray[Any]]) -> None:
            for origin, array in zip(origins, session.run(arrays).values(), strict=True):
                largest = float(array[0])
                if FP16_MAX < largest < float("inf"):
                    raise CompileError(
                        f"{origin} reaches {largest:.3g} on the inputs of the comparison, "
                        f"and FP16 holds {FP16_MAX:.0f} at most",
                        "--bf16 has the range, or drop --fp16; if your inputs are smaller: --input or --input-range",
                    )

        return refuse_overflow


def with_magnitudes(source: onnx.ModelProto, values: HalfValues) -> tuple[onnx.ModelProto, list[str]]:
    """``source`` with the largest magnitudes in ``values`` for its outputs, [1] each, and what makes these values.

    Of a body it is the largest of all its turns, and 0 where it had none.
    """
    from onnx import TensorProto, helper

    proto = inlined(source)
    proto.graph.initializer.append(helper.make_tensor(_FLAT, TensorProto.INT64, [1], [-1]))
    proto.graph.initializer.append(helper.make_tensor(_ZERO, TensorProto.FLOAT, [1], [0]))
    del proto.graph.output[:]
    watched = _watch(proto.graph, values, itertools.count())
    return proto, [origin for _, origin in watched]


def _watch(graph: onnx.GraphProto, values: HalfValues, numbers: Iterator[int]) -> list[tuple[str, str]]:
    """Give ``graph`` an output for each of ``values``: the largest magnitude in it.  Return names and what makes them.

    What a body gives, its node gives on: of the turns of a Loop or Scan all, of the branch of an If not taken 0.
    Bodies come before their nodes, which give the same values again.
    """
    from onnx import TensorProto, helper

    names = frozenset(values.names)
    watched = [(value.name, f"tensor {value.name!r}") for value in graph.input if value.name in names]
    for node in graph.node:
        outputs = tuple(node.output)
        for place, body in enumerate(subgraphs(node) if node.op_type in _RUN else ()):
            for name, origin in _watch(body, values.bodies[outputs, place], numbers):
                _give_on(node, body, name)
                watched.append((f"{name}/given", origin))
        watched += [(name, f"node {node.name or name} ({node.op_type})") for name in outputs if name in names]
    largest = [f"probe/magnitude/{next(numbers)}" for _ in watched]
    for (name, _), magnitude in zip(watched, largest, strict=True):
        flat, all_of_it, absolute = (f"{magnitude}/{step}" for step in ("flat", "padded", "absolute"))
        graph.node.append(helper.make_node("Reshape", [name, _FLAT], [flat]))
        graph.node.append(helper.make_node("Concat", [flat, _ZERO], [all_of_it], axis=0))  # it may be empty
        graph.node.append(helper.make_node("Abs", [all_of_it], [absolute]))
        graph.node.append(helper.make_node("ReduceMax", [absolute], [magnitude], keepdims=1))
        graph.output.append(helper.make_tensor_value_info(magnitude, TensorProto.FLOAT, [1]))
    return [(magnitude, origin) for magnitude, (_, origin) in zip(largest, watched, strict=True)]


def _give_on(node: onnx.NodeProto, giver: onnx.GraphProto, name: str) -> None:
    """Make the last output of a body of ``node`` one of ``node`` itself; the other branch of an If gives 0."""
    from onnx import TensorProto, helper

    for body in subgraphs(node):
        if body is not giver:
            body.node.append(helper.make_node("Identity", [_ZERO], [name]))
            body.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]))
    for attribute in node.attribute:
        if attribute.name in {"scan_output_axes", "scan_output_directions"}:
            attribute.ints.append(0)
    node.output.append(f"{name}/given")
