"""ONNX Runtime, as the reference that every artifact is held to and as the runner of ONNX artifacts."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from repo_builder.errors import MissingExtraError, ModelError
from repo_builder.model import DataType, TensorSpec

if TYPE_CHECKING:
    import numpy.typing as npt

    from repo_builder.near_ties import Choice

    Arrays = dict[str, npt.NDArray[Any]]

_ORT_TYPES = {
    "tensor(bool)": DataType.BOOL,
    "tensor(uint8)": DataType.UINT8,
    "tensor(uint16)": DataType.UINT16,
    "tensor(uint32)": DataType.UINT32,
    "tensor(uint64)": DataType.UINT64,
    "tensor(int8)": DataType.INT8,
    "tensor(int16)": DataType.INT16,
    "tensor(int32)": DataType.INT32,
    "tensor(int64)": DataType.INT64,
    "tensor(float16)": DataType.FP16,
    "tensor(float)": DataType.FP32,
    "tensor(double)": DataType.FP64,
    "tensor(string)": DataType.STRING,
    "tensor(bfloat16)": DataType.BF16,
}


class RunError(Exception):
    """ONNX Runtime loaded the model but could not run it on the given inputs."""


@dataclass(frozen=True)
class Session:
    """A loaded ONNX model.  ``inputs`` and ``outputs`` are as the runtime sees them, not as the file says.

    ``runner`` is what messages call that which runs it; of ``int8_kernels`` see :func:`open_session`.  ``choices``
    are the nodes that choose what outputs hold, where that was looked for, and what they rank; ``steps`` those of
    outputs that are quantised.
    """

    runner: ClassVar[str] = "ONNX Runtime"
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    _session: Any
    int8_kernels: bool = True
    choices: Mapping[str, Choice] = field(default_factory=dict)
    rankings: tuple[TensorSpec, ...] = ()
    steps: Mapping[str, float] = field(default_factory=dict)

    def run(self, arrays: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run once on ``arrays``, one for each input, and return every output by name.

        Raises:
            RunError: ONNX Runtime refused, with its message on one line.
        """
        import numpy as np

        names = [spec.name for spec in self.outputs]
        try:
            if DataType.BF16 not in {spec.dtype for spec in (*self.inputs, *self.outputs)}:
                feeds = {spec.name: np.asarray(arrays[spec.name]) for spec in self.inputs}
                return dict(zip(names, self._session.run(names, feeds), strict=True))
            values = self._session.run_with_ort_values(
                names, {spec.name: _ort_value(spec, arrays[spec.name]) for spec in self.inputs}
            )
            return {spec.name: _to_numpy(spec, value) for spec, value in zip(self.outputs, values, strict=True)}
        except Exception as error:  # onnxruntime raises a dozen unrelated classes
            raise RunError(tidy_message(error)) from None


def open_session(path: Path, *, threads: int = 0, fused: bool = True, int8_kernels: bool = True) -> Session:
    """Load the ONNX file at ``path`` on the CPU; ``threads`` 0 leaves their number to ONNX Runtime.

    Without ``fused`` nodes run one by one, as the graph says.  Without ``int8_kernels`` those between
    DequantizeLinear and QuantizeLinear do: fused with these they multiply 8-bit integers, and CPUs without VNNI add
    two such products up in 16 bits, where large ones saturate.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        ModelError: ONNX Runtime can't load the file.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("server", "onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised too
    options.intra_op_num_threads = threads
    if not (fused and int8_kernels):
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        # Else it makes one pair of scales of two, which rounds otherwise.
        options.add_session_config_entry("session.disable_double_qdq_remover", "1")
    if not fused:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        # Without fallback, since that prints to stdout and tries the same again.
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        return Session(_specs(session.get_inputs()), _specs(session.get_outputs()), session, int8_kernels)
    except ModelError:
        raise
    except Exception as error:  # onnxruntime raises a dozen unrelated classes
        raise _load_error(path, tidy_message(error)) from None


def runtime_version() -> str:
    """The version of the installed onnxruntime; raises MissingExtraError without one."""
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("server", "onnxruntime") from None
    return str(onnxruntime.__version__)


def tidy_message(error: Exception) -> str:
    """ONNX Runtime's message on one line, without its own prefixes and source locations."""
    text = " ".join(str(error).split())
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"Load model from .*? failed:", "", text)
    text = re.sub(r"[\w/-]*\.(?:cc|h|hpp):\d+ (?:(?:[\w:]+ )?[\w:~]+\([^()]*\)|\w+) ", " ", text)
    return " ".join(text.split()) or type(error).__name__


