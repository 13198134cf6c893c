"""A converted graph where nothing can run its engine: what ONNX Runtime on a CPU can tell of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repo_builder.errors import CompileError
from repo_builder.model import DataType
from repo_builder.passes.ranges import FP16_MAX
from repo_builder.runtime import Session, open_session

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx

    from repo_builder.verify import Runner

_PROBE = "probe.onnx"


@dataclass(frozen=True)
class HalfGraph:
    """The graph of an engine at ``path``, and the FP32 ``source`` whose tensors ``half_values`` are ``half`` in it.

    The source's external data, if any, lies beside ``path``.
    """

    path: Path
    source: onnx.ModelProto
    half: DataType
    half_values: tuple[str, ...]

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
        probe = self._open_probe() if self.watches_range else None

        def run(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
            if probe:
                self._refuse_overflow(probe.run(arrays))
            return session.run(
                {spec.name: arrays[spec.name].astype(spec.dtype.numpy_dtype(), copy=False) for spec in session.inputs}
            )

        return run

    def _open_probe(self) -> Session:
        import onnx

        path = self.path.with_name(_PROBE)
        onnx.save(with_magnitudes(self.source, self.half_values), path)
        try:
            return open_session(path)
        finally:
            path.unlink()

    def _refuse_overflow(self, magnitudes: Mapping[str, npt.NDArray[Any]]) -> None:
        """Name the first node that leaves the range; infinities that the source itself makes are none of FP16's."""
        for name, array in zip(self.half_values, magnitudes.values(), strict=True):
            largest = float(array)
            if FP16_MAX < largest < float("inf"):
                raise CompileError(
                    f"{_origin(self.source, name)} reaches {largest:.3g} on the inputs of the comparison, "
                    f"and FP16 holds {FP16_MAX:.0f} at most",
                    "--bf16 has the range, or drop --fp16; if your inputs are smaller: --input or --input-range",
                )


def with_magnitudes(source: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """``source`` with one output for each of ``names``: the largest magnitude in that tensor, a scalar."""
    from onnx import ModelProto, TensorProto, helper, inliner

    proto = ModelProto()
    proto.CopyFrom(inliner.inline_local_functions(source) if source.functions else source)
    del proto.graph.output[:]
    for index, name in enumerate(names):
        absolute, largest = f"{name}/magnitudes/{index}", f"{name}/magnitude/{index}"
        proto.graph.node.append(helper.make_node("Abs", [name], [absolute]))
        proto.graph.node.append(helper.make_node("ReduceMax", [absolute], [largest], keepdims=0))
        proto.graph.output.append(helper.make_tensor_value_info(largest, TensorProto.FLOAT, []))
    return proto


def _origin(source: onnx.ModelProto, tensor: str) -> str:
    for node in source.graph.node:
        if tensor in node.output:
            return f"node {node.name or tensor} ({node.op_type})"
    return f"tensor {tensor!r}"
