# ruff: noqa: INP001  (no package: Triton's stub loads this file by its path)
"""Python-based Triton backend ``onnxruntime``: serves ``platform: "onnxruntime_onnx"`` models.

It reads the same repositories, ``config.pbtxt`` fields and parameters as NVIDIA's C++ backend of that name
(https://github.com/triton-inference-server/onnxruntime_backend, README) and refuses what that one refuses,
so that a repository which loads here loads there.  The requests that Triton's scheduler hands over together
are joined along the batch axis into one ONNX Runtime call; when that call fails each request is tried alone,
so one bad request can't fail its neighbours.

The file runs inside Triton's stub process and imports nothing of this package.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

Array = npt.NDArray[Any]
UNSUPPORTED_FIELDS = ("sequence_batching", "batch_input", "batch_output")  # inputs that the server makes itself
BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
ONNX_TO_TRITON = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(bfloat16)": "TYPE_BF16",
    "tensor(string)": "TYPE_STRING",
}


class RequestError(Exception):
    """A request can't be answered because of what it contains."""


@dataclass(frozen=True)
class Port:
    """An input or output as config.pbtxt declares it and as the ONNX model has it.

    ``shape`` is the model's own, batch axis included, -1 where free, or None when the model doesn't tell.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    shape: tuple[int, ...] | None

    @property
    def scalar(self) -> bool:
        return self.shape == ()


class Pending(NamedTuple):
    """A request taken out of Triton's objects: its place in the call, its arrays, the outputs it asks for."""

    place: int
    inputs: dict[str, Array]
    outputs: set[str]

    @property
    def batch(self) -> int:
        return len(next(iter(self.inputs.values())))


