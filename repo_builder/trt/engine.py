"""What an engine is: tensors, profiles, memory, and which layers run in which precision.

On a GPU that runs the engine all of it is read from the deserialised engine.  Where the engine can't be deserialised
(RTX builds need no GPU) the same comes from the builder's own description of the finished engine in its log.
"""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from repo_builder.errors import CompileError
from repo_builder.model import TensorSpec
from repo_builder.trt.library import Library
from repo_builder.trt.options import Profile

FUSED = "fused, precision not told"
_PRECISIONS = {
    # TensorRT's names for types in layer descriptions (8.6: "Row major linear FP16 format"; 10: "Half"), narrow first.
    "FP4": ("fp4",),
    "INT4": ("int4",),
    "FP8": ("fp8", "e4m3"),
    "INT8": ("int8",),
    "FP16": ("fp16", "half"),
    "BF16": ("bf16", "bfloat16"),
    "FP32": ("fp32", "float"),
}
_TACTICS = (
    ("INT8", r"i8i8|int8"),
    ("FP16", r"(?<!b)f16f16|fp16"),
    ("BF16", r"bf16"),
    ("TF32", r"tf32"),
    ("FP32", r"f32|fp32"),
)
"""What kernel names say, such as ``sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc``."""
_IDLE = {"reformat", "noop", "constant", "shape", "shape_call", "signal", "wait", "shuffle", "identity", "memset"}
"""Layers that compute nothing, so have no precision."""


@dataclass(frozen=True)
class EngineInfo:
    """``shape_tensors`` are inputs whose values are shapes; ``layers`` counts them by precision.

    ``device_memory`` is in bytes, the largest over the profiles; None where it was not told.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]
    layers: Mapping[str, int]
    device_memory: int | None
    shape_tensors: frozenset[str] = field(default_factory=frozenset)

    def ran_in(self, precision: str) -> bool | None:
        """Whether any layer computes in ``precision``; None when the engine doesn't tell."""
        if self.layers.get(precision):
            return True
        return None if not self.layers or FUSED in self.layers else False


def inspect_engine(library: Library, engine: Any) -> EngineInfo:
    """Read everything from a deserialised engine."""
    trt = library.module
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    tensors = {
        name: _tensor_spec(library, name, engine.get_tensor_dtype(name), engine.get_tensor_shape(name))
        for name in names
    }
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    host = trt.TensorLocation.HOST
    shape_tensors = frozenset(name for name in inputs if engine.get_tensor_location(name) == host)
    profiles = tuple(
        _read_profile(engine, inputs, shape_tensors, index) for index in range(engine.num_optimization_profiles)
    )
    return EngineInfo(
        tuple(tensors[name] for name in inputs),
        tuple(tensors[name] for name in names if name not in inputs),
        profiles,
        count_precisions(_layers_of(library, engine)),
        getattr(engine, "device_memory_size_v2", None) or getattr(engine, "device_memory_size", None),
        shape_tensors,
    )


def _read_profile(engine: Any, inputs: list[str], shape_tensors: frozenset[str], index: int) -> Profile:
    corners: list[dict[str, tuple[int, ...]]] = [{}, {}, {}]
    for name in inputs:
        ranges = _read_values(engine, name, index) if name in shape_tensors else None
        for corner, shape in zip(corners, ranges or engine.get_tensor_profile_shape(name, index), strict=True):
            try:
                corner[name] = tuple(shape)
            except ValueError:  # with a negative number of axes
                raise CompileError(
                    f"the engine has no profile with the shape of input {name!r}",
                    "TensorRT 8.6 runs none without where the size of an output depends on the data: build it again",
                ) from None
    return Profile(*corners)


def _read_values(engine: Any, name: str, index: int) -> Any:
    """The least, tuned and largest values of an input that holds sizes."""
    if hasattr(engine, "get_tensor_profile_values"):
        return engine.get_tensor_profile_values(index, name)
    with warnings.catch_warnings():  # 8.6 says that it is deprecated, and has nothing in its place
        warnings.simplefilter("ignore", DeprecationWarning)
        return engine.get_profile_shape_input(index, name)


def _layers_of(library: Library, engine: Any) -> list[Mapping[str, Any]]:
    inspector = engine.create_engine_inspector()
    return read_layers(inspector.get_engine_information(library.module.LayerInformationFormat.JSON))


