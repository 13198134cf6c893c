"""What config.pbtxt asks of ONNX Runtime, and whether it agrees with the model."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from .loading import Port, dims_of, on_disk

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
# ONNX Runtime's session entries that parameters may set, and their defaults here.  Threads that spin while they wait
# are 10 % faster on idle CPUs, but take them from Triton's own threads and, with any other process at work, are two to
# three times slower; a local server shares its machine.
SESSION_ENTRIES: dict[str, str | None] = {
    "session.use_device_allocator_for_initializers": None,
    "session.intra_op.allow_spinning": "0",
    "session.inter_op.allow_spinning": "0",
}


@dataclass(frozen=True)
class ModelPort(Port):
    """An input or output with its ``shape`` in the model, batch axis included, -1 where free; None: not told there."""

    shape: tuple[int, ...] | None

    @property
    def scalar(self) -> bool:
        return self.shape == ()


def model_file(args: dict[str, str], config: dict[str, Any]) -> str:
    """Return the path of the ONNX file: the configured name or model.onnx, itself or inside a folder."""
    path = Path(args["model_repository"], args["model_version"], config.get("default_model_filename") or "model.onnx")
    if on_disk(path).is_dir():
        path /= "model.onnx"
    if not on_disk(path).is_file():
        raise pb_utils.TritonModelException(f"unable to find {str(path)!r}")
    return str(path)


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


def checked_inputs(config: dict[str, Any], session: Any) -> dict[str, ModelPort]:
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
    return {io["name"]: checked_port("input", io, nodes, config["max_batch_size"]) for io in config["input"]}


def checked_outputs(config: dict[str, Any], session: Any) -> dict[str, ModelPort]:
    nodes = {node.name: node for node in session.get_outputs()}
    return {io["name"]: checked_port("output", io, nodes, config["max_batch_size"]) for io in config["output"]}


def checked_port(role: str, io: dict[str, Any], nodes: dict[str, Any], max_batch_size: int) -> ModelPort:
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
    dims = dims_of(io)
    if node.shape is None:
        return ModelPort(name, datatype, dims, None)
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
    return ModelPort(name, datatype, dims, shape)