class TritonPythonModel:
    """One model instance: its own ONNX Runtime session (the interface is Triton's)."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise pb_utils.TritonModelException(f"onnxruntime can't be imported: {error}") from error

        config = json.loads(args["model_config"])
        for field in UNSUPPORTED_FIELDS:
            if config.get(field):
                raise pb_utils.TritonModelException(
                    f"{field} is not supported by the local server's onnxruntime backend"
                )
        self.batching = config["max_batch_size"] > 0
        path = model_file(args, config)
        options = session_options(config)
        providers = execution_providers(args, onnxruntime)
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=providers)
        except Exception as error:
            raise pb_utils.TritonModelException(f"unable to load {path}: {error}") from error

        self.inputs = {port.name: port for port in checked_inputs(config, self.session)}
        self.outputs = {port.name: port for port in checked_outputs(config, self.session)}
        self.required = {node.name for node in self.session.get_inputs()}
        datatypes = {port.datatype for port in (*self.inputs.values(), *self.outputs.values())}
        if datatypes >= {"TYPE_BF16", "TYPE_STRING"}:
            raise pb_utils.TritonModelException("a model with both BF16 and STRING tensors is not supported")
        self.through_ort_values = "TYPE_BF16" in datatypes  # NumPy has no bfloat16
        self.run_options = run_options(config, onnxruntime)
        self.ort_value = onnxruntime.OrtValue

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        responses: list[Any] = [None] * len(requests)
        groups: dict[Any, list[Pending]] = {}
        for index, request in enumerate(requests):
            try:
                pending = self.read(index, request)
            except Exception as error:
                responses[index] = failure(error)
                continue
            key = shapes_without_batch(pending.inputs) if self.batching else index
            groups.setdefault(key, []).append(pending)
        for group in groups.values():
            for pending, response in zip(group, self.answer(group), strict=True):
                responses[pending.place] = response
        raise_common_failure(responses)
        return responses

    def finalize(self) -> None:
        self.session = None

    def read(self, place: int, request: Any) -> Pending:
        inputs = {tensor.name(): self.to_array(tensor) for tensor in request.inputs()}
        return Pending(place, inputs, set(request.requested_output_names()))

    def to_array(self, tensor: Any) -> Array:
        port = self.inputs[tensor.name()]
        if port.datatype == "TYPE_BF16":
            array = bfloat16_bits(tensor)
        elif port.datatype == "TYPE_STRING":
            array = decoded(tensor.as_numpy(), port.name)
        else:
            array = tensor.as_numpy()
        return array.reshape(()) if port.scalar else array

    def answer(self, group: list[Pending]) -> Iterable[Any]:
        """Return the responses to ``group`` in its order, from one run if it succeeds."""
        try:
            return self.run_joined(group)
        except Exception as error:
            if len(group) == 1:
                return [failure(error)]
        return [response for pending in group for response in self.answer([pending])]

    def run_joined(self, group: list[Pending]) -> list[Any]:
        feed = group[0].inputs
        if len(group) > 1:
            feed = {name: np.concatenate([pending.inputs[name] for pending in group]) for name in feed}
        names = [name for name in self.outputs if any(name in pending.outputs for pending in group)]
        results = dict(zip(names, self.run(names, feed), strict=True))
        if self.batching:
            ends = [0, *accumulate(pending.batch for pending in group)]
            check_batch(results, ends[-1])
            pieces = [slice(*bounds) for bounds in pairwise(ends)]
        else:
            pieces = [slice(None)]
        responses = []
        for pending, piece in zip(group, pieces, strict=True):
            wanted = [name for name in names if name in pending.outputs]
            tensors = [self.to_tensor(self.outputs[name], results[name], piece) for name in wanted]
            responses.append(pb_utils.InferenceResponse(tensors))
        return responses

    def run(self, names: list[str], feed: dict[str, Array]) -> list[Array]:
        if missing := self.required - feed.keys():
            raise RequestError(f"input {min(missing)!r} is missing and the ONNX model has no default for it")
        if not self.through_ort_values:
            return list(self.session.run(names, feed, self.run_options))
        values = {
            name: self.ort_value.ortvalue_from_numpy_with_onnx_type(array, BFLOAT16)
            if self.inputs[name].datatype == "TYPE_BF16"
            else self.ort_value.ortvalue_from_numpy(np.asarray(array, order="C"))
            for name, array in feed.items()
        }
        results = self.session.run_with_ort_values(names, values, self.run_options)
        return [
            copy_of_bits(value) if self.outputs[name].datatype == "TYPE_BF16" else value.numpy()
            for name, value in zip(names, results, strict=True)
        ]

    def to_tensor(self, port: Port, array: Array, piece: slice) -> Any:
        part = array.reshape(port.dims) if array.ndim == 0 else array[piece]
        if port.datatype == "TYPE_BF16":
            return bfloat16_tensor(port.name, part)
        return pb_utils.Tensor(port.name, part)


def failure(error: Exception) -> Any:
    """Return the response that tells the client what is wrong with its request."""
    known = isinstance(error, RequestError) or "INVALID_ARGUMENT" in str(error)
    code = pb_utils.TritonError.INVALID_ARG if known else pb_utils.TritonError.INTERNAL
    return pb_utils.InferenceResponse([], pb_utils.TritonError(str(error), code))


def raise_common_failure(responses: Sequence[Any]) -> None:
    """Raise what every request failed with, if that is no fault of theirs.

    Triton counts as failed, and logs, only what ``execute`` raises, and that is for all of its requests.
    """
    errors = [response.error() for response in responses if response.has_error()]
    said = {(error.code(), error.message()) for error in errors}
    if len(errors) == len(responses) and len(said) == 1 and errors[0].code() == pb_utils.TritonError.INTERNAL:
        raise pb_utils.TritonModelException(errors[0].message())


def shapes_without_batch(inputs: dict[str, Array]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(sorted((name, array.shape[1:]) for name, array in inputs.items()))


def check_batch(results: dict[str, Array], batch: int) -> None:
    for name, array in results.items():
        if array.ndim == 0 or array.shape[0] != batch:
            raise RequestError(
                f"output {name!r} has shape {list(array.shape)} for a batch of {batch}: its first axis is not the "
                "batch, so the model needs max_batch_size: 0"
            )


# Strings: Triton hands over bytes, ONNX Runtime's Python interface takes text.


def decoded(array: Array, name: str) -> Array:
    flat = array.reshape(-1)
    text = np.empty(flat.shape, dtype=object)
    try:
        text[:] = [element.decode() for element in flat]
    except UnicodeDecodeError as error:
        raise RequestError(f"input {name!r} has a string that is not UTF-8: {error}") from error
    return text.reshape(array.shape)


# bfloat16: carried as its 16 bits in uint16 arrays, in and out of Triton through DLPack, of which the
# layout is fixed (https://dmlc.github.io/dlpack/latest/c_api.html): DLTensor = {void* data; int32 device[2];
# int32 ndim; uint8 dtype_code, dtype_bits; ...} is the head of what the capsule points to.

DLPACK_DTYPE_CODE_OFFSET = 20
DLPACK_BFLOAT = 4
DLPACK_TAKEN = b"used_dltensor"
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_set_capsule_name = ctypes.pythonapi.PyCapsule_SetName
_set_capsule_name.argtypes = [ctypes.py_object, ctypes.c_char_p]


def bits_at(address: int, shape: Sequence[int]) -> Array:
    """Return the ``shape`` bfloat16 values at ``address`` as a uint16 array that doesn't own its memory."""
    count = int(np.prod(shape, dtype=np.int64))
    if count == 0:
        return np.empty(shape, dtype=np.uint16)
    return np.frombuffer(memoryview((ctypes.c_uint16 * count).from_address(address)), np.uint16).reshape(shape)


