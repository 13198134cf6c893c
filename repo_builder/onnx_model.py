"""Reading an ONNX file: what it needs and makes, and everything that can be wrong with it."""

from __future__ import annotations

import contextlib
import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from repo_builder.errors import ModelError
from repo_builder.model import Axis, DataType, ModelSpec, TensorSpec

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX file in memory, its external data left where it is.  ``changed``: a pass changed the graph."""

    proto: onnx.ModelProto
    spec: ModelSpec
    changed: bool = False

    def with_graph(self, proto: onnx.ModelProto) -> OnnxModel:
        """This model with the graph that a pass returned."""
        return replace(self, proto=proto, changed=self.changed or proto is not self.proto)

    def ports(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Inputs and outputs as the graph has them by now."""
        return _ports(self.proto.graph, self.spec.path)


def read_model(path: Path) -> OnnxModel:
    """Read ``path`` and say what its inputs and outputs are.

    Initialisers that are listed as inputs too (ir_version 3) are no inputs; the sizes 0 and -1 and the name ``?``
    mean a free axis.

    Raises:
        ModelError: not a file, not ONNX, truncated, an input or output of a type that Triton lacks, an input of
            unknown rank, an unknown operator, or external data that is missing or lies outside the model's folder.
    """
    proto = _parse(path)
    _refuse_broken_text(path, proto)
    inputs, outputs = _ports(proto.graph, path)
    _refuse_unfit_names(path, inputs, outputs)
    _refuse_unknown_operators(path, proto)
    spec = ModelSpec(path, inputs, outputs, _external_files(path, proto), proto.ir_version, opset_of(proto))
    return OnnxModel(proto, spec)


def bring_external_data(spec: ModelSpec, folder: Path, bring: Callable[[Path, Path], object] = shutil.copyfile) -> None:
    """Put what a model keeps outside its file beside a graph in ``folder``, unless it is there."""
    for file in spec.external_files:
        if not (target := folder / file).exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            bring(spec.path.parent / file, target)