def _specs(arguments: Iterable[Any]) -> tuple[TensorSpec, ...]:
    specs = []
    for argument in arguments:
        dtype = _ORT_TYPES.get(argument.type)
        if dtype is None:
            raise ModelError(
                f"{argument.name!r} is of type {argument.type}, which Triton does not have",
                "cast it inside the model to one of: " + ", ".join(member.value for member in DataType),
            )
        shape = tuple(axis if axis != "?" else None for axis in argument.shape)
        specs.append(TensorSpec(argument.name, dtype, shape))
    return tuple(specs)


def _load_error(path: Path, message: str) -> ModelError:
    operator = re.search(r"([\w.]*:\w+)\(-?\d+\) is not a registered function/op", message)
    stranger = re.search(r', (\w+), "([\w.]+)", .* No opset import for domain', message)
    name = operator[1] if operator else f"{stranger[2]}:{stranger[1]}" if stranger else None
    if name:
        domain = name.rpartition(":")[0]
        return ModelError(
            f"ONNX Runtime has no operator {_listed(path, name)}, which {path} uses",
            f"export the model without operators of the domain {domain!r}, or, for TensorRT, give their layers with "
            "--plugin LIB.so --no-verify",
        )
    too_new = re.search(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)", message)
    if too_new:
        return ModelError(
            f"ONNX Runtime can't load {path}: its ir_version is {too_new[1]}, the newest it reads {too_new[2]}",
            f"export it with an older onnx; or set model.ir_version = {too_new[2]} and onnx.save it",
        )
    return ModelError(f"ONNX Runtime can't load {path}: {message}", "export the model again, or with another opset")


def _listed(path: Path, name: str) -> str:
    """The operator ``name`` with its nodes; of a domain that is the model's own, all of them."""
    import onnx

    from repo_builder.onnx_model import nodes_of
    from repo_builder.trt.messages import listed, name_of

    proto = onnx.load(path, load_external_data=False)
    functions = {f"{function.domain}:{function.name}" for function in proto.functions}
    domain = name.rpartition(":")[0]
    own = domain not in {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
    nodes: dict[str, list[str]] = {name: []}
    for node in nodes_of(proto.graph):
        operator = f"{node.domain or 'ai.onnx'}:{node.op_type}"
        if operator == name or (own and node.domain == domain and operator not in functions):
            nodes.setdefault(operator, []).append(name_of(node))
    return "; ".join(
        f"{operator!r} ({listed(names)})" if names else repr(operator) for operator, names in nodes.items()
    )


def _ort_value(spec: TensorSpec, array: npt.NDArray[Any]) -> Any:
    import numpy as np
    import onnxruntime

    if spec.dtype is DataType.BF16:
        bits = np.asarray(array, order="C").view(np.uint16)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, DataType.BF16.onnx)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _to_numpy(spec: TensorSpec, value: Any) -> npt.NDArray[Any]:
    import numpy as np

    if spec.dtype is not DataType.BF16:
        result: npt.NDArray[Any] = value.numpy()
        return result
    shape = tuple(value.shape())  # ONNX Runtime has no NumPy dtype for bfloat16: copy its bits
    count = int(np.prod(shape, dtype=np.int64))
    bits = ctypes.string_at(value.data_ptr(), 2 * count) if count else b""
    return np.frombuffer(bits, np.uint16).copy().view(spec.dtype.numpy_dtype()).reshape(shape)