def bfloat16_bits(tensor: Any) -> Array:
    capsule = tensor.to_dlpack()
    data = ctypes.c_void_p.from_address(_capsule_pointer(capsule, b"dltensor")).value
    return bits_at(data or 0, tensor.shape())


def copy_of_bits(value: Any) -> Array:
    return bits_at(value.data_ptr(), value.shape()).copy()


def bfloat16_tensor(name: str, bits: Array) -> Any:
    capsule = bits.__dlpack__()
    head = _capsule_pointer(capsule, b"dltensor")
    ctypes.c_uint8.from_address(head + DLPACK_DTYPE_CODE_OFFSET).value = DLPACK_BFLOAT
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    # Triton frees what it took but renames the capsule in its own way; under DLPack's name NumPy leaves it alone.
    _set_capsule_name(capsule, DLPACK_TAKEN)
    return tensor


# Loading: what config.pbtxt asks of ONNX Runtime, and whether it agrees with the model.

# ONNX Runtime's session entries that parameters may set, and their defaults here.  Threads that spin while they wait
# are 10 % faster on idle CPUs, but take them from Triton's own threads and, with any other process at work, are two to
# three times slower; a local server shares its machine.
SESSION_ENTRIES: dict[str, str | None] = {
    "session.use_device_allocator_for_initializers": None,
    "session.intra_op.allow_spinning": "0",
    "session.inter_op.allow_spinning": "0",
}


def model_file(args: dict[str, str], config: dict[str, Any]) -> str:
    """Return the path of the ONNX file: the configured name or model.onnx, itself or inside a folder."""
    path = Path(args["model_repository"], args["model_version"], config.get("default_model_filename") or "model.onnx")
    if on_disk(path).is_dir():
        path /= "model.onnx"
    if not on_disk(path).is_file():
        raise pb_utils.TritonModelException(f"unable to find {str(path)!r}")
    return str(path)


def on_disk(path: Path) -> Path:
    """The same path for calls of the system: Python in a stub takes names for ASCII, whatever the locale."""
    return Path(os.fsdecode(str(path).encode()))


def parameter(config: dict[str, Any], key: str) -> str | None:
    value = config.get("parameters", {}).get(key)
    return None if value is None else str(value["string_value"])


def integer_parameter(config: dict[str, Any], key: str, allowed: Iterable[int] | None = None) -> int | None:
    text = parameter(config, key)
    if text is None:
        return None
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0 or (allowed is not None and value not in allowed):
        raise pb_utils.TritonModelException(f"parameter {key!r} can't be {text!r}")
    return value


def boolean_parameter(config: dict[str, Any], key: str) -> bool | None:
    text = parameter(config, key)
    if text is None:
        return None
    if text.lower() not in ("0", "1", "true", "false"):
        raise pb_utils.TritonModelException(f"parameter {key!r} can't be {text!r}: it takes true or false")
    return text.lower() in ("1", "true")