def opset_of(proto: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a model uses, 0 if it uses none."""
    return next((entry.version for entry in proto.opset_import if entry.domain in {"", "ai.onnx"}), 0)


def is_text(path: Path) -> bool:
    """Whether a path is UTF-8; ONNX Runtime opens no other."""
    return not any("\ud800" <= char <= "\udfff" for char in str(path))


def _parse(path: Path) -> onnx.ModelProto:
    if not is_text(path):
        raise ModelError(f"the path {str(path)!r} is not UTF-8 text", "rename the file: ONNX Runtime can't open it")
    if path.is_dir():
        raise ModelError(f"{path} is a folder, not an ONNX file", f"did you mean one of its files: {path}/*.onnx ?")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(
            f"{path} does not exist", "check the path; it is taken relative to the current folder"
        ) from None
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror}", "check the file's permissions") from None
    if not data:
        raise ModelError(f"{path} is empty", "export or download the model again")
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto: onnx.ModelProto = onnx.ModelProto.FromString(data)
    except DecodeError:
        raise ModelError(f"{path} is not an ONNX file, or is cut short", _NOT_ONNX_HINT) from None
    if not proto.ir_version or not (proto.graph.node or proto.graph.output):  # an output may be an input
        raise ModelError(f"{path} holds no ONNX graph", _NOT_ONNX_HINT)
    if not proto.graph.output:
        raise ModelError(f"the graph in {path} has no outputs", "export the model again with its outputs named")
    return proto


_NOT_ONNX_HINT = "a download may be incomplete, or a Git LFS pointer; a PyTorch model needs torch.onnx.export first"


def _ports(graph: onnx.GraphProto, path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    initialisers = {tensor.name for tensor in graph.initializer}
    initialisers |= {tensor.values.name for tensor in graph.sparse_initializer}
    inputs = tuple(_tensor_spec(i, "input", path) for i in graph.input if i.name not in initialisers)
    return inputs, tuple(_tensor_spec(o, "output", path) for o in graph.output)


def _tensor_spec(value: onnx.ValueInfoProto, role: str, path: Path) -> TensorSpec:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        name = (kind or "unknown").removesuffix("_type")
        hint = "export the model with plain tensors"
        if role == "output" and kind in {"sequence_type", "map_type"}:
            hint += " (skl2onnx: options={'zipmap': False})"
        raise ModelError(f"{role} {value.name!r} of {path} is of type {name}; Triton has only tensors", hint)
    tensor = value.type.tensor_type
    dtype = DataType.from_onnx(tensor.elem_type)
    if dtype is None:
        import onnx

        with contextlib.suppress(ValueError):
            name = onnx.TensorProto.DataType.Name(tensor.elem_type)
            raise ModelError(
                f"{role} {value.name!r} of {path} is of type {name}, which Triton does not have",
                "cast it inside the model to one of: " + ", ".join(member.value for member in DataType),
            )
        raise ModelError(f"{role} {value.name!r} of {path} has no known element type", _NOT_ONNX_HINT)
    shape = tuple(_axis(dim) for dim in tensor.shape.dim) if tensor.HasField("shape") else None
    if shape is None and role == "input":
        raise ModelError(
            f"input {value.name!r} of {path} states no shape, and Triton must know the number of its axes",
            "export the model with input shapes; any of their sizes may be free",
        )
    return TensorSpec(value.name, dtype, shape)


def _axis(dim: onnx.TensorShapeProto.Dimension) -> Axis:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value > 0 else None
    return dim.dim_param if dim.dim_param not in {"", "?"} else None


def _refuse_broken_text(path: Path, proto: onnx.ModelProto) -> None:
    """Protobuf hands out text that is not UTF-8 as bytes; names made of them fit neither a config nor a URL."""
    for text in _texts(proto):
        if not isinstance(text, str):
            raise ModelError(f"{path} has a name that is not UTF-8 text: {text!r}", _NOT_ONNX_HINT)


def _texts(proto: onnx.ModelProto) -> Iterator[object]:
    """The names in a model, those of its external data too."""
    for graph in graphs_of(proto.graph):
        for node in graph.node:
            yield from (node.op_type, node.domain, node.name, *node.input, *node.output)
        for value in (*graph.input, *graph.output):
            yield from (value.name, *(dim.dim_param for dim in value.type.tensor_type.shape.dim))
    for tensor in _tensors(proto):
        yield from (tensor.name, *(entry.value for entry in tensor.external_data))


def _refuse_unfit_names(path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    for role, tensors in (("input", inputs), ("output", outputs)):
        names = [tensor.name for tensor in tensors]
        if "" in names or len(set(names)) != len(names):
            raise ModelError(
                f"{path} has {role}s without a name or with the same name: {names}",
                "give each a name of its own",
            )
        for name in names:
            if "\0" in name:  # Triton's ends there
                raise ModelError(
                    f"{path} has the {role} {name!r}, and Triton loads no model with a NUL in a name",
                    "export the model again with another name",
                )


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies of an If, Loop or Scan."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """``graph`` and every subgraph below it."""
    yield graph
    for node in graph.node:
        for body in subgraphs(node):
            yield from graphs_of(body)


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of ``graph``, those of subgraphs behind the node that has them."""
    for node in graph.node:
        yield node
        for body in subgraphs(node):
            yield from nodes_of(body)


def _refuse_unknown_operators(path: Path, proto: onnx.ModelProto) -> None:
    """Name every operator that ONNX does not define, all at once.

    Domains that a runtime may define on its own (com.microsoft and others) are left to that runtime.
    """
    import onnx.defs

    own = {(function.domain, function.name) for function in proto.functions}
    unknown: dict[str, str] = {}
    for node in nodes_of(proto.graph):
        domain = "" if node.domain == "ai.onnx" else node.domain
        if (
            domain in {"", "ai.onnx.ml"}
            and (node.domain, node.op_type) not in own
            and not (onnx.defs.has(node.op_type, domain) or node.op_type in _RETIRED_OPERATORS)
        ):
            unknown.setdefault(node.op_type, node.name or next(iter(node.output), ""))
    if unknown:
        listed = ", ".join(f"{operator} (node {node!r})" for operator, node in unknown.items())
        raise ModelError(
            f"{path} uses operators that ONNX does not define: {listed}",
            "export it with standard operators, or give custom ones a domain of their own",
        )


_RETIRED_OPERATORS = {
    # Experimental until ONNX 1.4 and still run by ONNX Runtime: its contrib operators in the default domain.
    "Affine", "ATen", "Crop", "DynamicSlice", "GRUUnit", "GivenTensorFill", "ImageScaler", "ParametricSoftplus",
    "Scale", "ScaledTanh", "SimplifiedLayerNormalization", "ThresholdedRelu", "Upsample",
}  # fmt: skip


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    functions_nodes = [node for function in proto.functions for node in function.node]
    bodies = (body for node in functions_nodes for body in subgraphs(node))
    graphs = [graph for outer in (proto.graph, *bodies) for graph in graphs_of(outer)]
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in (*(node for graph in graphs for node in graph.node), *functions_nodes):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _inside(folders: set[Path], base: Path, relative: Path) -> Path | None:
    """The file that ``relative`` names from ``base``, None if it does not lie in one of ``folders``."""
    if relative.is_absolute() or "\0" in str(relative):
        return None
    target = (base / relative).resolve()
    return target if any(target.is_relative_to(folder) for folder in folders) else None


def _external_files(path: Path, proto: onnx.ModelProto) -> tuple[Path, ...]:
    import onnx

    # Where the model is, and where it is a link to: Hugging Face's cache links to files of one folder.
    folders = {path.parent.resolve(), path.resolve().parent}
    found: dict[Path, int] = {}
    for tensor in _tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        relative = Path(PurePosixPath(location))
        if relative in found:
            _refuse_short(path, location, tensor, found[relative])
            continue
        target = _inside(folders, path.parent, relative) if location else None
        if target is None:
            raise ModelError(
                f"the weights of tensor {tensor.name!r} are in {location!r}, outside the folder of {path}",
                "put the external data file beside the model and save the model again",
            )
        if ".." in relative.parts:
            raise ModelError(
                f"the weights of tensor {tensor.name!r} are in {location!r}, a path with '..' in it",
                "save the model again with the plain path of its external data file",
            )
        found[relative] = _size(path, location, target)
        _refuse_short(path, location, tensor, found[relative])
    return tuple(found)


def _size(path: Path, location: str, target: Path) -> int:
    """Bytes of the file ``target`` that is meant by ``location``; raises ModelError without it."""
    try:
        if target.is_file():
            return target.stat().st_size
        why = "is missing"
    except OSError as error:
        why = f"can't be read: {error.strerror}"
    raise ModelError(
        f"{path} keeps weights in {location!r}, which {why}",
        f"copy {Path(location).name} into {path.parent}/ beside the model",
    )


def _refuse_short(path: Path, location: str, tensor: onnx.TensorProto, size: int) -> None:
    """Raise ModelError where the file at ``location``, of ``size`` bytes, ends before the values of ``tensor`` do."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    dtype = DataType.from_onnx(tensor.data_type)
    computed = math.prod(tensor.dims) * dtype.numpy_dtype().itemsize if dtype else 0
    numbers = [entries.get("offset") or "0", entries.get("length") or str(computed)]
    if not all(re.fullmatch(r"[0-9]{1,99}", number) for number in numbers):
        raise ModelError(f"{path} does not say where in {location!r} its weights are", _NOT_ONNX_HINT)
    if (end := sum(map(int, numbers))) > size:
        raise ModelError(
            f"{path} keeps weights in {location!r}, which is too short: {size} bytes of at least {end}",
            f"copy {Path(location).name} into {path.parent}/ again: it was cut, or is of another model",
        )


def constant_integers(tensor: onnx.TensorProto) -> list[int]:
    """The values of a constant of integers (a shape, a count), one after the other.

    Empty when the tensor is of another type, keeps its values outside the file or is broken.
    """
    import onnx
    from onnx import numpy_helper

    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.data_type not in _INTEGERS:
        return []
    try:
        return [int(number) for number in numpy_helper.to_array(tensor).ravel()]
    except (ValueError, TypeError):
        return []


_INTEGERS = {DataType.INT32.onnx, DataType.INT64.onnx}
