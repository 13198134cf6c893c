"""An ONNX file to a TensorRT network, and every reason why not, at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repo_builder.errors import CompileError
from repo_builder.onnx_model import nodes_of
from repo_builder.trt.library import Library
from repo_builder.trt.log import BuildLog
from repo_builder.trt.messages import (
    REFUSED_LAYER,
    UNNAMED,
    UNSUPPORTED,
    listed,
    name_of,
    node_in,
    tidy,
    tidy_assertion,
)
from repo_builder.trt.options import QUANTISED_FOR_TENSORRT

if TYPE_CHECKING:
    import onnx


def parse(library: Library, network: Any, path: Path, proto: onnx.ModelProto, log: BuildLog) -> Any:
    """Fill ``network`` from the file and return the parser, which must outlive the build.

    ``proto`` is the file's content: old parsers tell a node by its number only.

    Raises:
        CompileError: with the name and operator of every node that TensorRT can't take.
    """
    parser = library.module.OnnxParser(network, log.logger)
    log.errors.clear()
    fused = any(_is_attention(node) for node in nodes_of(proto.graph))
    if parser.parse(_with_attention_in_parts(path), str(path)) if fused else parser.parse_from_file(str(path)):
        return parser
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    problems = [problem for error in errors for problem in _describe(error, proto, log)]
    unsupported = _unsupported(parser, proto)
    listed = _listed([*problems, *unsupported]) or list(map(tidy, log.errors)) or ["it gave no reason"]
    hint = REFUSED_LAYER
    if any("must all be positive" in problem.said for problem in problems):
        hint = "quantise it again: its scales are wrong"
    elif any(_is_of_quantisation(problem.operator) for problem in [*problems, *unsupported]):
        hint = f"{QUANTISED_FOR_TENSORRT}, or serve it by add --target onnxruntime"
    elif any(UNSUPPORTED in problem for problem in listed):
        hint = "export them otherwise, give their layers with --plugin LIB.so, or serve it by add --target onnxruntime"
    raise CompileError(f"{library.name} {library.version} can't take the model: {'; '.join(listed)}", hint)


def _is_of_quantisation(operator: str) -> bool:
    """Whether ONNX Runtime's quantisation, static or dynamic, makes nodes of ``operator``."""
    return operator.startswith(("QLinear", "QGemm")) or operator.endswith(
        ("QuantizeLinear", "quantizeLinear", "Integer")
    )


@dataclass(frozen=True)
class _Problem:
    """What TensorRT has against a node of ``operator``, or, where that is "", against an input or the whole graph."""

    name: str
    operator: str
    said: str


def _describe(error: Any, proto: onnx.ModelProto, log: BuildLog) -> list[_Problem]:
    """What an error is about: a node, or, where only the operator is told, every node of that."""
    index = error.node()
    node = proto.graph.node[index] if 0 <= index < len(proto.graph.node) else None
    name = error.node_name() if hasattr(error, "node_name") else node.name if node else ""
    operator = error.node_operator() if hasattr(error, "node_operator") else node.op_type if node else ""
    said = tidy_assertion(tidy(error.desc())).removeprefix(f"{name}: ")
    if operator:
        called = name.removeprefix(UNNAMED) or (name_of(node) if node else f"number {index}")
        return [_Problem(called, operator, said)]
    if error.file() in {value.name for value in proto.graph.input}:  # as the parser calls the place of such errors
        reasons = (tidy(message) for message in log.errors if "In function" not in message)
        return [_Problem("", "", f"input {error.file()!r}: {next(filter(None, reasons), said)}")]
    importer = error.func().removeprefix("import")
    nodes = [node for node in nodes_of(proto.graph) if node.op_type == importer]
    one = " (one of them at least)" if len(nodes) > 1 else ""
    return [_Problem(name_of(node), importer, said + one) for node in nodes] or [_Problem("", "", said)]


def _listed(problems: Iterable[_Problem]) -> list[str]:
    """A sentence for all nodes of an operator that have the same problem; of each node only its first."""
    first: dict[tuple[str, str], _Problem] = {}
    for problem in problems:
        first.setdefault((problem.name, problem.operator or problem.said), problem)
    alike: dict[tuple[str, str], list[str]] = {}
    for problem in first.values():
        alike.setdefault((problem.operator, problem.said), []).append(problem.name)
    return [_sentence(names, operator, said) for (operator, said), names in alike.items()]


def _sentence(names: list[str], operator: str, said: str) -> str:
    if not operator:
        return said
    return f"node{'s' * (len(names) > 1)} {listed(names)} ({operator}): {said}"


def _is_attention(node: onnx.NodeProto) -> bool:
    return node.op_type == "Attention" and node.domain in {"", "ai.onnx"}


def _with_attention_in_parts(path: Path) -> bytes:
    """The file, with leave to compute each Attention in parts where TensorRT has no kernel for the whole of it.

    Without it no engine can be built there.  The parser of TensorRT 10.14 and later sets
    ``IAttention.decomposable`` by the attribute ``TRT_decomposable``, which ONNX itself does not know.
    """
    import onnx

    proto = onnx.load(path, load_external_data=False)
    for node in nodes_of(proto.graph):
        if _is_attention(node):
            node.attribute.append(onnx.helper.make_attribute("TRT_decomposable", 1))
    return bytes(proto.SerializeToString())


def _unsupported(parser: Any, proto: onnx.ModelProto) -> list[_Problem]:
    """Nodes that the parser has no importer for, of the whole graph: it stops at the first of them."""
    return [
        _Problem(name_of(node), node.op_type, UNSUPPORTED)
        for node in nodes_of(proto.graph)
        if not parser.supports_operator(node.op_type)
    ]


def with_node(error: CompileError, proto: onnx.ModelProto) -> CompileError:
    """A failed build's error with the node in front that its layer was made of."""
    start, colon, said = error.message.partition(": ")
    node = node_in(said, proto)
    said = said.replace(UNNAMED, "")
    if not colon or node is None or said.startswith(("node ", "nodes ")):
        return error
    return CompileError(f"{start}: {node}: {said}", error.hint)