def session_options(config: dict[str, Any]) -> Any:
    """Return ONNX Runtime's options from the fields that NVIDIA's backend documents."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    levels = {
        -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    }
    level = config.get("optimization", {}).get("graph", {}).get("level", 0)
    options.graph_optimization_level = levels.get(level, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    if integer_parameter(config, "execution_mode", allowed=(0, 1)):
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    options.intra_op_num_threads = integer_parameter(config, "intra_op_thread_count") or default_threads(config)
    options.inter_op_num_threads = integer_parameter(config, "inter_op_thread_count") or 0
    if (arena := boolean_parameter(config, "enable_mem_arena")) is not None:
        options.enable_cpu_mem_arena = arena
    if (pattern := boolean_parameter(config, "enable_mem_pattern")) is not None:
        options.enable_mem_pattern = pattern
    for key, default in SESSION_ENTRIES.items():
        if (text := parameter(config, key) or default) is not None:
            options.add_session_config_entry(key, text)
    return options


def run_options(config: dict[str, Any], onnxruntime: Any) -> Any:
    options = onnxruntime.RunOptions()
    shrinkage = "memory.enable_memory_arena_shrinkage"
    if (text := parameter(config, shrinkage)) is not None:
        options.add_run_config_entry(shrinkage, text)
    return options


def default_threads(config: dict[str, Any]) -> int:
    """Return the intra-op threads of one instance: its share of the CPUs this process may use."""
    on_cpu = [group for group in config.get("instance_group", []) if group["kind"] != "KIND_GPU"]
    instances: int = sum(group.get("count", 1) for group in on_cpu)
    return max(1, usable_cpus() // max(1, instances))


def usable_cpus() -> int:
    """Return the CPUs of this process's affinity, or of its container's quota (cgroup v2) if that is less."""
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return min(cpus, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2, or "max": no quota
        return cpus


def execution_providers(args: dict[str, str], onnxruntime: Any) -> list[Any]:
    providers: list[Any] = ["CPUExecutionProvider"]
    if args["model_instance_kind"] == "GPU":
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": args["model_instance_device_id"]}))
        else:
            pb_utils.Logger.log_warn(f"{args['model_name']}: onnxruntime has no CUDA provider, using the CPU")
    return providers


def checked_inputs(config: dict[str, Any], session: Any) -> list[Port]:
    required = [node.name for node in session.get_inputs()]
    for name in [io["name"] for io in config["input"] if io.get("optional")]:
        if name in required:
            raise pb_utils.TritonModelException(f"optional input {name!r} has no default in the model")
        if config["max_batch_size"] > 0:
            raise pb_utils.TritonModelException(f"optional input {name!r} is not supported with batching")
    declared = [io["name"] for io in config["input"] if not io.get("optional")]
    if len(declared) != len(required):
        raise pb_utils.TritonModelException(
            f"configuration has {len(declared)} inputs {declared}, the model has {len(required)}: {required}"
        )
    nodes = {node.name: node for node in (*session.get_inputs(), *session.get_overridable_initializers())}
    return [checked_port("input", io, nodes, config["max_batch_size"]) for io in config["input"]]


def checked_outputs(config: dict[str, Any], session: Any) -> list[Port]:
    nodes = {node.name: node for node in session.get_outputs()}
    return [checked_port("output", io, nodes, config["max_batch_size"]) for io in config["output"]]


def checked_port(role: str, io: dict[str, Any], nodes: dict[str, Any], max_batch_size: int) -> Port:
    """Return the ``role`` that ``io`` declares, or raise where it contradicts the model's."""
    name, datatype = io["name"], io["data_type"]
    node = nodes.get(name)
    if node is None:
        raise pb_utils.TritonModelException(f"{role} {name!r} is not in the model, which has {sorted(nodes)}")
    provided = ONNX_TO_TRITON.get(node.type)
    if provided is None:
        raise pb_utils.TritonModelException(f"{role} {name!r} has type {node.type}, which Triton can't carry")
    if provided != datatype:
        raise pb_utils.TritonModelException(
            f"configuration has datatype {datatype} for {role} {name!r}, the model has {provided}"
        )
    dims = io.get("reshape", {}).get("shape", []) if "reshape" in io else io["dims"]
    dims = tuple(int(dim) for dim in dims)
    if node.shape is None:
        return Port(name, datatype, dims, None)
    shape = tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in node.shape)
    full = (-1, *dims) if max_batch_size > 0 else dims
    if shape == () and max_batch_size == 0:
        agrees = all(dim == 1 for dim in dims)
    else:
        free = (-1,) if role == "input" else ()
        agrees = len(shape) == len(full) and all(a in (*free, b) for a, b in zip(shape, full, strict=True))
    if max_batch_size > 0 and shape[:1] != (-1,):
        raise pb_utils.TritonModelException(
            f"{role} {name!r} has shape {list(shape)} in the model: for batching its first dimension must be free"
        )
    if not agrees:
        raise pb_utils.TritonModelException(
            f"configuration has shape {list(full)} for {role} {name!r}, the model has {list(shape)}"
        )
    return Port(name, datatype, dims, shape)
