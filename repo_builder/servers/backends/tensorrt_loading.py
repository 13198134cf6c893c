"""Loading a plan, and whether config.pbtxt agrees with it."""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .loading import Port, dims_of, on_disk, refuse
from .tensorrt_memory import Cuda

DATATYPES = {
    # tensorrt.DataType: Triton's name, NumPy's type of the same width (NumPy has no bfloat16)
    "FLOAT": ("TYPE_FP32", np.float32),
    "HALF": ("TYPE_FP16", np.float16),
    "BF16": ("TYPE_BF16", np.uint16),
    "INT8": ("TYPE_INT8", np.int8),
    "UINT8": ("TYPE_UINT8", np.uint8),
    "INT32": ("TYPE_INT32", np.int32),
    "INT64": ("TYPE_INT64", np.int64),
    "BOOL": ("TYPE_BOOL", np.bool_),
}


@dataclass(frozen=True)
class EnginePort(Port):
    """An input or output as the engine has it: ``shape`` with the batch axis, -1 where free.

    ``values``: an input that lies in host memory and whose values are shapes.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    values: bool = False

    def nbytes(self, shape: Sequence[int]) -> int:
        return math.prod(shape) * self.dtype.itemsize


def make_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps errors for messages and passes warnings on to Triton's log."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors = [*self.errors[-9:], " ".join(message.split())]
                pb_utils.Logger.log_error(message)
            elif severity == trt.ILogger.Severity.WARNING:
                pb_utils.Logger.log_warn(message)

    return Logger()


def load_engine(runtime: Any, trt: Any, cuda: Cuda, args: dict[str, str], config: dict[str, Any]) -> Any:
    """Deserialise the plan for this GPU, or say what it needs and what there is."""
    folder = Path(args["model_repository"], args["model_version"])
    gpu = cuda("cudaGetDeviceProperties", int(args["model_instance_device_id"]))
    capability = f"{gpu.major}.{gpu.minor}"
    by_capability = config.get("cc_model_filenames", {})
    path = folder / (by_capability.get(capability) or config.get("default_model_filename") or "model.plan")
    if not on_disk(path).is_file():
        others = ", ".join(sorted(by_capability, key=lambda text: (len(text), text)))
        which = f"; cc_model_filenames has plans for {others}, none for {capability}" if others else ""
        instance = args.get("model_instance_name", "")
        raise pb_utils.TritonModelException(f"unable to find {str(path)!r} for model instance {instance!r}{which}")
    manifest = read_manifest(folder)
    logger = runtime.logger
    if hasattr(trt, "init_libnvinfer_plugins"):
        trt.init_libnvinfer_plugins(logger, "")
    for name in (manifest.get("engine") or {}).get("plugins") or ():
        load_plugin(trt, folder / "plugins" / Path(name).name)
    if manifest.get("options", {}).get("build", {}).get("tensorrt", {}).get("version_compatible"):
        runtime.engine_host_code_allowed = True  # such a plan brings the runtime that it needs
    plan = on_disk(path).read_bytes()
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        several = {plan.get("file"): plan for plan in manifest.get("plans", {}).values()}
        made = several.get(path.name, manifest).get("engine") or {}
        built_on = (made.get("gpu") or {}).get("name") or "a GPU it does not name"
        built_by = f"; it was built by {made['library']} on {built_on}" if made.get("library") else ""
        name = gpu.name.decode().rstrip("\0")
        said = logger.errors[0] if logger.errors else "it gave no reason"
        if (size := manifest.get("files", {}).get(path.name, len(plan))) != len(plan):
            said = f"it is {len(plan)} bytes long instead of {size}"
        raise pb_utils.TritonModelException(
            f"unable to load {path}: {said}{built_by}; here is {trt.__name__} {trt.__version__} on {name} "
            f"(compute capability {capability})"
        )
    return engine


def load_plugin(trt: Any, path: Path) -> None:
    """Load a library of custom layers: it registers them itself, or exports a list for the registry to read."""
    registry = trt.get_plugin_registry()
    listed = "all_creators" if hasattr(registry, "all_creators") else "plugin_creator_list"
    before = len(getattr(registry, listed))
    try:
        library = ctypes.CDLL(str(on_disk(path)), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise pb_utils.TritonModelException(f"unable to load the plan's custom layers: {error}") from error
    exports = hasattr(library, "getCreators") or hasattr(library, "getPluginCreators")
    if exports and len(getattr(registry, listed)) == before and registry.load_library(str(path)) is None:
        raise pb_utils.TritonModelException(f"unable to load the plan's custom layers: none are found in {path}")


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `repo-builder` noted beside the plan; another tool's plan has none."""
    try:
        manifest = json.loads((on_disk(folder) / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def profile_indices(engine: Any, config: dict[str, Any]) -> list[int]:
    """The profiles that instance_group names.

    Where it names none, NVIDIA's tensorrt backend takes the first; for any other backend Triton lets it name none.
    """
    count = engine.num_optimization_profiles
    named = {text for group in config.get("instance_group", []) for text in group.get("profile", [])}
    if not named:
        return [0] if config.get("platform") == "tensorrt_plan" else list(range(count))
    for text in named:
        if not text.isdigit() or int(text) >= count:
            raise pb_utils.TritonModelException(f"instance_group has profile {text!r}; the engine has {count}")
    return sorted(int(text) for text in named)


def profile_corners(engine: Any, ports: Iterable[EnginePort], index: int) -> list[dict[str, tuple[int, ...]]]:
    """The smallest, tuned and largest shapes of a profile; of an input that holds sizes its values."""
    corners: list[dict[str, tuple[int, ...]]] = [{}, {}, {}]
    for port in ports:
        if not port.values:
            shapes = engine.get_tensor_profile_shape(port.name, index)
        elif hasattr(engine, "get_tensor_profile_values"):
            shapes = engine.get_tensor_profile_values(index, port.name)
        else:  # before TensorRT 10
            shapes = engine.get_profile_shape_input(index, port.name)
        for corner, shape in zip(corners, shapes, strict=True):
            corner[port.name] = tuple(shape)
    return corners


def check_batch_limit(maximum: dict[str, tuple[int, ...]], profile: int, max_batch_size: int) -> None:
    """Raise if an input's ``maximum`` in a profile is less than the batches that config.pbtxt allows."""
    for name, shape in maximum.items():
        if shape and shape[0] < max_batch_size:
            raise pb_utils.TritonModelException(
                f"configuration specified max-batch {max_batch_size} but TensorRT engine only supports "
                f"max-batch {shape[0]} (input {name!r}, profile {profile})"
            )


def cuda_graph_sizes(config: dict[str, Any]) -> frozenset[int]:
    """The batch sizes to capture, 0 without batching.

    Those of graph_spec, else 1, the largest, and the preferred ones or, without dynamic batching, some small ones
    (https://github.com/triton-inference-server/tensorrt_backend/blob/main/src/instance_state.cc,
    ``InitializeGraphSpecs``).
    """
    cuda = config.get("optimization", {}).get("cuda", {})
    if not cuda.get("graphs"):
        return frozenset()
    if named := {int(spec.get("batch_size", 0)) for spec in cuda.get("graph_spec", [])}:
        return frozenset(named)
    batching = config.get("dynamic_batching", {"preferred_batch_size": (2, 3, 4, 6, 8, 12, 16)})
    return frozenset({1, *map(int, batching.get("preferred_batch_size", ())), config["max_batch_size"]})


def checked_ports(trt: Any, engine: Any, config: dict[str, Any]) -> tuple[dict[str, EnginePort], dict[str, EnginePort]]:
    """The engine's inputs and outputs, after a look at whether config.pbtxt has them as they are."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    is_input = {name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
    ports: dict[str, dict[str, EnginePort]] = {}
    for role in ("input", "output"):
        there = [name for name in names if is_input[name] == (role == "input")]
        declared = {io["name"]: io for io in config[role]}
        if unknown := declared.keys() - set(there):
            raise pb_utils.TritonModelException(f"{role} {min(unknown)!r} is not in the model, which has {there}")
        if role == "input" and len(declared) != len(there):
            raise pb_utils.TritonModelException(
                f"configuration has {len(declared)} inputs {list(declared)}, the model has {len(there)}: {there}"
            )
        ports[role] = {
            name: checked_port(trt, engine, role, declared.get(name), name, config["max_batch_size"]) for name in there
        }
    return ports["input"], ports["output"]


def checked_port(
    trt: Any, engine: Any, role: str, io: dict[str, Any] | None, name: str, max_batch_size: int
) -> EnginePort:
    """Return the ``role`` called ``name``, or raise where ``io``, what config.pbtxt says of it, contradicts it."""
    kind = engine.get_tensor_dtype(name).name
    shape = tuple(engine.get_tensor_shape(name))
    values = engine.get_tensor_location(name) == trt.TensorLocation.HOST
    if kind not in DATATYPES:
        raise pb_utils.TritonModelException(f"{role} {name!r} has type {kind}, which Triton can't carry")
    where = f" for {role} {name!r} with max_batch_size {max_batch_size}"
    if engine.get_tensor_format(name) != trt.TensorFormat.LINEAR:
        refuse("is_non_linear_format_io", trt.__name__, where)
    if values and (role == "output" or max_batch_size > 0):
        refuse("is_shape_tensor", trt.__name__, where)
    datatype, dtype = DATATYPES[kind][0], np.dtype(DATATYPES[kind][1])
    if io is None:  # an output that nobody may ask for
        return EnginePort(name, datatype, (), dtype, shape, values)
    if io["data_type"] != datatype:
        raise pb_utils.TritonModelException(
            f"unexpected datatype {datatype} for inference {role} '{name}', expecting {io['data_type']}"
        )
    dims = dims_of(io)
    full = (-1, *dims) if max_batch_size > 0 else dims
    if max_batch_size > 0 and shape[:1] != (-1,) and (shape[:1], max_batch_size) != ((1,), 1):
        raise pb_utils.TritonModelException(
            f"{role} {name!r} has shape {list(shape)} in the engine: for batching its first dimension must be free"
        )
    scalar = not shape and all(dim == 1 for dim in dims)
    first = 1 if max_batch_size > 0 else 0
    pairs = zip(full[first:], shape[first:], strict=False)
    agrees = len(full) == len(shape) and all(a == b or -1 in (a, b) for a, b in pairs)
    if not scalar and not agrees:
        raise pb_utils.TritonModelException(
            f"configuration has shape {list(full)} for {role} {name!r}, the model has {list(shape)}"
        )
    return EnginePort(name, datatype, dims, dtype, shape, values)