def read_layers(text: str) -> list[Mapping[str, Any]]:
    """The layers in the inspector's JSON; none where it only names them, built without detailed verbosity."""
    try:
        layers = json.loads(text, strict=False).get("Layers", [])  # 8.6 puts bare control characters between names
    except ValueError:
        return []
    return [layer for layer in layers if isinstance(layer, dict)]


def count_precisions(layers: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Count computing layers by the narrowest type that they read, data or weights, else by the kernel's name.

    TensorRT 8.6 does not tell the types of tensors with dynamic shapes ("N/A due to dynamic shapes"), shapes set in a
    context or not; it does tell those of weights.
    """
    counts: Counter[str] = Counter()
    for layer in layers:
        if "ForeignNode" in str(layer.get("Name")):
            counts[FUSED] += 1
            continue
        if str(layer.get("LayerType", "")).lower() in _IDLE:
            continue
        weights = [layer[key] for key in ("Weights", "Bias") if isinstance(layer.get(key), dict)]
        reads = [*layer.get("Inputs", []), *layer.get("Constants", []), *weights]
        tactic = str(layer.get("TacticName", "")).lower()
        precision = _narrowest(_describe_type(tensor) for tensor in reads) or _precision_of_tactic(tactic)
        if precision == "FP32" and "tf32" in tactic:
            precision = "TF32"
        if precision:
            counts[precision] += 1
    order = [*_PRECISIONS, "TF32", FUSED]
    return {name: counts[name] for name in sorted(counts, key=order.index)}


def _describe_type(tensor: Mapping[str, Any]) -> str:
    """The stated type: its own field since TensorRT 10, before at the end of the format's name; of weights, "Type"."""
    fields = ("Datatype", "Format/Datatype", "Format", "Type")
    return next((str(tensor[field]) for field in fields if tensor.get(field)), "").lower()


def _precision_of_tactic(tactic: str) -> str | None:
    return next((precision for precision, pattern in _TACTICS if re.search(pattern, tactic)), None)


def _narrowest(types: Iterable[str]) -> str | None:
    words = [set(re.findall(r"[a-z]+\d*", text)) for text in types]
    for precision, names in _PRECISIONS.items():
        if any(word & set(names) for word in words):
            return precision
    return None


def inspect_build(library: Library, network: Any, profiles: tuple[Profile, ...], text: str) -> EngineInfo:
    """The same from the network as parsed and the builder's description ``text`` of the engine it made."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    described = dict(_described_ports(text))

    def spec(tensor: Any) -> TensorSpec:  # an axis whose range is one size is fixed in the engine
        return _tensor_spec(library, tensor.name, tensor.dtype, described.get(tensor.name, tensor.shape))

    reads, makes = tuple(map(spec, inputs)), tuple(map(spec, outputs))
    shape_tensors = frozenset(tensor.name for tensor in inputs if tensor.is_shape_tensor)
    return EngineInfo(reads, makes, profiles, count_precisions(_described_layers(text)), None, shape_tensors)


def _described_ports(text: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    section = text.partition("\nI/O Tensors:")[2]
    for match in re.finditer(r"^ Name: (.+?), IOMode: \w+, .*?Dimensions: \[([-\d,]*)\]", section, re.MULTILINE):
        yield match[1], tuple(int(size) for size in match[2].split(",") if size)


def _described_layers(text: str) -> Iterator[dict[str, Any]]:
    """Layers of a description such as ``Name: a, LayerType: kgen, Inputs: [ { Name: x, ..., Datatype: Half, ...``."""
    for line in text.partition("\nI/O Tensors:")[0].splitlines():
        match = re.match(r"Name: (.+?), LayerType: (\w+), (?P<reads>.*?)(?:, Outputs: \[|$)", line)
        if match:
            types = re.findall(r"Datatype: (\w+)", match["reads"])
            tactic = re.search(r"TacticName: ([^,]*)", line)
            yield {
                "Name": match[1],
                "LayerType": match[2],
                "Inputs": [{"Datatype": name} for name in types],
                "TacticName": tactic[1] if tactic else "",
            }


def _tensor_spec(library: Library, name: str, dtype: Any, shape: Any) -> TensorSpec:
    ours = library.data_type(dtype)
    if ours is None:
        raise CompileError(
            f"tensor {name!r} is of type {dtype.name}, which Triton does not have", "cast it in the model"
        )
    return TensorSpec(name, ours, tuple(None if size < 0 else int(size) for size in shape))
